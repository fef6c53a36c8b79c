"""How fast the engine computes neurons that are in memory: decode of a model of one layer, all of it hot."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from hotset import _core
from hotset.config import LayerConfig, ModelConfig
from hotset.quant import NeuronLayout
from hotset.tools.probe_drive import MIB

HIDDEN, HEAD_DIM, VOCAB = 4096, 64, 16
_LAYOUT = NeuronLayout("q4_0", HIDDEN, gated=True)
_DISTINCT = 64  # bundles that the file repeats: what is computed does not depend on their values
_LEAST_BYTES = 64 * MIB
_MOST_BYTES = 512 * MIB
_MOST_STEPS = 500  # the KV cache holds 512
_CACHES = 3  # the neurons are so many times as large as the L3 cache, so that they come from memory


class NeuronModel:
    """A model whose decode is nearly only its FFN: SiLU, so that all three vectors of every neuron are used."""

    def __init__(self, folder: Path, neurons: int) -> None:
        self._rng = np.random.default_rng(0)
        self._path = folder / "resident"
        self._parts: list[bytes] = []
        self._bytes = 0
        self._config = ModelConfig(
            hidden=HIDDEN, vocab=VOCAB, ffn=neurons, heads=1, kv_heads=1, head_dim=HEAD_DIM, context=512,
            attention_scale=HEAD_DIM**-0.5, layers=(LayerConfig(),),
        )  # fmt: skip
        self._tensors = [self._tensor("embed", -1, (VOCAB, HIDDEN)), self._tensor("final_norm", -1, (HIDDEN,))]
        self._tensors += [self._tensor(role, 0, (HEAD_DIM, HIDDEN)) for role in ("q", "k", "v")]
        self._tensors += [self._tensor("o", 0, (HIDDEN, HEAD_DIM))]
        self._tensors += [self._tensor(role, 0, (HIDDEN,)) for role in ("attn_norm", "ffn_norm")]
        self._path.write_bytes(b"".join(self._parts))
        self._neurons = self._write_bundles(folder / "neurons", neurons)
        self.bytes_per_token = neurons * _LAYOUT.bytes

    def engine(self, threads: int) -> _core.Engine:
        sparse = _core.SparseOptions([self._config.ffn], 0)
        native = self._config.to_native()
        return _core.Engine(native, self._tensors, threads=threads, kv_tokens=512, neurons=self._neurons, sparse=sparse)

    def _tensor(self, role: str, layer: int, shape: tuple[int, ...]) -> _core.TensorRef:
        rows, cols = (*shape, 0)[:2]
        values = self._rng.standard_normal(shape, np.float32) * np.float32(HIDDEN**-0.5)
        data = values.view(np.uint8).ravel()
        if cols:
            data = np.empty(_core.packed_bytes("f32", rows, cols), np.uint8)
            _core.encode("f32", values, data)
        offset = self._bytes
        self._parts.append(data.tobytes() + bytes(-data.nbytes % 4096))
        self._bytes += len(self._parts[-1])
        return _core.TensorRef(role, layer, str(self._path), offset, data.nbytes, "f32", rows, cols)

    def _write_bundles(self, path: Path, neurons: int) -> _core.NeuronFile:
        stride = -(-_LAYOUT.bytes // 4096) * 4096
        vectors = self._encoded(_DISTINCT * len(_LAYOUT.roles))
        bundles = np.zeros((_DISTINCT, stride), np.uint8)
        bundles[:, : _LAYOUT.bytes] = vectors.reshape(_DISTINCT, _LAYOUT.bytes)
        sums = np.array([_core.crc32c(bundle[: _LAYOUT.bytes]) for bundle in bundles], np.uint32)
        repeats = neurons // _DISTINCT
        with path.open("wb") as file:
            for _ in range(repeats):
                file.write(bundles.data)
        return _core.NeuronFile(str(path), _LAYOUT.fmt, HIDDEN, True, stride, neurons, [0], [np.tile(sums, repeats)])

    def _encoded(self, count: int) -> NDArray[np.uint8]:
        out = np.empty((count, _LAYOUT.vector_bytes), np.uint8)
        _core.encode_vectors(_LAYOUT.fmt, self._rng.standard_normal((count, HIDDEN), np.float32), out)
        return out


@contextmanager
def neuron_model(folder: Path) -> Iterator[NeuronModel]:
    """A model in a folder of its own, removed afterwards; larger than the caches of this CPU."""
    caches = _CACHES * int(str(_core.cpu_info()["l3_bytes"]))
    neurons = min(max(_LEAST_BYTES, caches), _MOST_BYTES) // _LAYOUT.bytes // _DISTINCT * _DISTINCT
    with TemporaryDirectory(dir=folder, prefix=".probe-") as own:
        yield NeuronModel(Path(own), neurons)


def neuron_bytes_per_s(model: NeuronModel, threads: int, seconds: float) -> float:
    """Bytes/s of bundles, padding left out, that decode of one sequence gets through."""
    engine = model.engine(threads)
    seqs, one = np.array([engine.sequence_new()], np.int32), np.ones(1, np.int32)

    def step() -> None:
        engine.step(seqs, one, one, np.zeros(1, np.uint8))

    step()
    start, steps = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds and steps < _MOST_STEPS:
        step()
        steps += 1
    return steps * model.bytes_per_token / elapsed
