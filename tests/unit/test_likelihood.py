"""Log-likelihoods in batches against one text at a time, on the twin of the core and its pages."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from hotset.engine.engine import Engine
from hotset.engine.likelihood import Continuation, likelihoods
from hotset.errors import InputError
from tests.engine_twin import VOCAB, CoreTwin, log_softmax, logits_after


def engine(pages: int = 40, step: int = 32, core: CoreTwin | None = None) -> tuple[Engine, CoreTwin]:
    core = core or CoreTwin(pages, step)
    made = Engine(
        core,
        vocab=VOCAB,
        context=min(pages * 64, 512),
        max_step_tokens=step,
        draw_factory=lambda *_: lambda row: (0, 0.0),
        make_decoder=lambda: None,  # type: ignore[arg-type, return-value]
        token_text=str,
    )
    return made, core


def alone(c: Continuation) -> tuple[float, bool]:
    rows = [logits_after(c.tokens[:i]) for i in range(c.first, len(c.tokens))]
    scored = c.tokens[c.first :]
    value = sum(log_softmax(row)[t] for row, t in zip(rows, scored, strict=True))
    return value, all(int(row.argmax()) == t for row, t in zip(rows, scored, strict=True))


def texts(rng: np.random.Generator) -> list[list[Continuation]]:
    groups = []
    for _ in range(12):
        context = rng.integers(0, VOCAB, rng.integers(1, 150)).tolist()
        endings = [rng.integers(0, VOCAB, rng.integers(1, 30)).tolist() for _ in range(rng.integers(1, 5))]
        groups.append([Continuation(context + ending, len(context)) for ending in endings])
    same = rng.integers(0, VOCAB, 70).tolist()  # beginnings that differ before what is scored
    groups.append([Continuation([*same[:65], i, *same[66:]], 68) for i in (1, 2)])
    groups.append([Continuation([3, int(logits_after([3]).argmax())], 1)])
    return groups


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("pages", [40, 12])
def test_each_as_if_it_were_alone(pages: int, single: bool) -> None:
    groups = texts(np.random.default_rng(5))
    made, core = engine(pages)
    seen: list[int] = []
    found = list(likelihoods(made, groups, single=single, progress=seen.append))
    assert seen[-1] == len(groups)
    for group, some in zip(groups, found, strict=True):
        for c, one in zip(group, some, strict=True):
            value, greedy = alone(c)
            assert one.value == pytest.approx(value, abs=1e-4)
            assert one.greedy == greedy
    assert found[-1][0].greedy
    assert core.kv_free_tokens() == pages * 64  # every sequence was given back


def test_a_common_beginning_is_computed_once() -> None:
    made, core = engine(step=64)
    context = list(range(40)) * 3
    list(likelihoods(made, [[Continuation([*context, i, i], len(context)) for i in range(4)]]))
    assert core.steps == 2 + 1  # 119 tokens in steps of 64, then 4 x 2 tokens together


def test_pages_come_back_after_an_error() -> None:
    made, core = engine()
    core.interrupt_at = 2
    with pytest.raises(KeyboardInterrupt):
        list(likelihoods(made, texts(np.random.default_rng(1))))
    assert core.kv_free_tokens() == 40 * 64


class Locked(CoreTwin):
    """Takes calls from the thread alone that has the engine's lock."""

    engine: Engine | None = None

    def __getattribute__(self, name: str) -> Any:
        engine = object.__getattribute__(self, "engine")
        if engine is not None and not name.startswith("_"):
            assert engine.lock._thread == threading.get_ident(), f"{name} without the lock"
        return super().__getattribute__(name)


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_core_is_touched_under_the_lock_alone(interrupted: bool) -> None:
    """Another thread may be in a step whenever the lock is free: eviction and freeing count, too."""
    core = Locked(12, 32)
    made, _ = engine(12, 32, core)
    for first in range(10):  # old prefixes that must make room
        handle, tokens = core.sequence_new(), np.full(32, first, np.int32)
        core.step(np.array([handle]), np.array([32]), tokens, np.zeros(1, np.uint8))
        made.cache.keep(handle, tokens.tolist())
    core.interrupt_at = core.steps + 3 if interrupted else None
    core.engine = made
    found = likelihoods(made, texts(np.random.default_rng(5)))
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            list(found)
    else:
        for _ in found:
            assert made.lock._thread == 0, "held while somebody else has the word"
    core.engine = None
    assert interrupted or len(made.cache) < 10
    made.cache.clear()
    assert core.kv_free_tokens() == 12 * 64


def test_too_long_a_text_is_refused() -> None:
    made, _ = engine()
    with pytest.raises(InputError, match="514 tokens; the context holds 512"):
        list(likelihoods(made, [[Continuation([0] * 514, 5)]]))


def test_continuations_that_do_not_fit_together_are_taken_apart() -> None:
    made, core = engine(pages=2)
    group = [Continuation([*range(7), *[i] * (40 * i)], 7) for i in (1, 2, 3)]  # beginning and copies: 4 pages
    full = [Continuation([5] * 129, 100)]
    for some, (*found,) in zip([group, full], likelihoods(made, [group, full]), strict=True):
        for c, one in zip(some, found, strict=True):
            assert one.value == pytest.approx(alone(c)[0], abs=1e-4)
    assert core.kv_free_tokens() == 128
