"""How fast the engine decodes from memory: matrices it streams, and neurons that a predictor chooses here and there;
and what a layer takes that has next to no weights.
"""

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
from hotset.engine.budget import Host
from hotset.errors import StorageError
from hotset.formats.files import storage_error
from hotset.quant import NeuronLayout
from hotset.tools.probe_drive import MIB
from hotset.tools.resolve import cache_dir

RANK, VOCAB = 64, 16
_FMT = "q4_0"
_DISTINCT = 64  # bundles that the file repeats: what is computed does not depend on their values
# Of matrices, and of neurons. A virtual machine may have more cache than it sees.
_LEAST_BYTES = 256 * MIB
_MOST_BYTES = 512 * MIB
_FREE_SHARE = 4  # each takes at most one part in so many of the free memory
_CACHES = 4  # both are so many times as large as the L3 cache, so that they come from memory
_MOST_STEPS = 500  # the KV cache holds 512
_PAGE = 4096
NONE, A_QUARTER, ALL = 1e9, 0.674, -1e9  # least scores; a neuron's are distributed normally, about

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a layer's matrices."""

    heads: int
    kv_heads: int
    head_dim: int

    @property
    def hidden(self) -> int:
        return self.heads * self.head_dim

    @property
    def attention(self) -> dict[str, int]:
        """Rows of `hidden` columns."""
        kv = self.kv_heads * self.head_dim
        return {"q": self.hidden, "k": kv, "v": kv, "o": self.hidden}

    @property
    def layout(self) -> NeuronLayout:
        return NeuronLayout(_FMT, self.hidden, gated=True)

    def attention_bytes(self) -> int:
        return sum(_core.packed_bytes(_FMT, rows, self.hidden) for rows in self.attention.values())


LARGE, SMALL = Shape(32, 4, 128), Shape(4, 1, 64)
_SMALL_LAYERS, _SMALL_NEURONS = 8, 8 * _DISTINCT  # neurons enough for all threads


@dataclass(frozen=True, slots=True)
class Step:
    """Of decoding one token."""

    seconds: float  # median
    vectors: float  # of neurons computed, mean


class NeuronModel:
    """A model whose predictor chooses neurons by chance.

    Gates have a ReLU and ups nothing: of a candidate the gate is computed, of an active one the rest, too.
    """

    def __init__(self, folder: Path, layers: int, neurons: int, shape: Shape = LARGE) -> None:
        """neurons: of a layer, a multiple of 64."""
        self._rng = np.random.default_rng(0)
        self.layers, self.shape = layers, shape
        self._config = ModelConfig(
            hidden=shape.hidden, vocab=VOCAB, ffn=neurons, heads=shape.heads, kv_heads=shape.kv_heads,
            head_dim=shape.head_dim, context=512, attention_scale=shape.head_dim**-0.5,
            layers=(LayerConfig(),) * layers, act_gate="relu",
        )  # fmt: skip
        self._tensors: list[_core.TensorRef] = []
        self._maps: list[tuple[_core.TensorRef, _core.TensorRef]] = []
        self._write_weights(folder / "resident", layers, neurons)
        self._neurons = self._write_bundles(folder / "neurons", layers, neurons)
        maps = _core.packed_bytes(_FMT, RANK, shape.hidden) + _core.packed_bytes(_FMT, neurons, RANK)
        self.weight_bytes = layers * (shape.attention_bytes() + maps)

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
        hidden = self.shape.hidden
        shapes = {name: (rows, hidden) for name, rows in self.shape.attention.items()}
        maps = {"down": (RANK, hidden), "up": (neurons, RANK)}
        packed = {name: self._packed(*shape) for name, shape in (shapes | maps).items()}
        ones = np.ones(hidden, np.float32).view(np.uint8)
        with path.open("wb") as file:

            def add(role: str, layer: int, data: Bytes, fmt: str, rows: int, cols: int) -> _core.TensorRef:
                at = file.tell()
                file.write(data.tobytes() + bytes(-data.nbytes % _PAGE))
                return _core.TensorRef(role, layer, str(path), at, data.nbytes, fmt, rows, cols)

            self._tensors.append(add("embed", -1, self._packed(VOCAB, hidden), _FMT, VOCAB, hidden))
            self._tensors.append(add("final_norm", -1, ones, "f32", hidden, 0))
            for layer in range(layers):
                for name, (rows, cols) in shapes.items():
                    self._tensors.append(add(name, layer, packed[name], _FMT, rows, cols))
                for name in ("attn_norm", "ffn_norm"):
                    self._tensors.append(add(name, layer, ones, "f32", hidden, 0))
                down, up = (add(name, layer, packed[name], _FMT, *shape) for name, shape in maps.items())
                self._maps.append((down, up))

    def _packed(self, rows: int, cols: int) -> Bytes:
        data = np.empty(_core.packed_bytes(_FMT, rows, cols), np.uint8)
        _core.encode(_FMT, self._rng.standard_normal((rows, cols), np.float32) * np.float32(cols**-0.5), data)
        return data

    def _write_bundles(self, path: Path, layers: int, neurons: int) -> _core.NeuronFile:
        """Layers share their bundles on the drive, not in memory."""
        layout, hidden = self.shape.layout, self.shape.hidden
        stride = -(-layout.bytes // _PAGE) * _PAGE
        vectors = np.empty((_DISTINCT * len(layout.roles), layout.vector_bytes), np.uint8)
        _core.encode_vectors(_FMT, self._rng.standard_normal((len(vectors), hidden), np.float32), vectors)
        bundles = np.zeros((_DISTINCT, stride), np.uint8)
        bundles[:, : layout.bytes] = vectors.reshape(_DISTINCT, layout.bytes)
        sums = np.array([_core.crc32c(bundle[: layout.bytes]) for bundle in bundles], np.uint32)
        repeats = neurons // _DISTINCT
        with path.open("wb") as file:
            for _ in range(repeats):
                file.write(bundles.data)
        every = [np.tile(sums, repeats)] * layers
        return _core.NeuronFile(str(path), _FMT, hidden, True, stride, neurons, [0] * layers, every)


@dataclass(frozen=True, slots=True)
class NeuronModels:
    """large: several times as large as the caches of this CPU; small: so small that its weights hardly take time."""

    large: NeuronModel
    small: NeuronModel


@contextmanager
def neuron_models() -> Iterator[NeuronModels]:
    """Models in the cache folder, as a store's may be read-only; removed afterwards.

    Raises StorageError if they cannot be written.
    """
    parent = cache_dir()
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = TemporaryDirectory(dir=parent, prefix=".probe-")
    except OSError as error:
        raise _unwritable(parent, error) from None
    with folder as own:
        try:
            models = _written(Path(own))
        except OSError as error:
            raise _unwritable(parent, error) from None
        yield models


def _unwritable(folder: Path, error: OSError) -> StorageError:
    return storage_error(folder, "cannot hold models to measure with (HOTSET_CACHE names another folder)", error)


def _written(folder: Path) -> NeuronModels:
    for name in ("large", "small"):
        (folder / name).mkdir()
    small = NeuronModel(folder / "small", _SMALL_LAYERS, _SMALL_NEURONS, SMALL)
    return NeuronModels(NeuronModel(folder / "large", *_large_size()), small)


def _large_size() -> tuple[int, int]:
    """Layers of the large model, and neurons of each: beyond the caches, as far as there is free memory."""
    size = min(max(_LEAST_BYTES, _CACHES * int(str(_core.cpu_info()["l3_bytes"]))), _MOST_BYTES)
    size = max(min(size, Host.measure().free // _FREE_SHARE), 1)
    layers = -(-size // LARGE.attention_bytes())
    return layers, max(size // layers // LARGE.layout.bytes // _DISTINCT, 1) * _DISTINCT


def layer_seconds(models: NeuronModels, threads: int, seconds: float) -> float:
    """What a layer of decode takes besides its weights: norms, the joins of threads, looking for neurons."""
    return models.small.decode(threads, NONE, seconds).seconds / models.small.layers


def weight_bytes_per_s(models: NeuronModels, threads: int, seconds: float, layer_s: float = 0.0) -> float:
    """Bytes/s of matrices that decode of one sequence gets through. layer_s: what each layer takes besides."""
    step = models.large.decode(threads, NONE, seconds).seconds
    return models.large.weight_bytes / max(step - models.large.layers * layer_s, 0.5 * step)


def vector_seconds(models: NeuronModels, threads: int, seconds: float) -> float:
    """What a vector of a neuron takes besides its bytes, of which those of the small model hardly have any."""
    return _vector_seconds(models.small, ALL, threads, seconds)


def neuron_bytes_per_s(models: NeuronModels, threads: int, seconds: float, vector_s: float = 0.0) -> float:
    """Bytes/s of single vectors of neurons that lie apart. vector_s: what each takes besides its bytes."""
    each = _vector_seconds(models.large, A_QUARTER, threads, seconds)
    return models.large.shape.layout.vector_bytes / max(each - vector_s, 0.5 * each)


def _vector_seconds(model: NeuronModel, least: float, threads: int, seconds: float) -> float:
    """By what the neurons chosen add to the time of a token."""
    chosen, none = (model.decode(threads, score, seconds / 2) for score in (least, NONE))
    return max(chosen.seconds - none.seconds, 0.01 * chosen.seconds) / chosen.vectors
