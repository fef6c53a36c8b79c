"""Decides which sequences compute how many tokens in the next step.

Goals: a running answer gets its token in every step, whatever long prompt has just come; prompts fill the rest of the
step in order of arrival; KV pages never run out in the middle of a step, and its logits fit their memory. If pages are
short, first old prefixes go, then the youngest sequence gives its pages back and is computed again later. The oldest
always advances, so all end.
Source: chunked prefill mixed with decode (Sarathi-Serve, arXiv:2403.02310), preemption by recomputation
(PagedAttention, arXiv:2309.06180).
"""

from __future__ import annotations

from dataclasses import dataclass

from hotset.engine.backend import PAGE, Core
from hotset.engine.prefix_cache import PrefixCache
from hotset.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Slice:
    """`count` tokens of a sequence, from the first that is not computed, and a draft of what may follow them."""

    sequence: Sequence
    count: int
    draft: tuple[int, ...] = ()  # only after the last token known
    confidences: tuple[float, ...] = ()  # of the draft's tokens

    @property
    def wants_logits(self) -> bool:
        return self.count == self.sequence.pending

    @property
    def rows(self) -> int:
        """Of logits: after the last token, and after each of the draft."""
        return 1 + len(self.draft) if self.wants_logits else 0


class Scheduler:
    def __init__(
        self, core: Core, cache: PrefixCache, max_step_tokens: int, most_rows: int, *, reuse: bool = True
    ) -> None:
        """most_rows: of logits in a step, at most max_step_tokens. reuse: whether new prompts may begin with pages of
        finished sequences."""
        self._core, self._cache = core, cache
        self._max_step_tokens, self._most_rows, self._reuse = max_step_tokens, most_rows, reuse
        self._active: list[Sequence] = []  # in order of arrival; those without a handle wait
        self._turns = 0  # slices given out so far

    @property
    def active(self) -> tuple[Sequence, ...]:
        return tuple(self._active)

    def add(self, sequence: Sequence) -> None:
        self._active.append(sequence)
        self._active.sort(key=lambda s: (s.request.number, s.index))

    def remove(self, sequence: Sequence, *, keep: bool) -> None:
        """Takes a sequence out and frees its pages, or keeps them for prompts that begin alike."""
        self._active.remove(sequence)
        if sequence.handle is not None:
            self._core.sequence_truncate(sequence.handle, sequence.computed)  # a draft may have gone further
            if keep and self._reuse:
                self._cache.keep(sequence.handle, sequence.tokens[: sequence.computed])
            else:
                self._core.sequence_free(sequence.handle)
        sequence.handle = sequence.draw = None

    def plan(self) -> list[Slice]:
        """The next step; at least one slice if any sequence is active.

        Answers come first, those longest unserved before others; then prompts in order of arrival.
        """
        prompts = [s for s in self._active if s.handle is None or s.pending > 1]
        answers = sorted((s for s in self._active if s not in prompts), key=lambda s: s.served)
        if prompts:  # however many answers run, prompts keep an eighth of the step, and of its rows
            answers = answers[: self._most_rows - self._most_rows // 8]
        # If none of these has room, the oldest takes it from the others.
        return self._fill([*answers, *prompts]) or self._fill([s for s in self._active if s.handle is not None][:1])

    def _fill(self, sequences: list[Sequence]) -> list[Slice]:
        """Gives each sequence, in this order, what it can use and what step, pages and rows of logits still hold."""
        slices: list[Slice] = []
        tokens, rows, pages, full = self._max_step_tokens, self._most_rows, 0, False
        for sequence in sequences:
            if tokens == 0:
                break
            if sequence.handle is None:
                full = full or not self._admit(sequence, pages)
                if full:  # those who came later wait too
                    continue
            # Without its last token a prompt needs no logits.
            count = min(tokens, sequence.pending if rows else sequence.pending - 1)
            if count == 0:
                continue
            needed = _pages_needed(sequence, count)
            if not self._make_room(pages + needed, sequence, slices):
                continue
            slices.append(Slice(sequence, count))
            self._turns += 1
            sequence.served = self._turns
            tokens, rows, pages = tokens - count, rows - slices[-1].rows, pages + needed
        return slices

    def _admit(self, sequence: Sequence, pages: int) -> bool:
        """Gives a waiting sequence its native one, if its whole prompt has room beside what is planned.

        Pages of running sequences are not taken for it; with nothing else to do, it is admitted anyway.
        """
        found = self._cache.fork_longest(sequence.tokens) if self._reuse else None
        handle, computed = found or (None, 0)
        wanted = _pages(len(sequence.tokens) + 1) - computed // PAGE
        while self._free_pages() - pages < wanted and self._cache.evict():
            pass
        if self._free_pages() - pages < wanted and any(s.handle is not None for s in self._active):
            if handle is not None:
                self._core.sequence_free(handle)
            return False
        sequence.handle = self._core.sequence_new() if handle is None else handle
        sequence.computed, sequence.shares_page = computed, computed > 0
        sequence.request.cached_tokens = max(sequence.request.cached_tokens, computed)
        return True

    def _make_room(self, pages: int, sequence: Sequence, slices: list[Slice]) -> bool:
        """Whether `pages` are free, after old prefixes and, if need be, younger sequences gave theirs."""
        while self._free_pages() < pages:
            if self._cache.evict():
                continue
            planned = {s.sequence for s in slices}
            younger = self._active[self._active.index(sequence) + 1 :]
            holders = [s for s in younger if s.handle is not None and s not in planned]
            if not holders:
                # Alone, it fits: the context is no longer than the cache, and no page is shared.
                return all(s.handle is None or s is sequence for s in self._active)
            self._preempt(holders[-1])
        return True

    def _preempt(self, sequence: Sequence) -> None:
        assert sequence.handle is not None
        self._core.sequence_free(sequence.handle)
        sequence.handle, sequence.computed, sequence.shares_page = None, 0, False

    def _free_pages(self) -> int:
        return self._core.kv_free_tokens() // PAGE


def _pages(tokens: int) -> int:
    return -(-tokens // PAGE)


def _pages_needed(sequence: Sequence, count: int) -> int:
    copied = sequence.shares_page and sequence.computed % PAGE != 0
    return _pages(sequence.computed + count) - _pages(sequence.computed) + copied
