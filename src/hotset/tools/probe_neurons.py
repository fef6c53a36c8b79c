"""How fast the engine decodes from memory: matrices it streams, and neurons that a predictor chooses here and there."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from hotset import _core
from hotset.config import LayerConfig, ModelConfig
from hotset.quant import NeuronLayout
from hotset.tools.probe_drive import MIB

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, RANK, VOCAB = 4096, 32, 4, 128, 64, 16
_FMT = "q4_0"
_LAYOUT = NeuronLayout(_FMT, HIDDEN, gated=True)
_ATTENTION = {"q": HIDDEN, "k": KV_HEADS * HEAD_DIM, "v": KV_HEADS * HEAD_DIM, "o": HIDDEN}  # rows of HIDDEN
_DISTINCT = 64  # bundles that the file repeats: what is computed does not depend on their values
# Of matrices, and of neurons. A virtual machine may have more cache than it sees.
_LEAST_BYTES = 256 * MIB
_MOST_BYTES = 512 * MIB
_CACHES = 4  # both are so many times as large as the L3 cache, so that they come from memory
_MOST_STEPS = 500  # the KV cache holds 512
_PAGE = 4096
NONE, A_QUARTER, ALL = 1e9, 0.674, -1e9  # least scores; a neuron's are distributed normally, about

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Step:
    """Of decoding one token."""

    seconds: float  # median
    vectors: float  # of neurons computed, mean


class NeuronModel:
    """A model several times as large as this CPU's caches, whose predictor chooses neurons by chance.

    Gates have a ReLU and ups nothing: of a candidate the gate is computed, of an active one the rest, too.
    """

    def __init__(self, folder: Path, layers: int, neurons: int) -> None:
        """neurons: of a layer, a multiple of 64."""
        self._rng = np.random.default_rng(0)
        self._config = ModelConfig(
            hidden=HIDDEN, vocab=VOCAB, ffn=neurons, heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM, context=512,
            attention_scale=HEAD_DIM**-0.5, layers=(LayerConfig(),) * layers, act_gate="relu",
        )  # fmt: skip
        self._tensors: list[_core.TensorRef] = []
        self._maps: list[tuple[_core.TensorRef, _core.TensorRef]] = []
        self._write_weights(folder / "resident", layers, neurons)
        self._neurons = self._write_bundles(folder / "neurons", layers, neurons)
        rows = (*_ATTENTION.values(), RANK)
        layer_bytes = sum(_core.packed_bytes(_FMT, n, HIDDEN) for n in rows) + _core.packed_bytes(_FMT, neurons, RANK)
        self.weight_bytes = layers * layer_bytes

    def engine(self, threads: int, least: float) -> _core.Engine:
        """least: score of the neurons that are computed."""
        layers, ffn = len(self._config.layers), self._config.ffn
        limits = [least] * layers
        sparse = _core.SparseOptions([ffn] * layers, 0, "clock", "low-rank", limits, limits, self._maps, ahead=True)
        native = self._config.to_native()
        return _core.Engine(native, self._tensors, threads=threads, kv_tokens=512, neurons=self._neurons, sparse=sparse)

    def decode(self, threads: int, least: float, seconds: float) -> Step:
        """Token after token, with other neurons for each."""
        engine = self.engine(threads, least)
        seqs, one, want = np.array([engine.sequence_new()], np.int32), np.ones(1, np.int32), np.ones(1, np.uint8)
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < 2 or (time.perf_counter() < end and len(times) < _MOST_STEPS):
            start = time.perf_counter()
            engine.step(seqs, one, np.array([len(times) % VOCAB], np.int32), want)
            times.append(time.perf_counter() - start)
        stats = engine.sparse_stats
        return Step(statistics.median(times[1:]), (stats["candidates"] + 2 * stats["active"]) / len(times))

    def _write_weights(self, path: Path, layers: int, neurons: int) -> None:
        """Every layer's lie in the file for themselves; layers have the same ones."""
        shapes = {name: (rows, HIDDEN) for name, rows in _ATTENTION.items()}
        maps = {"down": (RANK, HIDDEN), "up": (neurons, RANK)}
        packed = {name: self._packed(*shape) for name, shape in (shapes | maps).items()}
        ones = np.ones(HIDDEN, np.float32).view(np.uint8)
        with path.open("wb") as file:

            def add(role: str, layer: int, data: Bytes, fmt: str, rows: int, cols: int) -> _core.TensorRef:
                at = file.tell()
                file.write(data.tobytes() + bytes(-data.nbytes % _PAGE))
                return _core.TensorRef(role, layer, str(path), at, data.nbytes, fmt, rows, cols)

            self._tensors.append(add("embed", -1, self._packed(VOCAB, HIDDEN), _FMT, VOCAB, HIDDEN))
            self._tensors.append(add("final_norm", -1, ones, "f32", HIDDEN, 0))
            for layer in range(layers):
                for name, (rows, cols) in shapes.items():
                    self._tensors.append(add(name, layer, packed[name], _FMT, rows, cols))
                for name in ("attn_norm", "ffn_norm"):
                    self._tensors.append(add(name, layer, ones, "f32", HIDDEN, 0))
                down, up = (add(name, layer, packed[name], _FMT, *shape) for name, shape in maps.items())
                self._maps.append((down, up))

    def _packed(self, rows: int, cols: int) -> Bytes:
        data = np.empty(_core.packed_bytes(_FMT, rows, cols), np.uint8)
        _core.encode(_FMT, self._rng.standard_normal((rows, cols), np.float32) * np.float32(cols**-0.5), data)
        return data

    def _write_bundles(self, path: Path, layers: int, neurons: int) -> _core.NeuronFile:
        """Layers share their bundles on the drive, not in memory."""
        stride = -(-_LAYOUT.bytes // _PAGE) * _PAGE
        vectors = np.empty((_DISTINCT * len(_LAYOUT.roles), _LAYOUT.vector_bytes), np.uint8)
        _core.encode_vectors(_FMT, self._rng.standard_normal((len(vectors), HIDDEN), np.float32), vectors)
        bundles = np.zeros((_DISTINCT, stride), np.uint8)
        bundles[:, : _LAYOUT.bytes] = vectors.reshape(_DISTINCT, _LAYOUT.bytes)
        sums = np.array([_core.crc32c(bundle[: _LAYOUT.bytes]) for bundle in bundles], np.uint32)
        repeats = neurons // _DISTINCT
        with path.open("wb") as file:
            for _ in range(repeats):
                file.write(bundles.data)
        every = [np.tile(sums, repeats)] * layers
        return _core.NeuronFile(str(path), _FMT, HIDDEN, True, stride, neurons, [0] * layers, every)


@contextmanager
def neuron_model(folder: Path) -> Iterator[NeuronModel]:
    """A model in a folder of its own, removed afterwards; larger than the caches of this CPU."""
    size = min(max(_LEAST_BYTES, _CACHES * int(str(_core.cpu_info()["l3_bytes"]))), _MOST_BYTES)
    layers = -(-size // sum(_core.packed_bytes(_FMT, rows, HIDDEN) for rows in _ATTENTION.values()))
    neurons = max(size // layers // _LAYOUT.bytes // _DISTINCT, 1) * _DISTINCT
    with TemporaryDirectory(dir=folder, prefix=".probe-") as own:
        yield NeuronModel(Path(own), layers, neurons)


def weight_bytes_per_s(model: NeuronModel, threads: int, seconds: float) -> float:
    """Bytes/s of matrices that decode of one sequence gets through."""
    return model.weight_bytes / model.decode(threads, NONE, seconds).seconds


def neuron_bytes_per_s(model: NeuronModel, threads: int, seconds: float) -> float:
    """Bytes/s of single vectors of neurons, by what a quarter of the neurons adds to the time of a token."""
    chosen, none = (model.decode(threads, least, seconds / 2) for least in (A_QUARTER, NONE))
    return chosen.vectors * _LAYOUT.vector_bytes / max(chosen.seconds - none.seconds, 0.01 * chosen.seconds)
