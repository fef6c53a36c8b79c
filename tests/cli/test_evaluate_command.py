"""`hotset evaluate` as text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Hotset


def test_evaluate(hotset: Hotset, store: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("the sun shines on the sea, and the sea is green. " * 20)
    docs = [{"query": f"Is {i} here?", "choices": ["yes", "no"], "gold": i % 2} for i in range(4)]
    (tmp_path / "openbookqa_test.jsonl").write_text("\n".join(map(json.dumps, docs)))
    arguments = ("evaluate", f"a={store}", f"b={store}", "--tasks", "openbookqa", "--data", tmp_path)
    text = ("--text", tmp_path / "text", "--window", "32", "--windows", "3")
    done = hotset(*arguments, *text, "--markdown", "--out", tmp_path / "result.json")
    assert done.code == 0, done.err
    rows = [line.strip("| ").split(" | ") for line in done.out.splitlines()]
    assert [row[0] for row in rows[2:]] == ["zeros", "perplexity", "its change", "openbookqa acc_norm", "mean"]
    assert rows[4] == ["its change", "", "+0.0% ± 0.0%"]
    written = json.loads((tmp_path / "result.json").read_text())
    assert [v["name"] for v in written["variants"]] == ["a", "b"]
    shown = hotset(*arguments).out
    assert "openbookqa acc_norm" in shown
    found = json.loads(hotset(*arguments, "--limit", "2", "--json").out)
    assert found["variants"][0]["tasks"]["openbookqa"]["acc"]["items"] == 2


def test_evaluate_plots(hotset: Hotset, store: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "text").write_text("the sun shines on the sea, and the sea is green. " * 20)
    given = ("--text", tmp_path / "text", "--window", "32", "--windows", "2", "--plot", tmp_path / "plot.svg")
    done = hotset("evaluate", f"a={store}", *given)
    assert done.code == 0, done.err
    assert (tmp_path / "plot.svg").read_text().startswith("<?xml")


def test_evaluate_refuses(hotset: Hotset, store: Path, tmp_path: Path) -> None:
    for arguments, code, message in (
        ((), 2, "nothing to evaluate"),
        (("--tasks", "arc_eas"), 2, "did you mean arc_easy"),
        (("--tasks", "piqa", "--data", tmp_path), 5, "no data of piqa: wanted piqa_val.jsonl"),
    ):
        done = hotset("evaluate", store, *arguments)
        assert (done.code, message in done.err) == (code, True), done.err
