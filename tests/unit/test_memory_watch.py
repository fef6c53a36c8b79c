"""What a running engine does when its memory limit shrinks; the kernel's numbers are made up, the engine is real."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from hotset import _core
from hotset.engine import memory_watch
from hotset.engine.budget import RESERVE, resident_bytes
from hotset.engine.cgroup import MemoryGroup
from hotset.engine.memory_watch import MARGIN, MemoryLimitWarning, MemoryWatch
from tests.sparse_models import SparseModel, make_sparse_model, run, tiny_config

MIB = 1 << 20
LAYERS, NEURONS = 6, 1024


class Kernel:
    """Says what a test wants of the cgroup; time passes by a second with each look."""

    def __init__(self) -> None:
        self.group: MemoryGroup | None = MemoryGroup(limit=64 << 30, used=0, peak=None)
        self.now = 0.0

    def memory_group(self) -> MemoryGroup | None:
        return self.group

    def monotonic(self) -> float:
        self.now += 1.0
        return self.now

    def grants(self, limit: int, free: int, cached: int = 0) -> None:
        self.group = MemoryGroup(limit, limit - free + cached, None, cached)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(memory_watch, "memory_group", kernel.memory_group)
    monkeypatch.setattr(memory_watch.time, "monotonic", kernel.monotonic)
    return kernel


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparseModel]:
    config = tiny_config(True, "relu", "none", hidden=2048, ffn=NEURONS, layers=LAYERS)
    yield make_sparse_model(tmp_path_factory.mktemp("model"), config, "q8_0")


@pytest.fixture
def full(model: SparseModel) -> _core.Engine:
    """All of its 38 MiB of cold slots hold neurons."""
    engine = model.sparse(_core.SparseOptions([0] * LAYERS, LAYERS * NEURONS))
    run(engine, [1, 2, 3], [4])
    assert engine.sparse_stats["cold_used"] == LAYERS * NEURONS
    return engine


def silent(watch: Callable[[], None]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch()


def cold_bytes(engine: _core.Engine) -> int:
    return int(engine.sparse_stats["cold_slots"] * engine.sparse_stats["slot_bytes"])


def test_a_dense_model_is_told_once(kernel: Kernel) -> None:
    kernel.grants(limit=10 << 30, free=0)
    watch = MemoryWatch(4 << 30)
    silent(watch)
    kernel.grants(limit=2 << 30, free=2 << 30)
    with pytest.warns(MemoryLimitWarning, match="fallen from 10240 to 2048 MiB; the model was loaded for 4096 MiB"):
        watch()
    silent(watch)


def test_a_plan_that_fills_its_limit_gives_nothing_up(kernel: Kernel, full: _core.Engine) -> None:
    planned = resident_bytes() + RESERVE
    watch = MemoryWatch(planned, full)
    kernel.grants(limit=planned, free=RESERVE // 2)  # page tables and the like took the other half
    silent(watch)
    kernel.grants(limit=planned, free=0, cached=RESERVE // 2)  # so much of what is used are files
    kernel.group = MemoryGroup(planned, planned, None, RESERVE // 2)
    silent(watch)
    kernel.group = None
    silent(watch)
    assert full.sparse_stats["cold_slots"] == LAYERS * NEURONS


def test_a_limit_that_falls_is_met_with_slots(kernel: Kernel, full: _core.Engine) -> None:
    planned = resident_bytes() + RESERVE
    kernel.grants(limit=4 << 30, free=1 << 30)
    watch = MemoryWatch(planned, full)
    silent(watch)
    kernel.grants(limit=2 << 30, free=MARGIN - 3 * MIB)
    held = cold_bytes(full)
    with pytest.warns(MemoryLimitWarning, match="from 4096 to 2048 MiB; 19 MiB of the memory .* 19 MiB of them back"):
        watch()
    assert 3 * MIB + MARGIN <= held - cold_bytes(full) < 3 * MIB + MARGIN + MIB
    kernel.grants(limit=2 << 30, free=2 * MARGIN)  # as it would be now
    silent(watch)
    assert held - cold_bytes(full) < 3 * MIB + MARGIN + MIB


def test_what_cannot_be_met_with_slots_is_told(kernel: Kernel, full: _core.Engine) -> None:
    kernel.grants(limit=4 << 30, free=1 << 30)
    watch = MemoryWatch(resident_bytes() + RESERVE, full)
    kernel.grants(limit=1 << 30, free=-100 * MIB)
    with pytest.warns(MemoryLimitWarning) as told:
        watch()
    assert len(told) == 2
    assert "given up" in str(told[0].message) and "load it again with a smaller budget" in str(told[1].message)
    silent(watch)


def test_others_that_take_the_memory_are_named(kernel: Kernel, full: _core.Engine) -> None:
    kernel.grants(limit=4 << 30, free=1 << 30)
    watch = MemoryWatch(resident_bytes() + RESERVE, full)
    kernel.grants(limit=4 << 30, free=10 * MIB)
    with pytest.warns(MemoryLimitWarning, match="of the memory limit of 4096 MiB only 10 MiB are free; "):
        watch()


def test_a_looser_limit_that_others_fill(kernel: Kernel, full: _core.Engine) -> None:
    own, shared = (MemoryGroup(limit << 30, 1 << 30, None, folder=str(limit)) for limit in (6, 8))
    kernel.group = replace(own, others=(shared,))
    watch = MemoryWatch(resident_bytes() + RESERVE, full)
    silent(watch)
    kernel.group = replace(own, others=(replace(shared, used=(8 << 30) - 10 * MIB),))
    with pytest.warns(MemoryLimitWarning, match="of the memory limit of 8192 MiB only 10 MiB are free; "):
        watch()
    dense = MemoryWatch(5 << 30)  # all of it taken, so the limit alone counts
    silent(dense)


def test_slots_never_used_count_as_what_is_yet_to_be_taken(kernel: Kernel, model: SparseModel) -> None:
    engine = model.sparse(_core.SparseOptions([0] * LAYERS, LAYERS * NEURONS))
    assert engine.sparse_stats["cold_used"] == 0
    kernel.group = None
    watch = MemoryWatch(0, engine)
    held = cold_bytes(engine)
    kernel.grants(limit=1 << 30, free=MARGIN + held)
    silent(watch)
    kernel.grants(limit=1 << 30, free=MARGIN + held - MIB)
    with pytest.warns(MemoryLimitWarning, match=r"a memory limit of 1024 MiB was set; .* 0 MiB of them back"):
        watch()
    assert MIB + MARGIN <= held - cold_bytes(engine) < 2 * MIB + MARGIN


def test_between_looks_nothing_is_read(kernel: Kernel, full: _core.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = MemoryWatch(resident_bytes() + RESERVE, full)
    silent(watch)
    monkeypatch.setattr(memory_watch.time, "monotonic", lambda: kernel.now + 0.1)
    kernel.grants(limit=1 << 30, free=0)
    silent(watch)
    assert full.sparse_stats["cold_slots"] == LAYERS * NEURONS
