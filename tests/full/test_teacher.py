"""`hotset sparsify --teacher`: a distribution learned from that is not the original's. Needs PyTorch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from sparsify_runs import MODEL, command, corpus, losses

from hotset.cli.main import main

pytestmark = pytest.mark.full
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
saved = pytest.importorskip("safetensors.torch")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("text"))


def steps_of(output: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [entry for entry in entries if entry["kind"] == "train"]


def other_model(folder: Path) -> Path:
    """Of the same shape and tokens, with weights of its own."""
    shutil.copytree(MODEL, folder)
    weights = saved.load_file(MODEL / "model.safetensors")
    saved.save_file({name: w * 0.9 for name, w in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_the_original_named_as_teacher_changes_nothing(text: Path, tmp_path: Path) -> None:
    assert main(command(tmp_path / "plain", text, steps=4, distill=0.5)) == 0
    assert main(command(tmp_path / "named", text, steps=4, distill=0.5, teacher=MODEL)) == 0
    assert losses(tmp_path / "named") == losses(tmp_path / "plain")


def test_random_weights_come_nearer_to_their_teacher(text: Path, tmp_path: Path) -> None:
    given = {"distill": 0.8, "teacher": MODEL, "optimizer": "muon", "lr": 5e-3}
    assert main(command(tmp_path / "run", text, "--from-scratch", steps=15, **given)) == 0
    found = [step["distance"] for step in steps_of(tmp_path / "run")]
    assert sum(found[-5:]) / 5 < sum(found[:3]) / 3 - 0.7


def test_ffns_learn_from_the_original_whatever_the_teacher(text: Path, tmp_path: Path) -> None:
    first = {"ffn_tokens": "320", "ffn_batch": 25, "zeros": 0.8, "distill": 0.5}
    teacher = other_model(tmp_path / "teacher")
    assert main(command(tmp_path / "plain", text, steps=1, **first)) == 0
    assert main(command(tmp_path / "taught", text, steps=1, **first, teacher=teacher)) == 0
    errors = [
        [json.loads(line)["error"] for line in (tmp_path / name / "ffn.jsonl").read_text().splitlines()]
        for name in ("plain", "taught")
    ]
    assert errors[0] == errors[1]
    plain, taught = (steps_of(tmp_path / name)[0]["distance"] for name in ("plain", "taught"))
    assert plain != taught


def test_a_teacher_of_other_tokens_is_refused(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(teacher: Path, code: int) -> str:
        assert main(command(tmp_path / "run", text, steps=1, distill=0.5, teacher=teacher)) == code
        return capsys.readouterr().err.splitlines()[-1]

    (tmp_path / "empty").mkdir()
    assert "is no Hugging Face folder: it has no config.json" in said(tmp_path / "empty", 2)
    small = shutil.copytree(MODEL, tmp_path / "small")
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    assert "has 100 tokens and the model 512; want the same ones" in said(small, 3)
    swapped = shutil.copytree(MODEL, tmp_path / "swapped")
    tokenizer = json.loads((swapped / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    one, other = list(vocab)[300:302]
    vocab[one], vocab[other] = vocab[other], vocab[one]
    (swapped / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "has another tokenizer than the model; want the same one" in said(swapped, 3)
