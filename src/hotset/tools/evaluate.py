"""Perplexity on a text, cut into chunks as llama-perplexity does, so that the two can be compared."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hotset.errors import InputError
from hotset.formats.progress import Progress, silent

if TYPE_CHECKING:
    from hotset import _core

CONTEXT = 512


@dataclass(frozen=True, slots=True)
class Perplexity:
    value: float
    error: float  # standard error of `value`
    chunks: int
    scored: int  # tokens whose probability counted


def perplexity(
    engine: _core.Engine,
    ids: NDArray[np.int32],
    *,
    context: int = CONTEXT,
    chunks: int | None = None,
    bos_id: int | None = None,
    progress: Progress = silent,
) -> Perplexity:
    """exp of the mean negative log probability of the second half of every chunk.

    Args:
        ids: the whole text, [tokens]. What does not fill a last chunk is left out.
        context: tokens of a chunk; its first half is only read.
        chunks: how many, from the start; None for all.
        bos_id: replaces the first token of every chunk, for models whose tokenizer adds it.
    Raises: InputError if the text has less than one chunk.
    Source: tools/perplexity of llama.cpp.
    """
    available = len(ids) // context
    if available < 1:
        raise InputError(f"the text has {len(ids)} tokens; perplexity wants at least one chunk of {context}")
    wanted = min(chunks or available, available)
    losses = []
    for index in range(wanted):
        chunk = ids[index * context : (index + 1) * context].copy()
        if bos_id is not None:
            chunk[0] = bos_id
        losses.append(_second_half(engine, chunk))
        progress(index + 1, wanted, "chunks")
    return _summary(np.concatenate(losses), wanted)


def _second_half(engine: _core.Engine, chunk: NDArray[np.int32]) -> NDArray[np.float64]:
    """-log p of the tokens after the middle, given all before them; the last position predicts nothing."""
    half = len(chunk) // 2
    seq = engine.sequence_new()
    try:
        _step(engine, seq, chunk[:half], want=0)
        _step(engine, seq, chunk[half:], want=2)
        targets = np.append(chunk[half + 1 :], 0).astype(np.int32)
        return -engine.token_logprobs(targets)[:-1].astype(np.float64)
    finally:
        engine.sequence_free(seq)


def _step(engine: _core.Engine, seq: int, ids: NDArray[np.int32], want: int) -> None:
    seqs, counts = np.array([seq], np.int32), np.array([len(ids)], np.int32)
    engine.step(seqs, counts, np.ascontiguousarray(ids), np.array([want], np.uint8))


def _summary(losses: NDArray[np.float64], chunks: int) -> Perplexity:
    value = math.exp(losses.mean())
    spread = losses.std() / math.sqrt(max(len(losses) - 1, 1))
    return Perplexity(value, value * spread, chunks, len(losses))
