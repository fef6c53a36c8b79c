"""What a control group grants, where the machine itself has more: measurements keep to it, and loading is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hotset import LLM, _core
from hotset.engine import budget
from hotset.engine.budget import RESERVE, Host
from hotset.engine.cgroup import MemoryGroup
from hotset.errors import MemoryBudgetError
from hotset.formats.store import Store, open_store
from hotset.models import resolve
from hotset.planner.plan_file import write_plan
from hotset.tools import doctor, probe_drive, probe_neurons
from hotset.tools.plan import Wishes, make_plan, plan_for
from hotset.tools.resolve import packaged

MIB = 1 << 20
BUDGET = 4 << 30


@pytest.fixture
def grants(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """(limit, free): of a group whose machine has more."""

    def grant(limit: int, free: int) -> None:
        group = MemoryGroup(limit, limit - free, None)
        monkeypatch.setattr(budget, "memory_group", lambda: group)
        monkeypatch.setattr(doctor, "memory_group", lambda: group)

    return grant


def test_what_is_free_is_that_of_the_fullest_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 GiB of which others hold 6.5, around 6 GiB of which this process has 1."""
    around = MemoryGroup(800 * MIB, 750 * MIB, None)
    own = MemoryGroup(600 * MIB, 100 * MIB, None, others=(around,))
    monkeypatch.setattr(budget, "memory_group", lambda: own)
    assert (Host.measure().free, Host.measure().limit) == (50 * MIB, 600 * MIB)


@pytest.mark.parametrize(("free", "megabytes"), [(1 << 62, 1024), (400 * MIB, 100), (2 * MIB, 1)])
def test_the_bandwidth_test_fits_into_the_group(
    grants: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch, free: int, megabytes: int
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(budget, "_meminfo", lambda _: 1 << 40)
    monkeypatch.setattr(_core, "memory_bandwidth", lambda _, size, __: asked.append(size) or 1e9)
    grants(max(free, 512 * MIB), free)
    doctor.memory_rates([1, 2])
    assert asked == [megabytes] * 2


def test_a_limit_that_slows_down_is_told(grants: Callable[[int, int], None]) -> None:
    """memory_group() knows of memory.high, too."""
    grants(300 * MIB, 100 * MIB)
    assert doctor.memory().limit_bytes == 300 * MIB


def test_the_models_of_a_probe_fit_into_the_group(
    grants: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(_core, "drive_read", lambda *args: asked.append(args[-1]) or {"reads_per_s": 1.0})
    shape = probe_neurons.LARGE
    for free in (400 * MIB, 20 * MIB):
        grants(512 * MIB, free)
        layers, neurons = probe_neurons._large_size()
        whole = free // 4 + shape.attention_bytes()  # layers are not cut
        assert layers * shape.attention_bytes() <= whole and layers * neurons * shape.layout.bytes <= whole
        probe_drive.placed(tmp_path, "pread", 4096, 64, 0.1)
    assert asked == [100 * MIB, 5 * MIB]


@pytest.fixture(scope="module")
def story() -> Store:
    return open_store(packaged("stories-13m"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Host:
    """A machine on which the process and its reserve leave 20 MiB."""
    host = Host(base=100 * MIB, free=1 << 34, limit=100 * MIB + RESERVE + 20 * MIB)
    monkeypatch.setattr(Host, "measure", lambda: host)
    monkeypatch.setenv("HOTSET_CACHE", str(tmp_path / "cache"))
    return host


def test_a_plan_beyond_the_limit_is_made_and_not_run(story: Store, small: Host, tmp_path: Path) -> None:
    model, wishes = resolve(story.config), Wishes(memory=BUDGET, context=256)
    plan = make_plan(story, model, wishes)
    assert small.limit < plan.bytes < BUDGET
    write_plan(plan, file := tmp_path / "plan.json")
    refused = r"take \d+MiB within the budget of 4096MiB, and this machine or its cgroup grants 184MiB in all: give a"
    for wanted, given in ((wishes, None), (wishes, file), (Wishes(), file)):
        with pytest.raises(MemoryBudgetError, match=refused):
            plan_for(story, model, wanted, file=given)
    with pytest.raises(MemoryBudgetError, match=refused), LLM(story.path, memory=BUDGET, context=256):
        pass
    assert not (tmp_path / "cache/plans").exists()


def test_a_plan_for_what_is_free_is_not_held_against_the_process(
    story: Store, small: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, wishes = resolve(story.config), Wishes(context=256)
    plan = make_plan(story, model, wishes)
    write_plan(plan, file := tmp_path / "plan.json")
    taken = plan.bytes - plan.memory["process"]
    for limit, fits in ((taken, True), (taken - 4095, True), (taken - (1 << 17), False)):  # limits are whole pages
        host = replace(small, limit=limit)
        monkeypatch.setattr(Host, "measure", lambda host=host: host)
        if fits:
            assert plan_for(story, model, Wishes(), file=file) == plan
        else:
            with pytest.raises(MemoryBudgetError, match=r"would take \d+MiB, and this machine"):
                plan_for(story, model, Wishes(), file=file)
