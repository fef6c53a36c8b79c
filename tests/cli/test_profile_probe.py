"""`hotset profile` and `hotset probe` as a person meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Hotset

from hotset.planner.rates import FORMAT_VERSION

TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not mind. " * 300


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


def test_profile(hotset: Hotset, store: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    made = hotset("profile", store, "--text", text, "--tokens", "600", "--window", "100", "--out", out)
    assert (made.code, "600 tokens are too few" in made.err) == (0, True)
    lines = made.out.splitlines()
    assert lines[0].split()[:2] == ["layer", "zeros"]
    assert [line.split()[0] for line in lines[1:4]] == ["0", "1", "model"]
    shown = hotset("profile", store, "--out", out, "--json")
    report = json.loads(shown.out)
    assert (shown.code, report["tokens"], len(report["layers"])) == (0, 600, 2)
    assert {r["policy"] for r in report["replayed"]} == {
        "lru",
        "clock",
        "lfu",
        "window",
        "static",
        "window of 5",
        "belady",
    }


def test_profile_mistakes(hotset: Hotset, store: Path, tmp_path: Path) -> None:
    none = hotset("profile", store)
    assert (none.code, "--text FILE" in none.err) == (2, True)
    absent = hotset("profile", store, "--text", tmp_path / "absent.txt")
    assert (absent.code, "absent.txt cannot be read" in absent.err) == (5, True)
    (tmp_path / "empty.txt").touch()
    assert hotset("profile", store, "--text", tmp_path / "empty.txt").code == 7
    plot = hotset("profile", store, "--plot", tmp_path / "p.bmp")
    assert (plot.code, ".svg" in plot.err) == (2, True)
    for finished in (none, absent, plot):
        assert "Traceback" not in finished.err


def test_probe(hotset: Hotset, tmp_path: Path) -> None:
    first = hotset("probe", tmp_path)
    assert first.code == 0, first.err
    assert first.out.startswith("measured     just now (quick, on ")
    assert not any(tmp_path.iterdir())
    again = hotset("probe", tmp_path, "--json")
    record = json.loads(again.out)
    assert (record["mode"], record["format_version"]) == ("quick", FORMAT_VERSION)
    assert 0 <= record["age_seconds"] < 300
    assert record["rates"]["threads"] >= 1
    assert Path(record["path"]).is_file()


def test_probe_mistakes(hotset: Hotset, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert hotset("probe", file).code == 2
    absent = hotset("probe", tmp_path / "absent")
    assert (absent.code, "there is no folder" in absent.err) == (2, True)


def test_profile_within_a_budget(hotset: Hotset, store: Path, text: Path, tmp_path: Path) -> None:
    args = ("profile", store, "--text", text, "--tokens", "300", "--out", tmp_path / "p.safetensors", "--no-replay")
    small = hotset(*args, "--memory", "20MB")
    assert (small.code, "Profiling takes" in small.err, small.out) == (6, True, "")
    assert hotset(*args, "--memory", "1GiB").code == 0
