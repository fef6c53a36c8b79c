"""Runs the native engine on a store token by token, and holds its logits against twin and transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pytest
from golden_vectors import Vector
from numpy.typing import NDArray

from hotset import _core
from hotset.config import ModelConfig
from hotset.formats.store import Store
from hotset.models import resolve
from hotset.reference.kv import KvKind

ISAS = [isa.name for isa in _core.isa_list() if isa.compiled and isa.supported]
Logits = NDArray[np.float32]
Rows = NDArray[np.float64]


def engine(
    store: Store, isa: str, kv: KvKind = "f16", threads: int = 2, config: ModelConfig | None = None
) -> _core.Engine:
    """An engine on a store; `config` replaces what its config.json says."""
    model = resolve(store.config)
    tensors = [
        _core.TensorRef(spec.role, spec.layer, str(e.path), e.offset, e.bytes, e.fmt, e.rows, e.cols)
        for spec in model.tensors
        for e in [store.entries[spec.name]]
    ]
    return _core.Engine(
        (config or model.config).to_native(), tensors, isa=isa, kv_type=kv, kv_tokens=4096, threads=threads, pin=False
    )


def step(core: _core.Engine, parts: Sequence[tuple[int, Sequence[int]]], rope_length: int = 0) -> list[Logits]:
    """One step that appends tokens to each of some sequences; the logits after every token, by sequence."""
    counts = [len(tokens) for _, tokens in parts]
    core.step(
        np.array([seq for seq, _ in parts], np.int32),
        np.array(counts, np.int32),
        np.concatenate([tokens for _, tokens in parts]).astype(np.int32),
        np.full(len(parts), 2, np.uint8),
        np.full(len(parts), rope_length, np.int64) if rope_length else None,
    )
    ends = np.cumsum([0, *counts])
    return [core.logits()[a:b].copy() for a, b in pairwise(ends)]


def prompt(core: _core.Engine, tokens: Sequence[int], chunk: int) -> tuple[int, Logits]:
    """A new sequence fed `chunk` tokens at a time, and all its logits."""
    seq = core.sequence_new()
    cuts = [tokens[i : i + chunk] for i in range(0, len(tokens), chunk)]
    return seq, np.concatenate([step(core, [(seq, cut)], rope_length=len(tokens))[0] for cut in cuts])


def greedy(core: _core.Engine, seq: int, last: Logits, count: int) -> Iterator[tuple[int, Logits]]:
    for _ in range(count):
        token = int(np.argmax(last))
        last = step(core, [(seq, [token])])[0][0]
        yield token, last


def assert_engine_close(vector: Vector, rows: Logits, kv: KvKind) -> None:
    """Against the twin with the same KV cache, and against transformers with what that cache costs on top.

    Rounding in float32 tips a value that is kept in few bits over to the next code, here and there and rarely. So every
    logit must lie within what that may do, and most rows must lie far closer to the twin than the twin to exactness.
    """
    n = len(rows)
    twin, exact = vector.twin(kv)[:n], vector.twin("exact")[:n]
    clean, tipped = vector.tolerance("exact")[:n], vector.tolerance(kv)[:n].max()
    assert_close(rows, twin, np.full_like(clean, tipped))
    assert typical(rows - twin) <= 0.3 * typical(twin - exact) + np.median(clean)
    assert_close(rows, vector.logits[:n], clean + tipped + np.abs(twin - exact))


def typical(error: Rows) -> float:
    """Median over rows of their root mean square."""
    return float(np.median(np.sqrt(np.mean(error**2, axis=1))))


def assert_close(got: NDArray[np.floating], want: NDArray[np.floating], tolerance: NDArray[np.floating]) -> None:
    assert got.shape == want.shape
    error = np.abs(got.astype(np.float64) - want)
    if np.all(error <= tolerance):  # a NaN fails
        return
    row, token = np.unravel_index(np.argmax(np.nan_to_num(error / tolerance, nan=np.inf)), error.shape)
    allowed = np.broadcast_to(tolerance, error.shape)[row, token]
    pytest.fail(f"row {row}, token {token}: got {got[row, token]}, wanted {want[row, token]} +- {allowed:.2e}")
