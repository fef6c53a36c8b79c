"""bench/sparse.py: where a memory limit is set, and what its summary says of runs whose numbers are known."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from bench import cgroup
from bench.report import sparse
from bench.sparse import NO_DRAFTS, Bench, modes
from bench.sparse_saved import BUDGETS, Search, grid, least_enough
from bench.sparse_summary import PEER, WINDOW, Run, summary
from hotset.formats.predictors import PREDICTORS_FILE
from hotset.tools.result import shown


def _host(tmp_path: Path, groups: str, handed_down: dict[str, str]) -> tuple[Path, Path]:
    proc, mount = tmp_path / "cgroup", tmp_path / "mount"
    proc.write_text(groups)
    for folder, controllers in handed_down.items():
        (mount / folder).mkdir(parents=True, exist_ok=True)
        (mount / folder / "cgroup.subtree_control").write_text(controllers)
    return proc, mount


def test_version_1_limits_inside_the_own_group(tmp_path: Path) -> None:
    proc, mount = _host(tmp_path, "5:cpu,cpuacct:/a\n4:memory:/job/7\n0::/\n", {})
    assert cgroup.place(proc, mount) == (mount / "memory/job/7", cgroup.V1)


def test_version_2_limits_where_a_parent_hands_memory_down(tmp_path: Path) -> None:
    handed = {"": "cpu memory pids", "user.slice": "cpu memory", "user.slice/shell.scope": ""}
    proc, mount = _host(tmp_path, "0::/user.slice/shell.scope\n", handed)
    assert cgroup.place(proc, mount) == (mount / "user.slice", cgroup.V2)


def test_no_memory_controller_is_an_error(tmp_path: Path) -> None:
    proc, mount = _host(tmp_path, "3:cpu:/\n0::/\n", {"": "cpu io"})
    with pytest.raises(cgroup.CgroupError, match="no memory controller"):
        cgroup.place(proc, mount)


def _ours(seconds: list[float], missed: list[float]) -> Run:
    columns = {name: [0.0] * len(seconds) for name in ("active", "reads", "bytes_read", "stall_seconds")}
    decode = {"dropped": 0, "seconds": seconds, "candidates": [100.0] * len(seconds), "missed": missed, **columns}
    decode["stall_seconds"] = [s / 4 for s in seconds]
    limit = {"bound": "drive", "tokens_per_s": 10.0}
    quality = {"recall": 0.9, "over_prediction": 2.0, "divergence": 0.01, "agreement": 0.95, "tokens": 16}
    details = {
        "quality": quality,
        "decode": decode,
        "bound": limit,
        "plan": {"predictor": "gate", "forecast": {"tokens_per_s": 9.0}},
    }
    return Run("exact", 3.0, "", 10, False, decode=[len(seconds) / sum(seconds)], details=details)


def test_ratios_are_of_the_same_round() -> None:
    peers = [Run(PEER, 3.0, "", 20, False, decode=[rate]) for rate in (1.0, 2.0, 4.0)]
    ours = [_ours([1 / rate] * 4, [0.0] * 4) for rate in (3.0, 10.0, 16.0)]
    rows = {row["engine"]: row for row in summary([run for pair in zip(ours, peers, strict=True) for run in pair])}
    assert rows["exact"]["decode_ratio"] == pytest.approx(4.0)  # of 3, 5 and 4; that of the medians would be 5
    assert rows[PEER]["decode"] == 2.0


def test_latencies_misses_and_bound_of_known_tokens() -> None:
    row = summary([_ours([0.1] * 99 + [0.3], [2.0] * 99 + [50.0])])[0]
    mean = (99 * 0.1 + 0.3) / 100
    assert row["p50_s"] == 0.1
    assert row["p99_over_mean"] == pytest.approx(0.3 / mean)
    assert row["missed_share"] == pytest.approx((99 * 0.02 + 0.5) / 100)
    assert row["missed_share_p99"] == 0.5
    assert row["stall_share"] == pytest.approx(0.25)
    assert row["bound_share"] == pytest.approx(1 / mean / 10)
    assert row["decode_ratio"] is None  # without the peer


def test_ratio_to_the_window_is_of_the_same_round_and_plans_stand_beside() -> None:
    windows = [replace(_ours([1 / rate], [0.0]), engine=WINDOW) for rate in (2.0, 5.0, 1.0)]
    ours = [_ours([1 / rate], [0.0]) for rate in (8.0, 10.0, 9.0)]
    rows = {row["engine"]: row for row in summary([*windows, *ours])}
    assert rows["exact"]["window_ratio"] == pytest.approx(4.0)  # of 4, 2 and 9
    assert "window_ratio" not in rows[WINDOW]
    assert rows["exact"]["planned_over_measured"] == pytest.approx(9 * (1 / 8 + 1 / 10 + 1 / 9) / 3)


def test_every_budget_has_its_modes_and_the_first_one_more(tmp_path: Path) -> None:
    bench = Bench(tmp_path, tmp_path / "window", tmp_path / "x.gguf", (), 0, frozenset(), 1, 1.0)
    assert list(modes(bench, first=True)) == ["exact"]  # no predictors
    (tmp_path / PREDICTORS_FILE).touch()
    predicted = ["predicted, loss 1%", "predicted, loss 2%"]
    assert list(modes(bench, first=False)) == ["exact", *predicted]
    assert list(modes(bench, first=True)) == ["exact", NO_DRAFTS, *predicted, WINDOW]
    assert list(modes(replace(bench, window_store=None), first=True)) == ["exact", NO_DRAFTS, *predicted]


@pytest.mark.parametrize("least", [0.0, 1.6, 2.05, 3.2, 3.3])
def test_least_budget_that_is_enough(least: float) -> None:
    budgets, asked = grid(*BUDGETS), list[float]()

    def enough(budget: float) -> bool:
        asked.append(budget)
        return budget >= least

    assert least_enough(budgets, enough) == next((budget for budget in budgets if budget >= least), None)
    assert len(asked) <= 6  # of 33


class _Measured(Bench):
    """Speeds by a rule in place of programs: llama.cpp is killed below 4.25 GB; twice the loss is twice as fast."""

    def peer(self, budget_gb: float | None, *, copied: bool | None = None) -> Run:
        fine = budget_gb is None or budget_gb >= 4.25
        peak = int((budget_gb or 8.0) * 1e9)
        return Run(PEER, budget_gb, "", peak, not fine, decode=[10.0] if fine else [])

    def hotset(self, budget_gb: float | None, engine: str, *flags: str) -> Run:
        assert budget_gb is not None
        rate = 4 * budget_gb * float(flags[-1].rstrip("%"))
        return Run(engine, budget_gb, "", int(budget_gb * 0.9e9), False, decode=[rate])


def test_memory_saved_at_known_speeds(tmp_path: Path) -> None:
    search = Search(_Measured(tmp_path, None, tmp_path / "x.gguf", (), 0, frozenset(), 1, 1.0), rounds=2)
    wanted, memory = search.peers()
    assert (wanted, memory) == (10.0, 4_300_000_000)
    found = search.saved("1%", wanted, memory)
    assert (found.budget_gb, found.tokens_per_s, found.peak_bytes) == (2.5, 10.0, 2_250_000_000)
    assert found.saved == pytest.approx(1 - 2.25 / 4.3)
    assert search.saved("2%", wanted, memory).budget_gb == 1.6  # the least that is tried
    assert search.saved("0.5%", wanted, memory).budget_gb is None
    times = Counter((run.budget_gb, run.engine) for run in search.runs if run.engine != PEER)
    assert set(times.values()) == {2}


def test_tables_of_known_runs() -> None:
    runs = [Run(PEER, 3.0, "", 20, False, decode=[0.5]), replace(_ours([0.05] * 4, [3.0] * 4), engine="predicted, 1%")]
    runs += [replace(run, engine=WINDOW) for run in [_ours([0.2] * 4, [9.0] * 4)]]
    shown = sparse({"summary": summary(runs), "file": "bench/results/x.json"})
    assert "| 3.0 GB | predicted, 1% | 0.50 | 20.00 | 40.00 | 9.00 | 3.0%, 3.0% |" in shown
    assert "| 90.0% at 2.0x; 0.010 nats |" in shown
    assert "4.00 times LLM in a Flash's policy" in shown
    assert "Plans: 0 of 1 within 15% of what was measured; the worst, predicted, 1% in 3.0 GB, is off by 55%." in shown


def test_drafts_are_summed_over_runs() -> None:
    runs = [_ours([0.1], [0.0]) for _ in range(2)]
    runs[0].details["drafts"] = {"passes": 10, "drafted": 40, "accepted": 30}
    runs[1].details["drafts"] = {"passes": 10, "drafted": 60, "accepted": 30}
    row = summary(runs)[0]
    assert (row["draft_acceptance"], row["tokens_per_pass"]) == (0.6, 4.0)
    assert "draft_acceptance" not in summary([_ours([0.1], [0.0])])[0]


def test_a_failed_run_says_why_and_gives_no_rate() -> None:
    row = summary([Run("exact", 1.6, "", 5, True, error="killed for want of memory")])[0]
    assert row["decode"] is None
    assert row["errors"] == ["killed for want of memory"]


def test_a_command_is_shown_without_where_things_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["sparse.py", "--store", str(tmp_path / "build/a store"), "/srv/texts/x.txt", "a=/srv/m", "--loss=1%"]
    assert shown(words) == "sparse.py --store 'build/a store' x.txt a=m --loss=1%"
