"""`hotset plan` and what `run` makes of plans, as a person meets them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Hotset = Callable[..., Any]  # a process: code, out, err


def test_a_plan_is_a_table_and_json(hotset: Hotset, packed: Path) -> None:
    done = hotset("plan", packed, "--memory", "1GiB", "--set", "hot=10", "--set", "cold_slots=50")
    assert done.code == 0, done.err
    assert "gate (exact)" in done.out and "50 neurons, 10 to 10 a layer" in done.out and "50 slots, clock" in done.out
    assert "no profile" in done.err
    done = hotset("plan", packed, "--memory", "1GiB", "--json")
    plan = json.loads(done.out)
    assert sum(plan["memory"].values()) <= 1 << 30 and plan["made_for"]["memory"] == 1 << 30


def test_a_plan_is_written_and_run(hotset: Hotset, packed: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    made = hotset("plan", packed, "--memory", "1GiB", "--set", "cold_slots=50", "--set", "hot=0", "-o", file)
    assert made.code == 0 and "note:" in made.err
    done = hotset("run", packed, "Once", "--plan", file, "--stats", "-n", "12", "--ignore-eos")
    assert done.code == 0, done.err
    assert "note:" not in done.err, "whoever made the plan was told"
    for word in ("decode ", "P99", "neurons ", "missed", "drive ", "memory ", "peak"):
        assert word in done.err
    done = hotset("run", packed, "Once", "--plan", file, "--stats", "-n", "12", "--ignore-eos", "--json")
    stats = json.loads(done.out)["stats"]
    assert stats["predictor"] == "gate" and stats["neurons"]["missed"] > 0 and stats["tokens"] == 11


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("--memory", "10MiB"), 6, "the least that works is"),
        (("--set", "hot"), 2, "want KEY=VALUE"),
        (("--set", "colour=red"), 2, "no setting 'colour'"),
        (("--set", "hot=500"), 2, "a layer has 172 neurons"),
        (("--plan", "x.json"), 2, "give --set"),
        (("--predict", "perhaps"), 2, "wanted 'exact' or 'auto'"),
        (("--memory", "much"), 2, "is no size"),
    ],
)
def test_plans_that_cannot_be(hotset: Hotset, packed: Path, args: tuple[str, ...], code: int, message: str) -> None:
    done = hotset("plan", packed, *args)
    assert done.code == code and message in done.err and "Traceback" not in done.err


def test_only_packed_models_are_planned(hotset: Hotset, store: Path, tmp_path: Path) -> None:
    done = hotset("plan", store)
    assert done.code == 2 and "is not packed" in done.err and "hotset pack" in done.err
    (tmp_path / "plan.json").write_text("{}")
    done = hotset("run", store, "Hi", "--plan", tmp_path / "plan.json")
    assert done.code == 2 and "a plan is for a packed store" in done.err


def test_plan_files_that_are_none(hotset: Hotset, packed: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"format_version": 1}')
    done = hotset("run", packed, "Hi", "--plan", tmp_path / "plan.json")
    assert done.code == 4 and "make it again with `hotset plan`" in done.err
    done = hotset("run", packed, "Hi", "--plan", tmp_path / "none.json")
    assert done.code == 5 and "cannot be read" in done.err
