"""Text that the model writes itself: what it is run on, as the words it has written are those it reads next.

A text of others covers only a part of that. Predictors fitted on WikiText alone lost four times as much on what a
model with alike but unlike tokens wrote (docs/decisions/log.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from hotset import _core
from hotset.formats.progress import Progress
from hotset.tools.profile_text import Window

TOGETHER = 32  # texts written at once: their steps cost little more than those of one
_PROMPT = 16  # tokens that a text begins with; with those written 256, whole blocks of the KV cache
_LENGTH = 240  # tokens that are written to it


def kv_tokens(tokens: int, context: int) -> int:
    """That `continuations` of so many keep at once."""
    return min(TOGETHER, -(-tokens // _length(context))) * (_PROMPT + _LENGTH)


def _length(context: int) -> int:
    """Tokens written to each text."""
    return min(_LENGTH, context - _PROMPT)


def continuations(
    core: _core.Engine, texts: Sequence[Window], tokens: int, never: Sequence[int], context: int, progress: Progress
) -> list[Window]:
    """Beginnings of `texts` and how the model goes on, sampled from its distribution as it is, about `tokens` in all.

    core: with room for kv_tokens() and steps of 512 tokens. never: tokens that would end a text. context: of the model.
    """
    draw = _Sampled()
    length = _length(context)
    count = -(-tokens // length)
    found: list[Window] = []
    for first in range(0, count, TOGETHER):
        chosen = [texts[i % len(texts)][:_PROMPT] for i in range(first, min(first + TOGETHER, count))]
        found += go_on(core, chosen, length, never, draw)
        progress(len(found), count, "texts written by the model")
    return found


def likeliest(logits: NDArray[np.float32]) -> Window:
    """[rows]."""
    return np.asarray(logits.argmax(axis=1), np.int32)


def go_on(
    core: _core.Engine,
    beginnings: Sequence[Window],
    length: int,
    never: Sequence[int],
    draw: Callable[[NDArray[np.float32]], Window] = likeliest,
) -> list[Window]:
    """Each continued by `length` tokens, all at once. draw: from logits [rows, vocab]."""
    seqs = np.array([core.sequence_new() for _ in beginnings], np.int32)
    sizes = np.array([len(text) + length for text in beginnings], np.int64)
    parts = [list(beginnings)]
    for _ in range(length):
        counts = np.array([len(text) for text in parts[-1]], np.int32)
        core.step(seqs, counts, np.concatenate(parts[-1]), np.ones(len(seqs), np.uint8), sizes)
        drawn = draw(without(core.logits(), never))
        parts.append([drawn[i : i + 1] for i in range(len(drawn))])
    for seq in seqs:
        core.sequence_free(int(seq))
    return [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]


def without(logits: NDArray[np.float32], never: Sequence[int]) -> NDArray[np.float32]:
    """Logits of which some tokens have none."""
    found = logits.copy()
    found[:, list(never)] = -np.inf
    return found


class _Sampled:
    """Draws one token a row, by the largest of logit + Gumbel noise; [rows]."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)

    def __call__(self, logits: NDArray[np.float32]) -> Window:
        noise = np.log(self._rng.standard_exponential(logits.shape)).astype(np.float32)  # in f32 some would be 0
        return likeliest(logits - noise)
