"""Whatever the mix of requests, chunks and pages, every request gets the tokens it would get alone."""

from __future__ import annotations

import numpy as np
import pytest
from engine_twin import VOCAB, CoreTwin, Letters, choose, draw_factory, letter, logits_after
from hypothesis import given, settings
from hypothesis import strategies as st

from hotset.engine import Engine, Request
from hotset.engine.backend import PAGE
from hotset.engine.budget import logit_rows
from hotset.params import SamplingParams, sample_seed

CONTEXT = 4 * PAGE


HUGE = 1 << 22  # a vocabulary of which few rows of logits fit a step


def engine_of(
    pages: int = 64, max_step_tokens: int = 32, *, reuse: bool = True, vocab: int = VOCAB
) -> tuple[Engine, CoreTwin]:
    core = CoreTwin(pages, max_step_tokens, most_rows=logit_rows(vocab, max_step_tokens))
    engine = Engine(
        core,
        vocab=vocab,
        context=CONTEXT,
        max_step_tokens=max_step_tokens,
        draw_factory=draw_factory(core),
        make_decoder=Letters,
        token_text=letter,
        reuse=reuse,
    )
    return engine, core


def alone(prompt: list[int], params: SamplingParams, seed: int, ends: frozenset[int] = frozenset()) -> list[int]:
    """The oracle: no engine, no pages, one token after the other."""
    tokens, rng = list(prompt), np.random.default_rng(seed)
    while len(tokens) < CONTEXT and len(tokens) - len(prompt) < (params.max_tokens or CONTEXT):
        token, _ = choose(logits_after(tokens), params.temperature, rng)
        tokens.append(token)
        if token in ends:
            break
    return tokens[len(prompt) :]


def finish(engine: Engine, *requests: Request) -> None:
    for request in requests:
        while not request.finished:
            engine.advance(request)


def free_pages(engine: Engine, core: CoreTwin) -> int:
    engine.cache.clear()
    return core.kv_free_tokens() // PAGE


workloads = st.lists(
    st.tuples(
        st.integers(1, CONTEXT - 1),  # prompt tokens
        st.integers(0, 2),  # which text the prompt is a beginning of
        st.integers(1, 90),  # max_tokens
        st.integers(1, 4),  # n
        st.integers(0, 12),  # steps before the next request comes
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=120, deadline=None)
@given(
    workloads, st.integers(4, 14), st.sampled_from([1, 3, 16, 64, 200]), st.booleans(), st.sampled_from([VOCAB, HUGE])
)
def test_every_request_gets_what_it_would_get_alone(work, pages, step_tokens, reuse, vocab):  # type: ignore[no-untyped-def]
    engine, core = engine_of(pages, step_tokens, reuse=reuse, vocab=vocab)
    texts = [np.random.default_rng(i).integers(0, VOCAB, CONTEXT).tolist() for i in range(3)]
    requests = []
    for i, (length, text, max_tokens, n, wait) in enumerate(work):
        params = SamplingParams(max_tokens=max_tokens, n=n, temperature=0.7, seed=i)
        requests.append(engine.submit(texts[text][:length], params, i, frozenset({7})))
        for _ in range(wait):
            engine.advance(requests[-1])
    finish(engine, *requests)
    for i, request in enumerate(requests):
        for index, sequence in enumerate(request.sequences):
            expected = alone(request.prompt, request.params, sample_seed(i, index), frozenset({7}))
            assert sequence.tokens[len(request.prompt) :] == expected
    assert free_pages(engine, core) == pages, "pages leaked"


def test_a_running_answer_gets_a_token_in_every_step_while_a_long_prompt_is_read() -> None:
    engine, core = engine_of(max_step_tokens=8)
    answer = engine.submit([1, 2, 3], SamplingParams(max_tokens=100), 0, frozenset())
    engine.advance(answer)
    prompt = engine.submit([4] * 200, SamplingParams(max_tokens=1), 0, frozenset())
    before, steps = len(answer.chunks), core.steps
    finish(engine, prompt)
    assert core.steps - steps == -(-200 // 7), "the answer takes one of the eight tokens of a step, the prompt the rest"
    assert len(answer.chunks) - before == core.steps - steps


def test_more_answers_than_a_step_holds_take_turns() -> None:
    engine, _ = engine_of(max_step_tokens=8)
    requests = [engine.submit([i, 1], SamplingParams(max_tokens=100), 0, frozenset()) for i in range(20)]
    while not all(r.chunks for r in requests):
        engine.advance(requests[0])
    before = [len(r.chunks) for r in requests]
    for _ in range(25):
        engine.advance(requests[0])
    assert {len(r.chunks) - b for r, b in zip(requests, before, strict=True)} == {10}, "25 steps of 8 tokens for 20"


def test_a_step_has_no_more_rows_of_logits_than_the_budget_counts() -> None:
    """The twin refuses more. Answers take turns for them, and prompts end nevertheless."""
    engine, core = engine_of(max_step_tokens=128, vocab=HUGE)
    answers = [engine.submit([i, 1], SamplingParams(max_tokens=100), 0, frozenset()) for i in range(30)]
    while not all(r.chunks for r in answers):
        engine.advance(answers[0])
    assert core.steps == 3, "16 prompts end, the others but for a token each, whose turn comes after the answers'"
    before = [len(r.chunks) for r in answers]
    for _ in range(30):
        engine.advance(answers[0])
    assert {len(r.chunks) - b for r, b in zip(answers, before, strict=True)} == {16}, "30 steps of 16 rows for 30"
    steps, prompt = core.steps, engine.submit([4] * 200, SamplingParams(max_tokens=3), 0, frozenset())
    finish(engine, prompt)
    assert core.steps - steps <= 8, "however many answers run"
    assert prompt.sequences[0].tokens[200:] == alone([4] * 200, prompt.params, 0)
    assert core.most_seen_rows == 16


def test_samples_share_one_prefill() -> None:
    engine, core = engine_of(max_step_tokens=64)
    request = engine.submit([5] * 60, SamplingParams(max_tokens=1, n=8, temperature=1.0), 3, frozenset())
    engine.advance(request)
    assert core.steps == 1 and request.finished
    assert len({s.tokens[-1] for s in request.sequences}) > 1, "samples draw from streams of their own"


def test_a_prompt_that_goes_on_from_an_answer_computes_only_what_is_new() -> None:
    engine, _ = engine_of()
    first = engine.submit(list(range(30)), SamplingParams(max_tokens=10), 0, frozenset())
    finish(engine, first)
    turn = [*first.sequences[0].tokens, 1, 2, 3]
    second = engine.submit(turn, SamplingParams(max_tokens=5), 0, frozenset())
    finish(engine, second)
    assert second.cached_tokens == 39, "30 + 10, but the last token was never computed"
    assert second.sequences[0].tokens[len(turn) :] == alone(turn, second.params, 0)
    edited = [*turn[:20], 9, 9, 9]
    third = engine.submit(edited, SamplingParams(max_tokens=5), 0, frozenset())
    finish(engine, third)
    assert third.cached_tokens == 20
    assert third.sequences[0].tokens[len(edited) :] == alone(edited, third.params, 0)


def test_the_same_prompt_again_computes_one_token() -> None:
    engine, core = engine_of(max_step_tokens=64)
    for _ in range(2):
        request = engine.submit(list(range(30)), SamplingParams(max_tokens=1), 0, frozenset())
        finish(engine, request)
    assert request.cached_tokens == 29 and core.steps == 2


def test_old_prefixes_give_way_when_pages_are_short() -> None:
    engine, core = engine_of(pages=4)
    for i in range(5):
        finish(engine, engine.submit([i] * (CONTEXT - 6), SamplingParams(max_tokens=5), 0, frozenset()))
    assert free_pages(engine, core) == 4


@pytest.mark.parametrize("at", range(2, 24, 2))
def test_an_interrupted_step_leaves_all_requests_as_they_were(at: int) -> None:
    engine, core = engine_of(max_step_tokens=8)
    requests = [engine.submit([i] * 20, SamplingParams(max_tokens=15, n=2), i, frozenset()) for i in range(3)]
    core.interrupt_at = at
    with pytest.raises(KeyboardInterrupt):
        finish(engine, *requests)
    finish(engine, *requests)
    for request in requests:
        for index, sequence in enumerate(request.sequences):
            expected = alone(request.prompt, request.params, sample_seed(request.seed, index))
            assert sequence.tokens[20:] == expected


def test_cancelling_frees_the_pages_and_others_go_on() -> None:
    engine, core = engine_of(pages=8)
    first = engine.submit([1] * 50, SamplingParams(max_tokens=100, n=3), 0, frozenset())
    second = engine.submit([2] * 50, SamplingParams(max_tokens=20), 0, frozenset())
    for _ in range(6):
        engine.advance(first)
    engine.cancel(first)
    assert first.finished and {s.finish_reason for s in first.sequences} == {"cancelled"}
    finish(engine, second)
    assert second.sequences[0].tokens[50:] == alone([2] * 50, second.params, 0)
    assert free_pages(engine, core) == 8


def test_a_sampler_that_fails_ends_only_its_own_request() -> None:
    engine, core = engine_of()
    good = engine.submit([1, 2], SamplingParams(max_tokens=9), 0, frozenset())
    bad = engine.submit([3, 4], SamplingParams(max_tokens=9, n=2), 0, frozenset())

    def fail(row: int) -> tuple[int, float]:
        raise ValueError("NaN logits")

    bad.sequences[1].draw = fail
    finish(engine, good)
    assert good.sequences[0].tokens[2:] == alone([1, 2], good.params, 0)
    with pytest.raises(ValueError, match="NaN"):
        engine.advance(bad)
    assert bad.finished and free_pages(engine, core) == 64


@pytest.mark.parametrize("failing", [0, 1])
def test_the_first_error_of_a_request_is_told(failing: int) -> None:
    """Both samples draw in the same step; what comes after the error of one is its consequence."""
    engine, core = engine_of()
    bad = engine.submit([3, 4], SamplingParams(max_tokens=9, n=2), 0, frozenset())
    good = engine.submit([1, 2], SamplingParams(max_tokens=9), 0, frozenset())
    engine.advance(bad)

    def fail(row: int) -> tuple[int, float]:
        raise ValueError("NaN logits")

    bad.sequences[failing].draw = fail  # type: ignore[assignment]
    with pytest.raises(ValueError, match="NaN"):
        engine.advance(bad)
    finish(engine, good)
    assert good.sequences[0].tokens[2:] == alone([1, 2], good.params, 0)
    assert bad.finished and free_pages(engine, core) == 64
