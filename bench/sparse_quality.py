"""What prediction changed in the tokens that a run decoded, beside what every neuron gives: recall, divergence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotset import LLM, _core

_ROWS = 16  # of an exact step: more than the engine looks single neurons up for, so all are computed
_MOST = 3 * _ROWS  # tokens that are looked at
Floats = NDArray[np.float32]
Bits = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Quality:
    """Of decoded tokens, given the same tokens before them."""

    tokens: int
    recall: float  # share of the active neurons that were computed
    over_prediction: float  # neurons computed for each active one
    divergence: float  # Kullback-Leibler, of the next token's distribution from the exact one, nats, mean
    agreement: float  # share of the tokens after which the likeliest next one is the exact one


def quality(llm: LLM, prompt: Sequence[int], decoded: Sequence[int]) -> Quality | None:
    """Decodes the tokens again, one by one as predicted and many at a time exactly. Changes the neurons in memory.

    None for fewer than 16 tokens.
    """
    decoded = decoded[: min(len(decoded) // _ROWS * _ROWS, _MOST)]
    if not decoded:
        return None
    before = llm.core.sparse_stats["candidates"]
    predicted, fired = _run(llm.core, prompt, decoded, rows=1)
    candidates = llm.core.sparse_stats["candidates"] - before
    exact, active = _run(llm.core, prompt, decoded, rows=_ROWS)
    count = _count(active)
    return Quality(
        tokens=len(decoded),
        recall=_count(active & fired) / max(count, 1),
        over_prediction=candidates / max(count, 1),
        divergence=float(np.mean([_divergence(p, q) for p, q in zip(exact, predicted, strict=True)])),
        agreement=float((exact.argmax(axis=1) == predicted.argmax(axis=1)).mean()),
    )


def _run(core: _core.Engine, prompt: Sequence[int], decoded: Sequence[int], rows: int) -> tuple[Floats, Bits]:
    """Logits after each decoded token [tokens, vocab], and its active neurons [tokens, layers, bytes]."""
    seq = core.sequence_new()
    for at in range(0, len(prompt), _ROWS):
        step(core, seq, prompt[at : at + _ROWS])
    core.record(activations=True)
    logits = []
    for at in range(0, len(decoded), rows):
        step(core, seq, decoded[at : at + rows])
        logits.append(core.logits().copy())
    fired = core.take_record()[0]
    core.record(activations=False)
    core.sequence_free(seq)
    return np.concatenate(logits), fired


def _divergence(exact: Floats, predicted: Floats) -> float:
    p, q = (x - np.logaddexp.reduce(x) for x in (exact.astype(np.float64), predicted.astype(np.float64)))
    return float(np.exp(p) @ (p - q))


def step(core: _core.Engine, seq: int, tokens: Sequence[int]) -> None:
    ids = np.array(tokens, np.int32)
    core.step(np.array([seq], np.int32), np.array([len(ids)], np.int32), ids, np.array([2], np.uint8))


def _count(bits: Bits) -> int:
    return int(np.unpackbits(bits).sum())
