"""The step loop: plan, compute, draw, and hand out what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from traceback import clear_frames
from typing import cast

import numpy as np

from hotset.engine.backend import Core, Decoder, DrawFactory
from hotset.engine.budget import logit_rows
from hotset.engine.lock import FairLock
from hotset.engine.output import Chunk, TokenLogprob
from hotset.engine.prefix_cache import PrefixCache
from hotset.engine.revocable import CLOSED, Revocable, refuse
from hotset.engine.scheduler import Scheduler, Slice
from hotset.engine.sequence import Request, Sequence
from hotset.engine.speculate import Speculator
from hotset.engine.stops import StopMatcher
from hotset.errors import InputError, MemoryBudgetError, UsageError
from hotset.params import SamplingParams, sample_seed


class Engine:
    """Runs requests in common steps. Safe for several threads: each drives the steps it waits for, one at a time.

    core: the native engine. context: most tokens of a sequence, prompt and output; its KV cache must hold that many.
    draw_factory: makes the sampler of a sequence. make_decoder: tokens to text. token_text: of one token.
    reuse: whether finished sequences are kept for prompts that begin alike. watch: called before every step.
    after_step: called when its tokens are drawn, and after each draft.
    drafts: whether the core has a fast path for drafts, so that they pay; changes no token.
    counters: of the core since it was loaded, told of each request by how much they grew.
    """

    def __init__(
        self,
        core: Core,
        *,
        vocab: int,
        context: int,
        max_step_tokens: int,
        draw_factory: DrawFactory,
        make_decoder: Callable[[], Decoder],
        token_text: Callable[[int], str],
        reuse: bool = True,
        watch: Callable[[], None] = lambda: None,
        after_step: Callable[[], None] | None = None,
        drafts: bool = False,
        counters: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        self._lent = Revocable(core)
        core = cast(Core, self._lent)
        self.core, self.vocab, self.context, self.max_step_tokens = core, vocab, context, max_step_tokens
        self.most_logit_rows = logit_rows(vocab, max_step_tokens)  # of one step
        self._draw_factory, self._make_decoder, self._token_text = draw_factory, make_decoder, token_text
        self.cache = PrefixCache(core)
        self._scheduler = Scheduler(core, self.cache, max_step_tokens, self.most_logit_rows, reuse=reuse)
        self.lock = FairLock()
        self._watch, self._after_step, self._counters = watch, after_step, counters
        self.speculator = Speculator(core, context, self.most_logit_rows, after_step) if drafts else None
        self._requests = 0

    def submit(
        self, prompt: list[int], params: SamplingParams, seed: int, ends: frozenset[int], echoed: str = ""
    ) -> Request:
        """Queues a prompt; `advance` computes it. ends: tokens that end the answer.

        Raises: InputError for an empty or too long prompt, or a token that the model does not have; UsageError once
        this is closed.
        """
        self.check(prompt)
        request = Request(list(prompt), params, seed, ends, echoed)
        try:
            with self.lock:
                self._queue(request)
        except BaseException:  # Ctrl-C, maybe after it was queued: nobody will have it
            request.abandoned = True
            raise
        return request

    def check(self, prompt: list[int]) -> None:
        """Raises InputError unless the prompt can be run."""
        if not prompt:
            raise InputError("the prompt is empty: it has no tokens; give at least one character")
        if len(prompt) >= self.context:
            raise InputError(
                f"the prompt has {len(prompt)} tokens; the context holds {self.context}, and one must stay free for "
                "the answer. Shorten the prompt, or load the model with a larger context"
            )
        self.check_ids(prompt)

    def check_ids(self, tokens: Iterable[int]) -> None:
        """Raises InputError unless the model has all these tokens."""
        for token in tokens:
            if not isinstance(token, (int, np.integer)) or not 0 <= token < self.vocab:
                raise InputError(f"token id {token!r} is unknown; this model's go from 0 to {self.vocab - 1}")

    def advance(self, request: Request) -> None:
        """One step, if the request is not finished. Other requests advance with it.

        Raises what the step raised, or the request's error, whoever drove the step that it failed in;
        KeyboardInterrupt leaves every request as it was before the step.
        """
        with self.lock:
            if not request.finished:
                self._run_step()
            if request.error is not None:
                raise request.error

    def cancel(self, request: Request) -> None:
        """Ends a request early; what it computed stays for prompts that begin alike. Waits for a running step."""
        with self.lock:
            self._cancel(request)

    def close(self) -> None:
        """Fails what is not finished with UsageError, and lets go of the core, whoever keeps this engine or a request.

        Waits for a running step. Further requests are refused with UsageError, as is all use of `core`.
        """
        with self.lock:
            for request in {s.request for s in self._scheduler.active}:
                self._fail(request, UsageError(CLOSED))
            self.cache.clear()
            self._draw_factory = self._watch = self._counters = refuse  # they hold the core, too
            self._lent.revoke()

    def make_room(self, tokens: int) -> None:
        """Frees what nobody waits for, and old prefixes, until the KV cache has room for `tokens` more.

        The caller holds the lock. Raises: InputError if they exceed the context; MemoryBudgetError if running requests
        hold the rest; UsageError once this is closed.
        """
        if tokens > self.context:
            raise InputError(f"the text has {tokens} tokens; the context holds {self.context}")
        self._cancel_abandoned()
        while (free := self.core.kv_free_tokens()) < tokens:
            if not self.cache.evict():
                raise MemoryBudgetError(
                    f"the KV cache has room for {free} more tokens while other requests run; {tokens} are needed. "
                    "Wait for them, or load the model with more kv_tokens"
                )

    def _queue(self, request: Request) -> None:
        params = request.params
        for index in range(params.n):  # under the lock, as samplers hold the core
            draw = self._draw_factory(params, sample_seed(request.seed, index), request.prompt)
            decoder, stops = self._make_decoder(), StopMatcher(params.stops)
            request.sequences.append(Sequence(request, index, list(request.prompt), draw, decoder, stops))
        self._requests += 1
        request.number = self._requests
        self._scheduler.add(request.sequences[0])  # the others begin where its prompt ends

    def _run_step(self) -> None:
        self._cancel_abandoned()
        slices = self._scheduler.plan()
        if not slices:
            return
        self._watch()
        try:
            if self.speculator is not None:
                slices = self.speculator.extend(slices)
            self._compute(slices)
            self._draw_all([s for s in slices if s.sequence.pending == 0])
            if self._after_step is not None:
                self._after_step()
        except BaseException:
            self._resync()
            raise

    def _cancel_abandoned(self) -> None:
        for request in {s.request for s in self._scheduler.active if s.request.abandoned}:
            self._cancel(request)

    def _cancel(self, request: Request) -> None:
        for sequence in request.sequences:
            if sequence.finish_reason is None:
                self._end(sequence, keep=True)
                sequence.finish_reason = "cancelled"
        request.ended = request.ended or time.perf_counter()

    def _compute(self, slices: list[Slice]) -> None:
        sequences = [s.sequence for s in slices]
        tokens = [t for s in slices for t in (*_due(s), *s.draft)]
        started = time.perf_counter()
        self.core.step(
            np.array([s.handle for s in sequences], np.int32),
            np.array([s.count + len(s.draft) for s in slices], np.int32),
            np.array(tokens, np.int32),
            np.array([2 if s.draft else s.wants_logits for s in slices], np.uint8),
            np.array([len(s.tokens) for s in sequences], np.int64),
        )
        if self.speculator is not None:
            self.speculator.verified(slices, time.perf_counter() - started)
        for s in slices:
            s.sequence.computed += s.count
            s.sequence.shares_page = False

    def _draw_all(self, slices: list[Slice]) -> None:
        """Draws from all rows of logits; at the end of a prompt, for all its samples from the same row."""
        row = 0
        for part in slices:
            if part.sequence.request.error is None:  # else a sample before this one failed and ended both
                self._draw_part(part, row)
            row += 1 + len(part.draft)

    def _draw_part(self, part: Slice, row: int) -> None:
        leader = part.sequence
        siblings = [] if leader.chunks or leader.index else self._fork_siblings(leader)
        try:
            if leader.chunks:
                self._draw_drafted(part, row)
            else:
                for sequence in (leader, *siblings):
                    self._draw_one(sequence, row)
        except Exception as error:  # of this request alone, e.g. NaN logits
            self._fail(leader.request, error)

    def _draw_drafted(self, part: Slice, row: int) -> None:
        """Draws after each token of a draft, as long as the draft said what would be drawn."""
        sequence, request, held = part.sequence, part.sequence.request, 0
        request.passes += 1
        request.drafted += len(part.draft)
        self._draw_one(sequence, row)
        while held < len(part.draft) and sequence.tokens[-1] == part.draft[held]:
            held += 1
            if sequence.finish_reason is not None:
                break
            sequence.computed += 1
            self._draw_one(sequence, row + held)
        request.accepted += held
        if self.speculator is not None and part.draft:
            self.speculator.judged(part, held, min(held + (sequence.finish_reason is None), len(part.draft)))
        if sequence.handle is not None:
            self.core.sequence_truncate(sequence.handle, sequence.computed)

    def _fork_siblings(self, leader: Sequence) -> list[Sequence]:
        """Starts the other samples of a request where its prompt ends."""
        assert leader.handle is not None
        siblings = [s for s in leader.request.sequences[1:] if s.handle is None]
        for sequence in siblings:
            sequence.handle = self.core.sequence_fork(leader.handle)
            sequence.computed, sequence.shares_page, leader.shares_page = leader.computed, True, True
            self._scheduler.add(sequence)
        return siblings

    def _draw_one(self, sequence: Sequence, row: int) -> None:
        assert sequence.draw is not None
        token, logprob = sequence.draw(row)
        request, count = sequence.request, sequence.request.params.logprobs
        top: tuple[TokenLogprob, ...] = ()
        if count:
            ids, values = self.core.top_logprobs(row, count)
            pairs = zip(ids.tolist(), values.tolist(), strict=True)
            top = tuple(TokenLogprob(i, self._token_text(i), value) for i, value in pairs)
        sequence.tokens.append(token)
        text, reason = self._text_of(sequence, token)
        text = text if sequence.chunks else request.echoed + text
        chunk = Chunk(text, token, logprob, top, sequence.index, sequence.finish_reason, reason)
        sequence.chunks.append(chunk)
        request.chunks.append(chunk)
        request.count(self._counters())
        if sequence.index == 0:
            request.times.append(time.perf_counter())
        if chunk.finish_reason is not None:
            self._end(sequence, keep=True)

    def _text_of(self, sequence: Sequence, token: int) -> tuple[str, str | int | None]:
        """The text that `token` sets free, and why the sequence ends, if it does (then finish_reason is set)."""
        request, params = sequence.request, sequence.request.params
        if token in request.stop_tokens:
            sequence.finish_reason = "stop"
            return sequence.stops.push(sequence.decoder.flush())[0] + sequence.stops.flush(), token
        text, stop = sequence.stops.push(sequence.decoder.push(token))
        if stop is not None:
            sequence.finish_reason = "stop"
            return text, stop
        output = len(sequence.tokens) - len(request.prompt)
        if output == params.max_tokens or len(sequence.tokens) >= self.context:
            sequence.finish_reason = "length"
            text += sequence.stops.push(sequence.decoder.flush())[0] + sequence.stops.flush()
        return text, None

    def _end(self, sequence: Sequence, *, keep: bool) -> None:
        if sequence in self._scheduler.active:
            self._scheduler.remove(sequence, keep=keep)
        sequence.draw = None  # of a sample that never began, too
        request = sequence.request
        if all(s.finish_reason is not None for s in request.sequences):
            request.ended = time.perf_counter()

    def _fail(self, request: Request, error: BaseException) -> None:
        clear_frames(error.__traceback__)  # samplers there would keep the core for as long as the error
        request.error = error  # before it counts as finished, which other threads look at
        for sequence in request.sequences:
            sequence.finish_reason = sequence.finish_reason or "cancelled"
            self._end(sequence, keep=False)

    def _resync(self) -> None:
        """After an interrupted step: counts what the cache really holds; a token whose logits were lost is redone."""
        for sequence in self._scheduler.active:
            if sequence.handle is None:
                continue
            length = min(self.core.sequence_length(sequence.handle), len(sequence.tokens) - 1)
            self.core.sequence_truncate(sequence.handle, length)
            sequence.computed = length


def _due(part: Slice) -> list[int]:
    """The tokens of a slice before its draft."""
    start = part.sequence.computed
    return part.sequence.tokens[start : start + part.count]
