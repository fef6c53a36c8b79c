"""What predictors are measured on: enough of it, whatever was asked for, and in steps that the engine takes."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import hotset
from hotset import _core
from hotset.cli.main import main
from hotset.formats.predictors import read_predictors
from hotset.formats.store import open_store
from hotset.models import resolve
from hotset.tokenizer import Tokenizer
from hotset.tools import train_predictor_drafts
from hotset.tools.profile_text import Window, windows
from hotset.tools.resolve import packaged
from hotset.tools.train_predictor_calibrate import STEP, Bench
from hotset.tools.train_predictor_drafts import write_answers

TEXT = Path(hotset.__file__).parents[2] / "LICENSE"


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    store = open_store(packaged("stories-13m"))
    yield Bench(store, resolve(store.config), 0)


def held_out(bench: Bench, size: int, tokens: int) -> list[Window]:
    return windows([TEXT], Tokenizer.load(bench.store.path), size, tokens)


@pytest.mark.parametrize(("tokens", "taken"), [(1, 1), (20, 2), (100, 12), (300, 24)])
def test_every_passage_has_tokens_to_score(bench: Bench, tokens: int, taken: int) -> None:
    """Also where there are more windows than tokens to measure on; some of them, spread over all."""
    parts = held_out(bench, 40, 920)
    assert len(parts) == 24
    found = bench.passages(bench.exact(), parts, tokens)
    assert len(found) == taken and all(len(p.exact) == len(p.tokens) - p.prompt >= 2 for p in found)
    assert sum(len(p.exact) for p in found) <= max(tokens, 2)
    places = [next(i for i, w in enumerate(parts) if np.array_equal(w[: len(p.tokens)], p.tokens)) for p in found]
    assert places == [i * 24 // taken for i in range(taken)]
    everything = _core.SparseOptions([bench.info.ffn] * bench.info.layers, 0)
    quality = bench.quality(everything, 0.0, found)
    assert quality.kl == 0 and quality.perplexity == quality.exact_perplexity > 1 and quality.change_error == 0
    assert math.isfinite(quality.surely)


@pytest.mark.parametrize("drafts", [1088, 2000])  # from 17 answers on, of 32 tokens given each
def test_any_number_of_answers_is_written(bench: Bench, drafts: int) -> None:
    parts = held_out(bench, 256, 1500)
    answers = write_answers(bench, parts, drafts, [0])
    assert len(answers.texts) == drafts // 64 and answers.prompt == 32
    assert len(answers.texts) * answers.prompt > STEP
    assert {len(text) for text in answers.texts} == {160}
    few = write_answers(bench, parts, 64, [0])
    np.testing.assert_array_equal(few.texts[0], answers.texts[0])


def test_drafts_alone_are_measured_on_as_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_predictor_drafts, "_ENERGIES", 1)
    store = shutil.copytree(packaged("stories-13m"), tmp_path / "store")
    arguments = ["train-predictor", str(store), "--text", str(TEXT), "--drafts-only", "-n", "2600", "--measure", "272"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["drafts"]
    assert {d["tokens"] for d in found} == {17 * 64}
    trained = read_predictors(store, open_store(store).neurons)  # type: ignore[arg-type]
    assert trained is not None and np.array(trained.drafts) == pytest.approx(
        np.array([(d["energy"], d["held"]) for d in found])
    )
