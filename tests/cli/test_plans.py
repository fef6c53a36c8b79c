"""`hotset plan` and what `run` makes of plans, as a person meets them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from probed_hosts import write_probe

from hotset.tools.resolve import packaged

Hotset = Callable[..., Any]  # a process: code, out, err
PROFILED = "stories-13m"


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


def test_two_plans_are_compared(hotset: Hotset, tmp_path: Path) -> None:
    env = {"HOTSET_CACHE": str(tmp_path)}
    files = [tmp_path / "small.json", tmp_path / "large.json"]
    assert hotset("plan", PROFILED, "--set", "hot=10", "--set", "cold_slots=50", "-o", files[0], env=env).code == 0
    write_probe(tmp_path, packaged(PROFILED))  # so that the second one has a forecast
    assert hotset("plan", PROFILED, "--memory", "1GiB", "--set", "hot=20", "-o", files[1], env=env).code == 0
    done = hotset("plan", files[0], "--diff", files[1], env=env)
    assert (done.code, done.err) == (1, "")
    lines = {line.split("  ")[0]: line for line in done.out.splitlines()}
    assert lines[""].split() == ["small.json", "large.json"]
    for text in ("50 neurons, 10 to 10 a layer", "100 neurons, 20 to 20 a layer", "other in 5 of 5 layers"):
        assert text in lines["hot"]
    assert "–" in lines["made_for.memory"] and "1.0 GiB" in lines["made_for.memory"]
    assert lines["forecast.tokens_per_s"].endswith("tokens/s") and "+100.0%" in lines["memory.hot"]
    assert "not probed" in next(line for line in done.out.splitlines() if line.startswith("only small.json notes"))

    one, two = (json.loads(file.read_text()) for file in files)
    want = {key: [one[key], two[key]] for key in ("hot", "cold_slots") if one[key] != two[key]}
    want |= {f"memory.{part}": [one["memory"][part], size] for part, size in two["memory"].items()}
    want["memory.total"] = [sum(plan["memory"].values()) for plan in (one, two)]
    want |= {f"forecast.{name}": [None, value] for name, value in two["forecast"].items()}
    found = json.loads(hotset("plan", files[0], "--diff", files[1], "--json", env=env).out)
    for name, pair in want.items():
        assert found.get(name, [pair[0]] * 2) == pair, name
    assert "predictor" not in found and "context" not in found


def test_plans_that_are_alike_and_one_that_is_made_now(hotset: Hotset, packed: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    assert hotset("plan", packed, "--memory", "1GiB", "--set", "hot=10", "-o", file).code == 0
    alike = hotset("plan", file, "--diff", file)
    assert (alike.code, alike.out) == (0, "plan.json and plan.json are alike\n")
    assert hotset("plan", file, "--diff", file, "--json").out == "{}\n"
    assert "50 neurons, 10 to 10 a layer" in hotset("plan", file).out
    made = hotset("plan", packed, "--memory", "1GiB", "--set", "hot=30", "--diff", file)
    assert made.code == 1 and made.out.split()[:2] == [packed.name, "plan.json"]
    assert "150 neurons, 30 to 30 a layer  50 neurons, 10 to 10 a layer" in made.out
    refused = hotset("plan", file, "--memory", "1GiB", "--set", "hot=3")
    assert refused.code == 2 and "leave out memory, set" in refused.err
    assert hotset("plan", file, "--diff", tmp_path / "none.json").code == 5


def test_flags_that_say_otherwise_than_the_plan_beside_them(hotset: Hotset, tmp_path: Path) -> None:
    file, env = tmp_path / "plan.json", {"HOTSET_CACHE": str(tmp_path)}
    chosen = ("--set", "predictor=low-rank", "--predict", "auto", "--loss", "2%")
    assert hotset("plan", PROFILED, *chosen, "-o", file, env=env).code == 0
    for flags, told in (
        (("--predict", "exact"), f"--predict is exact, and {file} was made with --predict auto: leave out --predict"),
        (("--loss", "0.01"), f"--loss is 0.01, and {file} was made with --loss 0.02: leave out --loss"),
    ):
        for command in (("run", PROFILED, "Once"), ("bench", PROFILED, "--prefill", "0", "--decode", "1")):
            done = hotset(*command, "--plan", file, *flags, env=env)
            assert (done.code, told in done.err, done.out) == (2, True, ""), done.err
    same = ("--predict", "auto", "--loss", "0.02", "-n", "4", "--stats")
    done = hotset("run", PROFILED, "Once", "--plan", file, *same, env=env)
    assert done.code == 0 and "predicted within a loss of 2%" in done.err

    assert hotset("plan", PROFILED, "--predict", "auto", "--set", "predictor=gate", "-o", file, env=env).code == 0
    done = hotset("run", PROFILED, "Once", "--plan", file, "--predict", "exact", "-n", "4", env=env)
    assert done.code == 0, "such a plan leaves nothing out"


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
