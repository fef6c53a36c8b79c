"""The engine joins reads as its plan says, and what it computes does not depend on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hotset import _core
from hotset.errors import UsageError
from hotset.formats.store import open_store
from hotset.models import resolve
from hotset.planner.plan_file import read_plan, write_plan
from hotset.tools.plan import Wishes, make_plan
from hotset.tools.plan_given import given_plan
from hotset.tools.plan_host import made_for
from hotset.tools.resolve import packaged
from tests.sparse_models import SparseModel, make_sparse_model, run, tiny_config

TINY = float(np.finfo(np.float32).tiny)
NEURONS, TOKENS = 400, [7, 3, 90, 14, 50, 2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SparseModel:
    config = tiny_config(True, "relu", "none", 256, NEURONS)
    return make_sparse_model(tmp_path_factory.mktemp("sparse"), config, "q4_0")


def joined(active: NDArray[np.bool_], held: int, stride: int, merged: int, gap: int) -> tuple[int, int]:
    """(requests, bytes) by the book; active: [steps, layers, neurons]."""
    requests = size = 0
    for row in active.reshape(-1, NEURONS):
        first = end = None
        for n in np.flatnonzero(row):
            begin = int(n) * stride
            if first is not None and begin - end <= gap and begin + held - first <= merged:
                size += begin + held - end
            else:
                requests, size, first = requests + 1, size + held, begin
            end = begin + held
    return requests, size


@pytest.mark.parametrize(
    ("merged", "gap"), [(0, 0), (4096, 0), (8192, 1024), (16384, 4096), (131072, 32768), (9000, 0)]
)
def test_reads_are_joined_as_told(model: SparseModel, merged: int, gap: int) -> None:
    limits = [TINY] * 2
    options = _core.SparseOptions([0, 0], 0, "clock", "gate", limits, limits, merged_bytes=merged, gap_bytes=gap)
    engine = model.sparse(options, threads=1, kv_tokens=64, max_step_tokens=16)
    usual = model.sparse(
        _core.SparseOptions([0, 0], 0, "clock", "gate", limits, limits), threads=1, kv_tokens=64, max_step_tokens=16
    )
    engine.record(activations=True)
    logits = run(engine, [1], TOKENS)
    np.testing.assert_array_equal(logits, run(usual, [1], TOKENS))
    bits = engine.take_record()[0]
    active = np.unpackbits(bits, axis=2, count=NEURONS, bitorder="little").view(np.bool_)
    held = -(-2 * _core.vector_bytes("q4_0", 256) // 512) * 512  # up and down, as direct reads have them
    requests, size = joined(active, held, model.stride, merged // 4096 * 4096, gap)
    stats = engine.sparse_stats
    assert stats["missed"] == active.sum()
    # Reads are sent 16 to 32 at a time, and what lies on both sides of a cut is not joined.
    assert requests <= stats["reads"] <= requests + active.sum() // 16
    assert stats["bytes_read"] == pytest.approx(size, rel=0.05)
    if merged == 0:
        assert (stats["reads"], stats["bytes_read"]) == (requests, size) == (active.sum(), active.sum() * held)


def test_a_plan_keeps_its_sizes_and_what_they_take(tmp_path: Path) -> None:
    store = open_store(packaged("stories-13m"))
    model = resolve(store.config)
    plans = [make_plan(store, model, Wishes(memory=1 << 30), {"merged_bytes": size}) for size in ("131072", "262144")]
    assert plans[1].memory["buffers"] - plans[0].memory["buffers"] == 64 * 131072
    chosen = make_plan(store, model, Wishes(memory=1 << 30), {"merged_bytes": "262144", "gap_bytes": "0"})
    write_plan(chosen, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == chosen and (chosen.merged_bytes, chosen.gap_bytes) == (262144, 0)
    given = given_plan(tmp_path / "plan.json", store, model, made_for(store, 1 << 30, "f16", "exact"), "f16", {}, 0)
    assert given.memory["buffers"] == chosen.memory["buffers"]
    for wrong in ("5000", str(32 << 20)):
        with pytest.raises(UsageError, match=r"merged_bytes=.*multiple of 4096"):
            make_plan(store, model, Wishes(), {"merged_bytes": wrong})
    with pytest.raises(UsageError, match="gap_bytes=-1: want a whole number of at least 0"):
        make_plan(store, model, Wishes(), {"gap_bytes": "-1"})
