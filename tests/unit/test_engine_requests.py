"""How requests end that fail, that nobody reads any more, or whose engine is closed; and what they leave behind."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from engine_twin import VOCAB, CoreTwin, Letters, draw_factory, letter
from numpy.typing import NDArray

from hotset.engine import Engine, Request, Stats, Stream, score
from hotset.engine.backend import PAGE
from hotset.engine.lock import FairLock
from hotset.errors import InputError, UsageError
from hotset.params import SamplingParams

CONTEXT = 4 * PAGE
TOKENS = list(range(30))


def engine_of(core: CoreTwin, *, drafts: bool = False) -> Engine:
    return Engine(
        core,
        vocab=VOCAB,
        context=CONTEXT,
        max_step_tokens=core.max_step_tokens,
        draw_factory=draw_factory(core),
        make_decoder=Letters,
        token_text=letter,
        watch=lambda: core.kv_free_tokens() and None,  # holds the core, as the real one does
        drafts=drafts,
        counters=lambda: {"steps": core.steps},
    )


def submit(engine: Engine, prompt: list[int], max_tokens: int = 100, n: int = 1) -> Request:
    return engine.submit(prompt, SamplingParams(max_tokens=max_tokens, n=n, temperature=1.0), 0, frozenset())


def fail(row: int) -> tuple[int, float]:
    raise ValueError("NaN logits")


@contextmanager
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def assert_free(lock: FairLock) -> None:
    """For other threads; the one that holds it may always come again."""

    def take() -> None:
        with lock:
            pass

    thread = in_thread(take)
    thread.join(20)
    assert not thread.is_alive(), "the lock is held"


def test_a_stream_raises_an_error_that_another_one_met() -> None:
    engine = engine_of(CoreTwin(64, 32))
    good, failing = submit(engine, [1, 2], 20), submit(engine, [3, 4], 20)
    bad = Stream(engine, failing)
    first = next(bad)
    failing.sequences[0].draw = fail  # type: ignore[assignment]
    assert len(list(Stream(engine, good))) == 20
    with pytest.raises(ValueError, match="NaN"):
        next(bad)
    with pytest.raises(ValueError, match="NaN"):  # it does not look as if it had ended well afterwards
        next(bad)
    assert bad.completion.finish_reason == "cancelled" and bad.completion.tokens == (first.token,)


def test_a_request_has_its_error_before_it_counts_as_finished() -> None:
    """Other threads look at it without the lock."""
    engine = engine_of(CoreTwin(64, 32))
    request, seen = submit(engine, [3, 4]), []
    end = engine._end

    def watched(*args: Any, **options: Any) -> None:
        end(*args, **options)
        seen.append((request.finished, request.error is not None))

    engine._end = watched  # type: ignore[method-assign]
    request.sequences[0].draw = fail  # type: ignore[assignment]
    with pytest.raises(ValueError, match="NaN"):
        engine.advance(request)
    assert seen == [(True, True)]


def test_requests_that_nobody_reads_make_room() -> None:
    core = CoreTwin(4, 32)
    engine = engine_of(core)
    stream = Stream(engine, submit(engine, [1] * 150, n=3))
    next(stream)
    del stream
    with engine.lock:
        engine.make_room(CONTEXT)
    assert core.kv_free_tokens() == CONTEXT
    assert len(score.logits(engine, [2] * CONTEXT)) == CONTEXT


class Failing(CoreTwin):
    def token_logprobs(self, targets: NDArray[np.int32]) -> NDArray[np.float32]:
        raise ZeroDivisionError

    def logits(self) -> NDArray[np.float32]:
        raise ZeroDivisionError


@pytest.mark.parametrize("scored", [score.logits, score.token_logprobs])
def test_scores_that_fail_leave_no_lock_behind(scored: Callable[[Engine, list[int]], object]) -> None:
    core = Failing(64, 32)
    engine = engine_of(core)
    with pytest.raises(ZeroDivisionError) as kept:  # keeps frames of the traceback, and what they hold
        scored(engine, TOKENS)
    assert_free(engine.lock)
    assert core.kv_free_tokens() == 64 * PAGE and kept.tb is not None


@pytest.mark.parametrize("tokens", [[1, 2.5, 3], [1, 2, 10**6], [1, 2, -1], [1, "a", 3]])
def test_tokens_that_the_model_does_not_have_are_not_scored(tokens: Any) -> None:
    core = CoreTwin(64, 32)
    engine = engine_of(core)
    wanted = "this model's go from 0 to 39"
    with pytest.raises(InputError, match=wanted):
        score.logits(engine, tokens)
    with pytest.raises(InputError, match=wanted):
        score.token_logprobs(engine, tokens)
    with pytest.raises(InputError, match=wanted):
        score.perplexity(engine, [*TOKENS, *tokens], score.sliding_windows(33, 8, 8), bos_id=None)
    assert core.steps == 0


def test_closing_lets_go_of_the_core_whoever_keeps_the_engine() -> None:
    core = CoreTwin(64, 32)
    engine, held = engine_of(core, drafts=True), weakref.ref(core)
    del core
    with pytest.raises(ValueError, match="NaN"):
        failed = submit(engine, [9] * 20, n=2)
        failed.sequences[0].draw = fail  # type: ignore[assignment]
        engine.advance(failed)
    done, open_ = submit(engine, [1] * 20, max_tokens=2), submit(engine, [2] * 20)
    cancelled = submit(engine, [4] * 20, n=3)
    engine.cancel(cancelled)  # before its other samples began
    while not done.finished:
        engine.advance(done)
    waiting = submit(engine, [3] * 20, n=3)
    streams = [Stream(engine, request) for request in (done, open_, waiting, cancelled)]
    with without_collector():
        engine.close()
        assert held() is None
    assert [len(list(streams[i])) for i in (0, 3)] == [2, 0], "these had ended before"
    for stream in streams[1:3]:
        with pytest.raises(UsageError, match="closed; make a new one"):
            list(stream)
        stream.close()
        assert stream.completion.finish_reason == "cancelled"
    engine.close()  # a second time does nothing


def test_a_closed_engine_refuses_everything() -> None:
    engine = engine_of(CoreTwin(64, 32))
    engine.close()
    with pytest.raises(UsageError, match="closed"):
        submit(engine, TOKENS)
    with pytest.raises(UsageError, match="closed"):
        score.logits(engine, TOKENS)
    with pytest.raises(UsageError, match="closed"):
        engine.core.kv_free_tokens()
    assert_free(engine.lock)


class Slow(CoreTwin):
    """Stays in its first step until it may go on."""

    def __init__(self) -> None:
        super().__init__(64, 32)
        self.entered, self.go_on = threading.Event(), threading.Event()

    def step(self, *args: Any, **options: Any) -> int:
        self.entered.set()
        assert self.go_on.wait(60)
        return super().step(*args, **options)


def test_closing_waits_for_a_running_step() -> None:
    core, outcome = Slow(), []
    engine = engine_of(core)
    stream = Stream(engine, submit(engine, TOKENS))

    def read() -> None:
        try:
            outcome.extend(stream)
        except UsageError as error:
            outcome.append(error)

    reader = in_thread(read)
    assert core.entered.wait(60)
    closer = in_thread(engine.close)
    closer.join(0.2)
    assert closer.is_alive(), "the step is under way"
    core.go_on.set()
    reader.join(60), closer.join(60)
    assert not reader.is_alive() and not closer.is_alive()
    chunk, error = outcome
    assert chunk.token == stream.completion.tokens[0] and isinstance(error, UsageError)
    assert core.steps == 1 and core.kv_free_tokens() == 64 * PAGE


def test_the_first_token_of_each_sample_belongs_to_the_prompts_time() -> None:
    engine = engine_of(CoreTwin(64, 32))
    rates = []
    for max_tokens in (1, 4):
        request = submit(engine, TOKENS, max_tokens, n=5)
        while not request.finished:
            engine.advance(request)
        stats = request.completion().stats
        assert (stats.samples, stats.output_tokens) == (5, 5 * max_tokens)
        rates.append(stats.decode_rate)
    assert rates == [0, pytest.approx(15 / (stats.total - stats.ttft))]
    assert Stats(3, 0, output_tokens=0, ttft=1.0, total=2.0, samples=2).decode_rate == 0, "cancelled before the first"
    assert Stats(3, 0, output_tokens=9, ttft=1.0, total=3.0).decode_rate == 4
