"""Drafts change how fast tokens come, never which: whatever the lengths, the mistakes and the mix of requests."""

from __future__ import annotations

import numpy as np
import pytest
from draft_lengths import RandomLength
from engine_twin import VOCAB, CoreTwin, Letters, choose, draw_factory, letter, log_softmax, logits_after
from hypothesis import given, settings
from hypothesis import strategies as st

from hotset.engine import Engine, Request
from hotset.engine.backend import PAGE
from hotset.engine.draft_length import Acceptance, DraftLength, PassTime
from hotset.params import SamplingParams, sample_seed

CONTEXT = 4 * PAGE


def engine_of(
    pages: int = 64, max_step_tokens: int = 32, error: float = 0.2, length: DraftLength | None = None
) -> tuple[Engine, CoreTwin]:
    core = CoreTwin(pages, max_step_tokens, error)
    engine = Engine(
        core,
        vocab=VOCAB,
        context=CONTEXT,
        max_step_tokens=max_step_tokens,
        draw_factory=draw_factory(core),
        make_decoder=Letters,
        token_text=letter,
        drafts=True,
    )
    assert engine.speculator is not None
    if length is not None:
        engine.speculator.length = length
    return engine, core


def alone(
    prompt: list[int], params: SamplingParams, seed: int, ends: frozenset[int] = frozenset()
) -> list[tuple[int, float]]:
    """The oracle: no engine and no drafts, one token after the other, with their log probabilities."""
    tokens, rng, found = list(prompt), np.random.default_rng(seed), []
    while len(tokens) < CONTEXT and len(found) < (params.max_tokens or CONTEXT):
        row = logits_after(tokens)
        token, logprob = choose(row, params.temperature, rng)
        assert logprob == pytest.approx(log_softmax(row)[token])
        tokens.append(token)
        found.append((token, logprob))
        if token in ends:
            break
    return found


def check(request: Request, ends: frozenset[int] = frozenset()) -> None:
    for index, sequence in enumerate(request.sequences):
        expected = alone(request.prompt, request.params, sample_seed(request.seed, index), ends)
        assert [(c.token, c.logprob) for c in sequence.chunks] == expected
        assert sequence.tokens == [*request.prompt, *(token for token, _ in expected)]


def finish(engine: Engine, *requests: Request) -> None:
    for request in requests:
        while not request.finished:
            engine.advance(request)


workloads = st.lists(
    st.tuples(
        st.integers(1, CONTEXT - 1),  # prompt tokens
        st.integers(0, 1),  # which text the prompt is a beginning of
        st.integers(1, 90),  # max_tokens
        st.integers(1, 4),  # n
        st.sampled_from([0.0, 0.7]),  # temperature
        st.integers(0, 8),  # steps before the next request comes
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=80, deadline=None)
@given(
    workloads,
    st.integers(4, 14),
    st.sampled_from([1, 9, 64, 200]),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.one_of(st.none(), st.integers(1, 100)),
    st.integers(0, 99),
)
def test_every_request_gets_what_it_would_get_alone(work, pages, step_tokens, error, most, seed):  # type: ignore[no-untyped-def]
    """most None: lengths as learned from the clock; else random ones."""
    engine, core = engine_of(pages, step_tokens, error, RandomLength(seed, most) if most else None)
    texts = [np.random.default_rng(i).integers(0, VOCAB, CONTEXT).tolist() for i in range(2)]
    requests = []
    for i, (length, text, max_tokens, n, temperature, wait) in enumerate(work):
        params = SamplingParams(max_tokens=max_tokens, n=n, temperature=temperature)
        requests.append(engine.submit(texts[text][:length], params, i, frozenset({7})))
        for _ in range(wait):
            engine.advance(requests[-1])
    finish(engine, *requests)
    for request in requests:
        check(request, frozenset({7}))
        assert 0 <= request.accepted <= request.drafted
        # Every pass gives one token for sure; a draft that ends an answer stands for the one that would have come.
        outputs = sum(len(s.chunks) - 1 for s in request.sequences)
        assert request.passes <= outputs <= request.passes + request.accepted
    engine.cache.clear()
    assert core.kv_free_tokens() == pages * PAGE, "pages leaked"


@pytest.mark.parametrize("at", range(2, 44, 3))
def test_ctrl_c_in_a_draft_or_its_verification_leaves_all_requests_as_they_were(at: int) -> None:
    engine, core = engine_of(error=0.3, length=RandomLength(at, 9))
    requests = [
        engine.submit([i] * 20, SamplingParams(max_tokens=25, n=2, temperature=0.5), i, frozenset()) for i in range(2)
    ]
    core.interrupt_at = at
    with pytest.raises(KeyboardInterrupt):
        finish(engine, *requests)
    assert core.steps == at
    finish(engine, *requests)
    for request in requests:
        check(request)


def test_cancelled_between_rounds_an_answer_keeps_only_exact_pages() -> None:
    engine, core = engine_of(pages=8, error=0.5, length=RandomLength(1, 12))
    request = engine.submit([1] * 50, SamplingParams(max_tokens=150), 0, frozenset())
    for _ in range(6):
        engine.advance(request)
    engine.cancel(request)
    known = request.sequences[0].tokens
    again = engine.submit([*known, 3], SamplingParams(max_tokens=9), 0, frozenset())
    finish(engine, again)
    assert again.cached_tokens >= len(known) - 1
    check(again)
    engine.cache.clear()
    assert core.kv_free_tokens() == 8 * PAGE


def test_an_abandoned_answer_stops_drafting() -> None:
    engine, core = engine_of(error=0, length=RandomLength(1, 12))
    request = engine.submit([1, 2], SamplingParams(max_tokens=90), 0, frozenset())
    engine.advance(request)
    step = core.step

    def abandoning(*args, **options):  # type: ignore[no-untyped-def]
        request.abandoned = True
        return step(*args, **options)

    core.step = abandoning  # type: ignore[method-assign]
    before = core.drafts
    engine.advance(request)
    assert core.drafts - before <= 1
    engine.advance(request)
    assert request.finished


def test_perfect_drafts_are_all_accepted_and_save_passes() -> None:
    engine, core = engine_of(max_step_tokens=64, error=0, length=RandomLength(2, 30))
    request = engine.submit([1, 2, 3], SamplingParams(max_tokens=200), 0, frozenset())
    finish(engine, request)
    check(request)
    stats = request.completion().stats
    assert stats.drafted == stats.accepted > 100 and stats.acceptance == 1
    assert stats.passes + stats.accepted == 199 and core.steps == 1 + stats.passes + core.drafts


def test_a_failing_sampler_ends_its_request_after_the_tokens_before() -> None:
    engine, core = engine_of(error=0, length=RandomLength(3, 30))
    good = engine.submit([1, 2], SamplingParams(max_tokens=40), 0, frozenset())
    bad = engine.submit([3, 4], SamplingParams(max_tokens=40), 0, frozenset())
    draw, calls = bad.sequences[0].draw, 0

    class Failing:
        def __call__(self, row: int) -> tuple[int, float]:
            nonlocal calls
            calls += 1
            if calls == 12:
                raise ValueError("NaN logits")
            return draw(row)

        fork = draw.fork

    bad.sequences[0].draw = Failing()
    finish(engine, good)
    check(good)
    with pytest.raises(ValueError, match="NaN"):
        engine.advance(bad)
    expected = [token for token, _ in alone([3, 4], bad.params, 0)][:11]
    assert [c.token for c in bad.sequences[0].chunks] == expected
    engine.cache.clear()
    assert core.kv_free_tokens() == 64 * PAGE


# --- how long drafts get ---------------------------------------------------------------------------------------------
def learned(draft: float, fixed: float, row: float, held: float) -> DraftLength:
    """After a while on a host and a model with these costs in seconds, and this share of drafts that hold."""
    length, rng = DraftLength(), np.random.default_rng(0)
    for _ in range(60):
        length.drafted(1, draft)
        rows = int(rng.integers(1, 30))
        length.passes.add(rows, fixed + row * rows)
        length.greedy.add(1.0, bool(rng.random() < held))
    return length


def drafted(length: DraftLength) -> int:
    p = length.greedy.mean
    worth, done, survival = length.start(1, p), 0, 1.0
    while length.pays(worth, 1, survival, p, done):
        done, survival = done + 1, survival * p
    return done


@pytest.mark.parametrize("held", [0.5, 0.8, 0.95, 1.0])
@pytest.mark.parametrize(("draft", "fixed", "row"), [(0.05, 0.6, 0.01), (0.02, 1.2, 0.004), (0.1, 0.3, 0.02)])
def test_length_is_as_good_as_the_best_of_all(draft: float, fixed: float, row: float, held: float) -> None:
    length = learned(draft, fixed, row, held)
    p = length.greedy.mean
    rates = [sum(p**i for i in range(k + 1)) / (k * draft + fixed + row * (k + 1)) for k in range(65)]
    assert rates[drafted(length)] > 0.99 * max(rates)


@pytest.mark.parametrize(("draft", "fixed", "row"), [(0.05, 0.6, 0.01), (0.02, 1.2, 0.004), (0.1, 0.3, 0.02)])
def test_lengths_that_follow_confidence_are_as_good_as_any(draft: float, fixed: float, row: float) -> None:
    """Rounds that stop where the chance that all holds falls below a limit, every limit tried, and fixed lengths."""
    rng = np.random.default_rng(2)
    confidences, holds = np.array([0.05, 0.2, 0.8, 3.0, 9.0]), np.array([0.5, 0.6, 0.75, 0.97, 0.999])
    drawn = rng.choice(5, (1500, 64), p=[0.05, 0.1, 0.2, 0.3, 0.35])
    length = DraftLength()
    for i, chosen in enumerate(drawn[:40].ravel()):
        length.drafted(1, draft)
        length.passes.add(i % 30 + 1, fixed + row * (i % 30 + 1))
        length.greedy.add(confidences[chosen], bool(rng.random() < holds[chosen]))
    p = length.greedy.mean
    survival = np.concatenate([np.ones((len(drawn), 1)), holds[drawn].cumprod(axis=1)], axis=1)
    worth = length.start(1, p)
    lengths = [next((k for k in range(64) if not length.pays(worth, 1, s[k], p, k)), 64) for s in survival]

    def rate(drafts: np.ndarray) -> float:
        tokens = sum(s[: k + 1].sum() for s, k in zip(survival, drafts, strict=True))  # 1 of the pass among them
        return float(tokens / (drafts * draft + fixed + row * (drafts + 1)).sum())

    limits = [rate((survival[:, :64] > limit).sum(axis=1)) for limit in np.linspace(0.02, 0.98, 49)]
    fixed_lengths = [rate(np.full(len(drawn), k)) for k in range(65)]
    assert rate(np.array(lengths)) > max(0.98 * max(limits), 1.01 * max(fixed_lengths))


def test_drafts_that_do_not_pay_stop_and_are_tried_again_ever_more_rarely() -> None:
    length = learned(draft=0.05, fixed=0.02, row=0.01, held=0.9)
    tries = [drafted(length) > 0 for _ in range(200)]
    assert 3 <= sum(tries) <= 8
    gaps = np.diff(np.flatnonzero(tries))
    assert (np.diff(gaps) > 0).all()
    for _ in range(60):
        length.drafted(1, 0.001)  # drafts became cheap
    assert drafted(length) > 3


def test_a_try_takes_no_longer_than_a_pass() -> None:
    length = learned(draft=0.5, fixed=0.6, row=0.01, held=0.3)
    tries = [drafted(length) for _ in range(20)]
    assert set(tries) == {0, 2}  # one draft takes less than a pass, two take more


def test_an_unsure_draft_is_the_last() -> None:
    length = learned(0.05, 0.6, 0.01, 0.9)
    for _ in range(300):
        length.greedy.add(0.1, held=False)
        length.greedy.add(3.0, held=True)
    assert length.greedy.of(0.1) < 0.1 < 0.9 < length.greedy.of(3.0)
    worth = length.start(1, length.greedy.mean)
    assert length.pays(worth, 1, length.greedy.of(3.0) ** 3, length.greedy.mean, 3)
    assert not length.pays(worth, 1, length.greedy.of(3.0) ** 3 * length.greedy.of(0.1), length.greedy.mean, 4)


def test_pass_time_finds_the_line() -> None:
    time, rng = PassTime(), np.random.default_rng(1)
    for _ in range(40):
        rows = int(rng.integers(1, 40))
        time.add(rows, (0.5 + 0.012 * rows) * rng.normal(1, 0.02))
    fixed, row = time.line()
    assert fixed == pytest.approx(0.5, rel=0.1) and row == pytest.approx(0.012, rel=0.15)


def test_acceptance_starts_hopeful_and_follows_what_happens() -> None:
    acceptance = Acceptance()
    assert acceptance.mean == pytest.approx(0.9)
    for i in range(500):
        acceptance.add(1.0, i % 4 != 0)
    assert acceptance.mean == pytest.approx(0.75, abs=0.1)
    assert acceptance.of(0.0) == pytest.approx(acceptance.mean)  # nothing known there
