"""The scripts that train a sparse model and its control: nothing but the activation is another. Needs PyTorch."""

from __future__ import annotations

import json
import shutil
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sparsify_runs import MODEL, ROOT, corpus

pytestmark = pytest.mark.full
pytest.importorskip("torch")
pytest.importorskip("transformers")

# What a wanted share of zeros takes, and the first stage, which the original's activation does not have.
OF_THE_ACTIVATION = {"activation", "zeros", "ffn_sequences", "steps"}


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    yield
    for name in ("make_smollm2_drelu", "make_story_model", "ship_story_model"):
        sys.modules.pop(name, None)


def record(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    found = json.loads((run / "sparsify.json").read_text())
    return found["settings"], found["as_measured"]


def tokens(settings: dict[str, Any]) -> int:
    return (settings["ffn_sequences"] + settings["steps"] * settings["batch"]) * settings["sequence"]


def assert_equal(runs: list[Path]) -> None:
    first, reached = record(runs[0])
    for run in runs[1:]:
        settings, measured = record(run)
        assert {key for key in first if settings[key] != first[key]} <= OF_THE_ACTIVATION
        assert settings["activation"] != first["activation"]
        assert tokens(settings) == tokens(first)
        assert measured["epochs"] == reached["epochs"]  # of each text, both stages
        assert measured["held_out_tokens"] == reached["held_out_tokens"]


@pytest.mark.usefixtures("scripts")
def test_smollm2_and_its_control_have_the_same_tokens_and_loss(tmp_path: Path) -> None:
    import make_smollm2_drelu as script

    (tmp_path / "text").mkdir()
    for name in script.SHARES:
        corpus(tmp_path / "text").rename(tmp_path / f"text/{name}.jsonl")
    known = Namespace(text=tmp_path / "no text", tokens="4096", ffn_tokens="2048")
    for kind in ("drelu", "swiglu", "relu"):
        script.train(tmp_path, kind, MODEL, known, ["-t", "1"])
    assert_equal([tmp_path / kind for kind in ("drelu", "swiglu", "relu")])
    settings, _ = record(tmp_path / "drelu")
    assert tokens(settings) == 6144 and settings["distill"] == 0.8


@pytest.mark.usefixtures("scripts")
def test_the_story_model_and_its_control_have_the_same_tokens_and_loss(tmp_path: Path) -> None:
    import make_story_model as script

    shutil.copytree(MODEL, tmp_path / "config")
    data = ["-d", str(corpus(tmp_path))]
    for kind in script.KINDS:
        assert script.train(tmp_path, kind, data, "12288", ["--batch", "4", "-t", "1"]) == 0
    assert_equal([tmp_path / "drelu", tmp_path / "swiglu"])
    pupil, of_pupil = record(tmp_path / "drelu")
    teacher, of_teacher = record(tmp_path / "teacher")
    assert pupil["distill"] == script.DISTILL and Path(pupil["teacher"]).name == "teacher"
    assert teacher["distill"] == 0 and of_teacher["epochs"] == of_pupil["epochs"]
