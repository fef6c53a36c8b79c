"""Drafts tokens on a fast but approximate path of the core; the engine then verifies them in one exact pass.

Draft and verification draw with the same random numbers: a sequence drafts with a copy of its sampler. A draft holds if
the sampler itself then draws the same token from the exact logits, so what comes out is what would have come without
drafts, sampled or greedy. Source: speculative decoding (arXiv:2211.17192), here with the model's own sparse path as the
draft, and with equal tokens instead of a test of probabilities.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from hotset.engine.backend import PAGE, Core, Draw
from hotset.engine.draft_length import Acceptance, DraftLength
from hotset.engine.scheduler import Slice
from hotset.engine.sequence import Sequence
from hotset.errors import HotsetError

# More rows take the core's other path, which is the exact one; native/pipeline/sparse_ffn.h.
MOST_SEQUENCES = 8


@dataclass(slots=True)
class _Draft:
    """What one sequence has drafted in this round."""

    sequence: Sequence
    draw: Draw  # a copy
    limit: int  # most tokens
    acceptance: Acceptance
    tokens: list[int] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    survival: float = 1.0

    @property
    def last(self) -> int:
        return self.tokens[-1] if self.tokens else self.sequence.tokens[-1]

    def add(self, token: int, confidence: float) -> None:
        self.tokens.append(token)
        self.confidences.append(confidence)
        self.survival *= self.acceptance.of(confidence)
        if token in self.sequence.request.stop_tokens:
            self.limit = len(self.tokens)


class Speculator:
    """Drafts for the steps of one engine.

    context: most tokens of a sequence. most_rows: of a step, each with logits. after_step: called after each draft.
    """

    def __init__(self, core: Core, context: int, most_rows: int, after_step: Callable[[], None] | None = None) -> None:
        self._core, self._context, self._most_rows, self._after_step = core, context, most_rows, after_step
        self.length = DraftLength()

    def extend(self, slices: list[Slice]) -> list[Slice]:
        """The slices of a step with what was drafted for them; unchanged unless all are answers under way.

        The core is left as it was. Raises what core.step raises; then its sequences may be longer.
        """
        if not 1 <= len(slices) <= MOST_SEQUENCES or not all(_drafts(s) for s in slices):
            return slices
        drafts = [self._begin(s.sequence, limit) for s, limit in zip(slices, self._limits(slices), strict=True)]
        self._run(drafts)
        for draft in drafts:
            assert draft.sequence.handle is not None
            self._core.sequence_truncate(draft.sequence.handle, draft.sequence.computed)
        return [Slice(d.sequence, 1, tuple(d.tokens), tuple(d.confidences)) for d in drafts]

    def verified(self, slices: list[Slice], seconds: float) -> None:
        """A step without prompts took so long."""
        if all(_drafts(s) for s in slices):
            self.length.passes.add(sum(s.rows for s in slices), seconds)

    def judged(self, part: Slice, held: int, judged: int) -> None:
        """Of the first `judged` drafts of a slice the first `held` held."""
        acceptance = self._acceptance(part.sequence)
        for i, confidence in enumerate(part.confidences[:judged]):
            acceptance.add(confidence, i < held)

    def _acceptance(self, sequence: Sequence) -> Acceptance:
        return self.length.greedy if sequence.request.params.temperature == 0 else self.length.sampled

    def _begin(self, sequence: Sequence, limit: int) -> _Draft:
        assert sequence.draw is not None
        return _Draft(sequence, sequence.draw.fork(), limit, self._acceptance(sequence))

    def _limits(self, slices: list[Slice]) -> list[int]:
        """How many tokens each may draft: of its answer, of the context, of KV pages nobody uses, of the step."""
        n = len(slices)
        # Each may begin a page of its own for the token that is due; old prefixes are not given up for drafts.
        pages = max(0, self._core.kv_free_tokens() // PAGE - n) // n
        limits = []
        for sequence in (s.sequence for s in slices):
            known, params = len(sequence.tokens), sequence.request.params
            ends = len(sequence.request.prompt) + (params.max_tokens or self._context)
            room = -known % PAGE + pages * PAGE
            limits.append(max(0, min(self._most_rows // n, ends - known, self._context - known, room + 1) - 1))
        return limits

    def _run(self, drafts: list[_Draft]) -> None:
        acceptance = sum(d.acceptance.mean for d in drafts) / len(drafts)
        worth = self.length.start(len(drafts), acceptance)
        live = drafts
        while live := [d for d in live if self._goes_on(d, len(live), worth)]:
            self._step(live)

    def _goes_on(self, draft: _Draft, together: int, worth: float) -> bool:
        done = len(draft.tokens)
        if done >= draft.limit or draft.sequence.request.abandoned:
            return False
        return self.length.pays(worth, together, draft.survival, draft.acceptance.mean, done)

    def _step(self, live: list[_Draft]) -> None:
        """One more token of each."""
        started = time.perf_counter()
        self._core.step(
            np.array([d.sequence.handle for d in live], np.int32),
            np.ones(len(live), np.int32),
            np.array([d.last for d in live], np.int32),
            np.ones(len(live), np.uint8),
            draft=True,
        )
        for row, draft in enumerate(live):
            try:
                token, logprob = draft.draw(row)
            except HotsetError:  # such as NaN; if the exact logits have it too, the request ends there
                draft.limit = len(draft.tokens)
                continue
            draft.add(token, self._confidence(draft, row, logprob))
        self.length.drafted(len(live), time.perf_counter() - started)
        if self._after_step is not None:
            self._after_step()

    def _confidence(self, draft: _Draft, row: int, logprob: float) -> float:
        """How far ahead the token was: of the second likeliest, or, where chance decides, of all others together."""
        if draft.acceptance is self.length.greedy:
            _, best = self._core.top_logprobs(row, 2)
            return float(best[0] - best[-1])
        chance = min(math.exp(logprob), 1 - 1e-6)
        return math.log1p(chance / (1 - chance))


def _drafts(part: Slice) -> bool:
    """Whether the next token of an answer is all that is due."""
    return part.wants_logits and part.count == 1 and bool(part.sequence.chunks)
