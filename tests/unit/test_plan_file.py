"""Plans as files, and what the kernel says about memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hotset.engine import budget
from hotset.engine.budget import Host
from hotset.engine.cgroup import MemoryGroup, memory_group, peak_memory
from hotset.errors import FormatError, StorageError, UsageError
from hotset.planner.model_cost import Forecast
from hotset.planner.plan_file import MadeFor, Plan, read_plan, write_plan
from hotset.tools.plan_host import file_system, host_fingerprint, plan_path

MADE_FOR = MadeFor(model="m", host="h", hotset="0.1.0", memory=3 << 30, kv="f16", predict="exact")
PLAN = Plan(
    made_for=MADE_FOR, predictor="gate", hot=(10, 20), cold_slots=30, policy="clock", backend="auto", depth=64,
    threads=2, context=2048, kv_tokens=2048, prefill_chunk=512, memory={"process": 50, "hot": 100},
    forecast=Forecast(20.0, "drive", 0.04, 0.02, 0.01, 1e6, 5e8, 100.0, 0.95), notes=("a note",),
)  # fmt: skip


def test_a_plan_comes_back_as_it_was(tmp_path: Path) -> None:
    for plan in (PLAN, replace(PLAN, forecast=None, overlap=False, made_for=replace(MADE_FOR, memory=None))):
        write_plan(plan, tmp_path / "deep/plan.json")
        assert read_plan(tmp_path / "deep/plan.json") == plan
    assert PLAN.bytes == 150
    assert PLAN.as_json()["forecast"]["bound_tokens_per_s"] == pytest.approx(25)


def test_two_processes_that_write_the_same_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one writes all of it just before this one gives its own the name."""
    path, rename, others = tmp_path / "plan.json", Path.replace, [PLAN]

    def replace_later(self: Path, target: Path) -> Path:
        if others:
            with monkeypatch.context() as patch:
                patch.setattr("os.getpid", lambda: 1)
                write_plan(others.pop(), path)
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", replace_later)
    write_plan(replace(PLAN, depth=7), path)
    assert read_plan(path).depth == 7 and not others
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]


def test_a_plan_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "plan.json").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "plan.json", tmp_path / "file/plan.json"):
        with pytest.raises(StorageError, match="cannot be written"):
            write_plan(PLAN, path)
    assert {file.name for file in tmp_path.iterdir()} == {"plan.json", "file"}


@pytest.mark.parametrize(("predictor", "predict", "drafts"), [
    ("low-rank", "exact", True), ("low-rank", "auto", False), ("gate", "exact", False),
])  # fmt: skip
def test_plans_of_before_do_not_say_whether_they_draft(
    tmp_path: Path, predictor: str, predict: str, drafts: bool
) -> None:
    data = PLAN.as_json() | {"predictor": predictor}
    del data["drafts"], data["spill"]
    data["made_for"]["predict"] = predict
    (tmp_path / "plan.json").write_text(json.dumps(data))
    assert read_plan(tmp_path / "plan.json").drafts == drafts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "other"}, "made for another model"),
        ({"host": "other"}, "made for another host"),
        ({"hotset": "0.0.9"}, "made for hotset 0.1.0, not 0.0.9"),
        ({"kv": "int8"}, "KV cache of f16, not int8"),
    ],
)
def test_a_stale_plan_is_refused(change: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PLAN.check(replace(MADE_FOR, **change), "plan.json")
    PLAN.check(replace(MADE_FOR, memory=1), "plan.json")  # the budget is compared with what the plan takes


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": 99}, {"format_version": True}, {"hot": "many"}, {"hot": [1.5]}, {"hot": [-1]},
        {"cold_slots": None}, {"depth": 0}, {"context": 0}, {"predictor": "oracle"}, {"policy": "best"},
        {"memory": {"hot": "1"}}, {"overlap": "no"}, {"made_for": {}}, {"forecast": {"tokens_per_s": 1}}, {"extra": 1},
        {"spill": -1}, {"spill": True}, {"drafts": 1}, {"drafts": True}, {"predictor": "low-rank", "drafts": False},
    ],
)  # fmt: skip
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(PLAN.as_json() | change))
    with pytest.raises(FormatError, match=r"plan\.json"):
        read_plan(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '"plan"', "\x00"])
def test_a_file_that_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(FormatError):
        read_plan(path)


def test_a_missing_or_huge_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="make it with"):
        read_plan(tmp_path / "none.json")
    (tmp_path / "huge.json").write_bytes(b" " * (2 << 20))
    with pytest.raises(FormatError, match="at most"):
        read_plan(tmp_path / "huge.json")


def test_plans_are_kept_apart() -> None:
    paths = {
        plan_path(replace(MADE_FOR, **c)) for c in ({}, {"memory": 1}, {"kv": "int8"}, {"host": "x"}, {"model": "y"})
    }
    assert len(paths | {plan_path(MADE_FOR, 1)}) == 6
    assert host_fingerprint() == host_fingerprint()


def test_file_systems_have_names(tmp_path: Path) -> None:
    assert file_system(Path("/proc")) == "proc"
    assert file_system(tmp_path)


def _version_2(root: Path, limits: dict[str, str]) -> Path:
    for folder, limit in limits.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / "memory.max").write_text(limit)
        (root / folder / "memory.current").write_text("1000")
        (root / folder / "memory.peak").write_text("2000")
    (root / "proc").write_text("0::/a/b\n")
    return root / "proc"


def test_the_tightest_limit_counts(tmp_path: Path) -> None:
    proc = _version_2(tmp_path, {"a": "5000\n", "a/b": "9000\n"})
    assert memory_group(proc, tmp_path) == MemoryGroup(5000, 1000, 2000)
    assert memory_group(proc, tmp_path).fullest.limit == 5000  # type: ignore[union-attr]
    (tmp_path / "a/memory.current").write_text("4900")
    (tmp_path / "a/b/memory.current").write_text("8950")
    group = memory_group(proc, tmp_path)
    assert group is not None and (group.limit, group.free) == (5000, 100)
    assert (group.fullest.limit, group.fullest.free, group.fullest.folder) == (9000, 50, str(tmp_path / "a/b"))
    proc = _version_2(tmp_path, {"a": "max\n", "a/b": "9000\n"})
    assert memory_group(proc, tmp_path) == MemoryGroup(9000, 1000, 2000)
    proc = _version_2(tmp_path, {"a": "max\n", "a/b": "max\n"})
    assert memory_group(proc, tmp_path) is None


def test_version_1_of_cgroups(tmp_path: Path) -> None:
    folder = tmp_path / "memory/job"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text("7000")
    (folder / "memory.usage_in_bytes").write_text("10")
    (folder / "memory.max_usage_in_bytes").write_text("20")
    (tmp_path / "memory/memory.limit_in_bytes").write_text("9223372036854771712")
    (tmp_path / "proc").write_text("5:cpu,cpuacct:/job\n4:memory:/job\n0::/\n")
    assert memory_group(tmp_path / "proc", tmp_path) == MemoryGroup(7000, 10, 20)
    assert memory_group(tmp_path / "none", tmp_path) is None


def test_what_is_free_counts_files_that_nobody_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def group(files: dict[str, str], proc: str) -> MemoryGroup | None:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)
        (tmp_path / "proc").write_text(proc)
        return memory_group(tmp_path / "proc", tmp_path)

    second = "anon 600\nfile 300\nactive_file 200\ninactive_file 90\nfile_mapped 50\n"
    assert group({"memory.max": "max\n", "memory.current": "900\n", "memory.stat": second}, "0::/\n") is None
    found = group({"memory.max": "1000\n", "memory.high": "max\n"}, "0::/\n")
    assert found == MemoryGroup(1000, 900, None, 240) and found.free == 340
    found = group({"memory.high": "800\n"}, "0::/\n")  # above it the kernel slows processes down
    assert found == MemoryGroup(800, 900, None, 240) and found.free == 140
    found = group({"memory.high": "500\n"}, "0::/\n")
    assert found is not None and found.free == -160
    first = "cache 1\ntotal_cache 300\ntotal_active_file 200\ntotal_inactive_file 90\ntotal_mapped_file 40\n"
    files = {"limit_in_bytes": "1000", "usage_in_bytes": "900", "stat": first}
    found = group({f"memory/memory.{name}": text for name, text in files.items()}, "4:memory:/\n")
    assert found == MemoryGroup(1000, 900, None, 250) and found.free == 350
    monkeypatch.setattr(budget, "memory_group", lambda: found)
    assert Host.measure().free == 350  # so that files just written refuse no model


def test_peak_memory_is_at_least_what_is_held_now() -> None:
    held = b"x" * (64 << 20)
    peak, whose = peak_memory()
    assert peak > len(held) and whose in ("cgroup", "process")
