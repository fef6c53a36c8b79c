"""What variants are evaluated as, and which earlier figures hold for them."""

from __future__ import annotations

import hashlib
import shutil
import tracemalloc
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import hotset.llm
from hotset import LLM
from hotset.engine.budget import Host
from hotset.errors import UsageError
from hotset.formats.files import sha256
from hotset.formats.predictors import PREDICTORS_FILE
from hotset.formats.store import Store
from hotset.models import Model
from hotset.planner.plan_file import Plan
from hotset.tools import evaluate_variants
from hotset.tools import plan as planning
from hotset.tools.evaluate import EvaluateOptions, evaluate
from hotset.tools.evaluate_tasks import chosen_tasks
from hotset.tools.evaluate_variants import Variant, basis, check_variants, opened
from hotset.tools.plan import Wishes
from hotset.tools.resolve import packaged

STORIES = packaged("stories-13m")
PREDICTED = Variant("predicted", str(STORIES), predicted=True)
CHECKPOINT = Path(__file__).parent.parent / "golden/data/stories260k"
MIB = 1 << 20


@pytest.fixture(autouse=True)
def journals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOTSET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/evaluations"


@pytest.fixture
def text(tmp_path: Path) -> EvaluateOptions:
    """One window."""
    (tmp_path / "story.txt").write_text("Once upon a time there was a cat. She saw a dog and ran to the tree. " * 8)
    return EvaluateOptions(text=tmp_path / "story.txt", window=64, windows=1)


def test_weights_of_a_store_are_not_converted(text: EvaluateOptions, journals: Path) -> None:
    """All of them are named before anything runs."""
    variants = [Variant("exact", str(STORIES)), Variant("a", str(STORIES), "q8_0"), Variant("b", "Stories-13M", "q4_0")]
    with pytest.raises(UsageError, match=r"stories-13m@q8_0, Stories-13M@q4_0: .* name what the store was made from"):
        evaluate(variants, text)
    assert not journals.exists()
    check_variants([Variant("a", str(CHECKPOINT), "q8_0"), Variant("b", "owner/name", "q4_0"), variants[0]])


def test_no_model_is_in_memory_while_another_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan would be for the memory that the first one leaves."""
    loaded: set[LLM] = set()
    found: list[int] = []

    class Noted(LLM):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            loaded.add(self)

        def close(self) -> None:
            loaded.discard(self)
            super().close()

    def make_plan(store: Store, model: Model, wishes: Wishes, settings: dict[str, Any] | None = None) -> Plan:
        """The host's own guesses nothing."""
        found.append(len(loaded))
        return real(store, model, wishes, settings or {"predictor": "gate"})

    real = planning.make_plan
    monkeypatch.setattr(hotset.llm, "LLM", Noted)
    monkeypatch.setattr(planning, "make_plan", make_plan)
    with opened(PREDICTED, STORIES, None) as llm:
        assert llm.plan is not None and not llm.plan.exact and llm.context == llm.config.context
        half = len(llm.config.layers) * llm.config.ffn // 2
        assert (llm.plan.predictor, sum(llm.plan.hot), llm.plan.cold_slots) == ("low-rank", 0, half)
        assert len(loaded) == 1
    assert found == [0, 0]


def test_what_another_plan_found_is_not_taken(
    text: EvaluateOptions, journals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate([PREDICTED], text)
    assert len([*journals.iterdir()]) == 1
    evaluate([PREDICTED], text)
    assert len([*journals.iterdir()]) == 1
    small = Host(100 * MIB, 1225 * MIB // 10)
    with monkeypatch.context() as little:
        little.setattr(planning, "Host", Namespace(measure=lambda: small))
        evaluate([PREDICTED], text)
    assert len([*journals.iterdir()]) == 2


@pytest.mark.parametrize(
    "changes", [{"hot": (1,)}, {"cold_slots": 1}, {"spill": 1}, {"energy": 0.5}, {"loss": 0.5}, {"policy": "lru"}]
)
def test_figures_rest_on_what_is_predicted(changes: dict[str, Any]) -> None:
    with opened(PREDICTED, STORIES, None) as llm:
        assert llm.plan is not None
        before, exact = basis(llm, True), basis(llm, False)
        llm.plan = replace(llm.plan, threads=9)
        assert basis(llm, True) == before
        llm.plan = replace(llm.plan, **changes)
        assert basis(llm, True) != before and basis(llm, False) == exact


def test_predictors_are_read_for_predicted_variants_alone(tmp_path: Path) -> None:
    """And keys of exact ones are those of before, so that what was found holds."""
    store = shutil.copytree(STORIES, tmp_path / "store")
    digests = [hashlib.sha256((store / name).read_bytes()).digest() for name in ("manifest.json", "config.json")]
    with opened(replace(PREDICTED, model=str(store)), store, None) as llm:
        before, exact = basis(llm, True), basis(llm, False)
        assert exact == [hashlib.sha256(b"".join(digests)).hexdigest(), None, hotset.__version__, llm.isa]
        (store / PREDICTORS_FILE).write_bytes(b"others")
        assert basis(llm, True) != before
        (store / PREDICTORS_FILE).unlink()
        assert basis(llm, False) == exact


def test_predictors_are_read_once_for_all_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("arc_easy_test", "arc_challenge_test"):
        (tmp_path / f"{name}.jsonl").write_text('{"query": "Who is it?", "choices": ["a cat", "a dog"], "gold": 0}\n')
    read: list[str] = []
    monkeypatch.setattr(evaluate_variants, "sha256", lambda path: read.append(path.name) or sha256(path))  # type: ignore[func-returns-value]
    evaluate([PREDICTED], EvaluateOptions(chosen_tasks(["arc_easy", "arc_challenge"]), tmp_path))
    assert read.count(PREDICTORS_FILE) == 1


def test_a_large_file_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(32 * MIB)
    tracemalloc.start()
    try:
        found = sha256(path)
        assert tracemalloc.get_traced_memory()[1] < 2 * MIB
    finally:
        tracemalloc.stop()
    assert found == hashlib.sha256(bytes(32 * MIB)).hexdigest()
