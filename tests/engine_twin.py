"""A small twin of the native core for tests of the scheduler: same pages, and logits from a hash of all tokens.

Any token that is lost, doubled or out of order changes every later logit; any page used beyond the capacity raises, and
so does an exact step upon what a draft left behind.
"""

from __future__ import annotations

import hashlib
from copy import deepcopy
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hotset.engine.backend import PAGE, Draw
from hotset.errors import MemoryBudgetError
from hotset.params import SamplingParams

VOCAB = 40


def logits_after(tokens: list[int]) -> NDArray[np.float32]:
    digest = hashlib.blake2b(np.array(tokens, np.int32).tobytes(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest)).normal(0, 2, VOCAB).astype(np.float32)


def log_softmax(x: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = x.astype(np.float64) - x.max()
    return shifted - np.log(np.exp(shifted).sum())


@dataclass
class _Held:
    tokens: list[int] = field(default_factory=list)
    drafted: int = 0  # of them, at the end, by drafts
    pages: list[int] = field(default_factory=list)


class CoreTwin:
    def __init__(
        self, pages: int, max_step_tokens: int, draft_error: float = 0.0, most_rows: int | None = None
    ) -> None:
        """draft_error: how often a draft's logits are somebody else's. most_rows: of logits in a step."""
        self.max_step_tokens, self.steps, self.drafts = max_step_tokens, 0, 0
        self.most_rows, self.most_seen_rows = most_rows or max_step_tokens, 0
        self._draft_error = draft_error
        self._free = list(range(pages))
        self._uses = [0] * pages
        self._held: dict[int, _Held] = {}
        self._next = 0
        self._logits = np.empty((0, VOCAB), np.float32)
        self.interrupt_at: int | None = None  # number of the step that Ctrl-C hits

    def sequence_new(self) -> int:
        self._next += 1
        self._held[self._next] = _Held()
        return self._next

    def sequence_fork(self, seq: int) -> int:
        new, held = self.sequence_new(), self._held[seq]
        self._held[new] = _Held(list(held.tokens), held.drafted, list(held.pages))
        for page in held.pages:
            self._uses[page] += 1
        return new

    def sequence_free(self, seq: int) -> None:
        self._drop(self._held.pop(seq).pages)

    def sequence_truncate(self, seq: int, tokens: int) -> None:
        held = self._held[seq]
        assert tokens <= len(held.tokens)
        keep = -(-tokens // PAGE)
        self._drop(held.pages[keep:])
        held.drafted = max(0, held.drafted - (len(held.tokens) - tokens))
        held.tokens, held.pages = held.tokens[:tokens], held.pages[:keep]

    def sequence_length(self, seq: int) -> int:
        return len(self._held[seq].tokens)

    def kv_free_tokens(self) -> int:
        return len(self._free) * PAGE

    def step(
        self,
        seqs: NDArray[np.int32],
        counts: NDArray[np.int32],
        tokens: NDArray[np.int32],
        want: NDArray[np.uint8],
        rope_lengths: NDArray[np.int64] | None = None,
        draft: bool = False,
    ) -> int:
        assert len(seqs) == len(set(seqs.tolist())) == len(counts) == len(want) > 0
        assert 0 < len(tokens) == counts.sum() <= self.max_step_tokens and counts.min() > 0
        self.steps += 1
        self.drafts += draft
        if self.steps == self.interrupt_at:
            raise KeyboardInterrupt
        rows, at = [], 0
        for seq, count, wanted in zip(seqs.tolist(), counts.tolist(), want.tolist(), strict=True):
            held = self._held[seq]
            self._reserve(held, count)
            assert draft or not held.drafted, "an exact step upon drafts"
            held.drafted += count if draft else 0
            for token in tokens[at : at + count].tolist():
                held.tokens.append(token)
                if wanted == 2:
                    rows.append(self._logits_after(held.tokens, draft))
            if wanted == 1:
                rows.append(self._logits_after(held.tokens, draft))
            at += count
        self._logits = np.array(rows, np.float32).reshape(-1, VOCAB)
        self.most_seen_rows = max(self.most_seen_rows, len(rows))
        assert len(rows) <= self.most_rows, "more logits than there is memory for"
        return len(rows)

    def _logits_after(self, tokens: list[int], draft: bool) -> NDArray[np.float32]:
        wrong = draft and np.random.default_rng(tokens).random() < self._draft_error
        return logits_after([*tokens, VOCAB] if wrong else tokens)

    def logits(self) -> NDArray[np.float32]:
        return self._logits

    def token_logprobs(self, targets: NDArray[np.int32]) -> NDArray[np.float32]:
        assert len(targets) == len(self._logits)
        values = [log_softmax(row)[t] for row, t in zip(self._logits, targets.tolist(), strict=True)]
        return np.array(values, np.float32)

    def top_logprobs(self, row: int, n: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        values = log_softmax(self._logits[row])
        order = np.argsort(-values, kind="stable")[:n]
        return order.astype(np.int32), values[order].astype(np.float32)

    def _reserve(self, held: _Held, count: int) -> None:
        length = len(held.tokens)
        if length % PAGE and self._uses[held.pages[-1]] > 1:  # shared: copied before it is written
            self._drop([held.pages.pop()])
            held.pages.append(self._take())
        while len(held.pages) * PAGE < length + count:
            held.pages.append(self._take())

    def _take(self) -> int:
        if not self._free:
            raise MemoryBudgetError("no free page")
        page = self._free.pop()
        self._uses[page] = 1
        return page

    def _drop(self, pages: list[int]) -> None:
        for page in pages:
            self._uses[page] -= 1
            if self._uses[page] == 0:
                self._free.append(page)


class _Random:
    """Draws by the Gumbel trick from a stream of its own."""

    def __init__(self, core: CoreTwin, temperature: float, seed: int) -> None:
        self._core, self._temperature, self._rng = core, temperature, np.random.default_rng(seed)

    def __call__(self, row: int) -> tuple[int, float]:
        return choose(self._core.logits()[row], self._temperature, self._rng)

    def fork(self) -> Draw:
        copy = _Random(self._core, self._temperature, 0)
        copy._rng = deepcopy(self._rng)
        return copy


def choose(row: NDArray[np.float32], temperature: float, rng: np.random.Generator) -> tuple[int, float]:
    noise = rng.gumbel(size=VOCAB) * temperature
    token = int((row + noise).argmax())
    return token, float(log_softmax(row)[token])


def draw_factory(core: CoreTwin):  # type: ignore[no-untyped-def]
    def make(params: SamplingParams, seed: int, prompt: list[int]) -> Draw:
        return _Random(core, params.temperature, seed)

    return make


class Letters:
    """A decoder in which every token is one letter."""

    def push(self, token: int) -> str:
        return letter(token)

    def flush(self) -> str:
        return ""


def letter(token: int) -> str:
    return chr(ord("A") + token)
