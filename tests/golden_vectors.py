"""Reads tests/golden/vectors, which scripts/make_vectors.py made with transformers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotset.formats.safetensors import read_header
from hotset.models import Model, TensorSpec, resolve
from hotset.reference.arithmetic import Arithmetic, Array
from hotset.reference.forward import Forward
from hotset.reference.kv import KvKind
from hotset.reference.tolerance import rounding_tolerance

FOLDER = Path(__file__).parent / "golden" / "vectors"
NAMES = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())
DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I32": "<i4"}


def read_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """Every tensor of a safetensors file; bf16 as the float32 it is the upper half of."""
    data = path.read_bytes()
    out = {}
    for name, e in read_header(path).entries.items():
        values = np.frombuffer(
            data, DTYPES[e.dtype], count=e.bytes // np.dtype(DTYPES[e.dtype]).itemsize, offset=e.offset
        )
        if e.dtype == "BF16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        out[name] = values.reshape(e.shape)
    return out


def part_of(tensor: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    """The rows of a checkpoint's tensor that are the spec's."""
    if (f := spec.fused) is None:
        return tensor
    return tensor.reshape(-1, f.period, *tensor.shape[1:])[:, f.first : f.first + f.rows].reshape(spec.shape)


@dataclass(frozen=True)
class Vector:
    """One tiny model and what transformers computes with it."""

    folder: Path

    @cached_property
    def model(self) -> Model:
        return resolve(json.loads((self.folder / "config.json").read_text()))

    @cached_property
    def expected(self) -> dict[str, NDArray[Any]]:
        return read_tensors(self.folder / "expected.safetensors")

    @cached_property
    def weights(self) -> dict[tuple[str, int], NDArray[Any]]:
        tensors = read_tensors(self.folder / "model.safetensors")
        return {(spec.role, spec.layer): part_of(tensors[spec.source_name], spec) for spec in self.model.tensors}

    @property
    def tokens(self) -> list[int]:
        return [int(t) for t in self.expected["tokens"]]

    @property
    def continuation(self) -> list[int]:
        return [int(t) for t in self.expected["continuation"]]

    @cached_property
    def logits(self) -> Array:
        """Rows after each token of the prompt, then after each of the continuation."""
        return np.concatenate([self.expected["logits"], self.expected["continuation_logits"]]).astype(np.float64)

    @lru_cache  # noqa: B019 (vectors live as long as the test run)
    def twin(self, kv: KvKind) -> Array:
        """The same rows, by the NumPy twin with that KV cache."""
        return self._run(Arithmetic(), kv)

    @lru_cache  # noqa: B019
    def tolerance(self, kv: KvKind) -> Array:
        """What float32 may add to `twin(kv)`, [rows, 1]."""
        return rounding_tolerance(lambda arithmetic: self._run(arithmetic, kv))

    def _run(self, arithmetic: Arithmetic, kv: KvKind) -> Array:
        forward = Forward(self.model.config, self.weights, arithmetic=arithmetic, kv=kv)
        cache = forward.cache()
        rows = [forward.step(cache, self.tokens)]
        rows += [forward.step(cache, [token]) for token in self.continuation]
        return np.concatenate(rows)


@lru_cache
def load(name: str) -> Vector:
    return Vector(FOLDER / name)
