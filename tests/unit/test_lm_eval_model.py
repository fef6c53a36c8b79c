"""The model class for lm-evaluation-harness, over stand-ins for what it uses of the harness.

tests/full/test_lm_eval.py has the harness itself.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from hotset import LLM
from hotset.engine.likelihood import Continuation, likelihoods
from hotset.errors import InputError, UsageError
from hotset.tools.evaluate_variants import Variant, opened
from hotset.tools.resolve import packaged

STORIES = packaged("stories-13m")
TEXT = "Once upon a time there was a cat. She saw a big dog and ran to the tree. The dog was sad and went home."


def rolling(tokens: list[int], prefix: int, most: int, context_len: int) -> list[tuple[list[int], list[int]]]:
    """One window; texts here have no more."""
    return [([prefix], tokens)]


@pytest.fixture(scope="module")
def model_class() -> Iterator[Any]:
    stubs: dict[str, dict[str, Any]] = {
        "lm_eval": {},
        "lm_eval.models": {},
        "lm_eval.api": {},
        "lm_eval.api.model": {"TemplateLM": type("TemplateLM", (), {})},
        "lm_eval.api.registry": {"register_model": lambda name: lambda kind: kind},
        "lm_eval.utils": {"get_rolling_token_windows": rolling, "make_disjoint_window": lambda window: window},
    }
    name = "hotset.tools.lm_eval_model"
    with pytest.MonkeyPatch.context() as patch:
        for stub, contents in stubs.items():
            module = ModuleType(stub)
            vars(module).update(contents)
            patch.setitem(sys.modules, stub, module)
        sys.modules.pop(name, None)
        yield importlib.import_module(name).HotsetLM
        del sys.modules[name]  # the next one to import it wants the harness itself


@pytest.fixture(scope="module")
def predicted() -> Iterator[LLM]:
    with opened(Variant("predicted", str(STORIES), predicted=True), STORIES, None) as llm:
        yield llm


def value(llm: LLM, tokens: list[int], single: bool) -> float:
    ((found,),) = likelihoods(llm.engine, [[Continuation(tokens, 1)]], single=single)
    return found.value


def test_predictors_choose_for_each_scored_token(model_class: Any, predicted: LLM) -> None:
    """As in generating. Steps of many tokens compute every neuron, so they would measure the exact model."""
    model = model_class(llm=predicted)
    tokens = [model.eot_token_id, *model.tok_encode(TEXT, add_special_tokens=False)]
    assert len(tokens) > 20
    one_by_one, together = value(predicted, tokens, True), value(predicted, tokens, False)
    assert one_by_one != pytest.approx(together, rel=1e-6)
    ((scored, _),) = model._loglikelihood_tokens([(None, tokens[:1], tokens[1:])])
    (whole,) = model.loglikelihood_rolling([SimpleNamespace(args=(TEXT,))])
    # What is in memory differs from run to run, and with it a little of what is predicted.
    assert abs(scored - one_by_one) < 0.2 * abs(scored - together)
    assert abs(whole - one_by_one) < 0.2 * abs(whole - together)


def test_exact_models_are_scored_in_large_steps(model_class: Any, stories: LLM) -> None:
    steps: list[int] = []

    class Counted:
        def __getattr__(self, name: str) -> Any:
            return getattr(core, name)

        def step(self, *args: Any) -> None:
            steps.append(len(args[2]))
            core.step(*args)

    core = stories.engine.core
    model = model_class(llm=stories)
    tokens = model.tok_encode(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stories.engine, "core", Counted())
        model._loglikelihood_tokens([(None, tokens[:1], tokens[1:])])
    assert steps == [len(tokens) - 1]


def test_options_are_those_of_llm(model_class: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them: one that is left out would evaluate something else than was asked for."""
    taken: dict[str, Any] = {}
    monkeypatch.setattr(
        sys.modules[model_class.__module__], "LLM", lambda path, **options: taken.update(options, path=path)
    )
    of_the_harness = {"batch_size": 8, "max_batch_size": 64, "device": "cpu"}
    wanted = {"predict": "auto", "loss": 0.01, "draft": False, "parallel": 2, "reuse": False, "memory": "4GiB"}
    model_class(path="store", **wanted, **of_the_harness, ignore_keys="rope_scaling")
    assert taken == {**wanted, "path": "store", "ignore_keys": ("rope_scaling",)}


def test_what_is_no_option_is_refused(model_class: Any, stories_store: Path, stories: LLM) -> None:
    with pytest.raises(TypeError, match="predicted"):
        model_class(path=stories_store, predicted="auto")
    for wrong in ({}, {"path": stories_store, "llm": stories}, {"llm": stories, "predict": "auto"}):
        with pytest.raises(UsageError, match="want either path=STORE"):
            model_class(**wrong)
    assert model_class(llm=stories, batch_size=4).llm is stories


def test_prompts_leave_room_for_the_answer(model_class: Any, stories: LLM) -> None:
    model = model_class(llm=stories)

    def answer(prompt: str, most: int) -> str:
        wishes = {"until": "\n\n", "max_gen_toks": most}
        (found,) = model.generate_until([SimpleNamespace(args=(prompt, wishes))])
        return str(found)

    assert answer("Once upon a time", 5)
    assert answer("Once upon a time " * 200, stories.context - 40)  # cut at the left
    for most in (stories.context, stories.context + 30):
        with pytest.raises(InputError, match=rf"writes {most} tokens .*; the context holds {stories.context}"):
            answer("Once upon a time", most)
