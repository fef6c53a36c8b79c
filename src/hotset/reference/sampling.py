"""The distribution a sampler draws from: twin of native/sampling/sampler.cc, by sorting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hotset.reference.arithmetic import Array


@dataclass(frozen=True, slots=True)
class Filters:
    """The parameters of `_core.Sampler` that shape the distribution."""

    temperature: float = 1.0  # 0 = greedy
    top_k: int = 0  # 0 = off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)


def distribution(
    logits: Array,
    filters: Filters,
    *,
    prompt: Sequence[int] = (),
    output: Sequence[int] = (),
    allowed: Array | None = None,
) -> NDArray[np.float64]:
    """Probability of every token, [vocab].

    Order: mask, bias, penalties, temperature, top-k, top-p, min-p. Of equal logits the lower token stays.
    """
    x = adjusted(np.asarray(logits, dtype=np.float64), filters, prompt, output)
    if allowed is not None:
        x = np.where(allowed, x, -np.inf)
    if filters.temperature == 0:
        one_hot: Array = np.eye(x.size)[int(np.argmax(x))]
        return one_hot
    order = np.argsort(-x, kind="stable")
    if filters.top_k:
        order = order[: filters.top_k]
    p = np.exp((x[order] - x[order[0]]) / filters.temperature)  # best first, its weight 1
    keep = min(int(np.searchsorted(np.cumsum(p), filters.top_p * p.sum())) + 1, p.size) if filters.top_p < 1 else p.size
    keep = min(keep, int(np.count_nonzero(p >= filters.min_p)))
    out = np.zeros(x.size)
    out[order[:keep]] = p[:keep] / p[:keep].sum()
    return out


def adjusted(x: Array, filters: Filters, prompt: Sequence[int], output: Sequence[int]) -> NDArray[np.float64]:
    """Logits after bias and penalties. Repetition (CTRL) sees prompt and output, the others (OpenAI) the output."""
    x = x.copy()
    for token, bias in filters.logit_bias.items():
        x[token] += bias
    for token in {*prompt, *output}:
        x[token] *= filters.repetition_penalty if x[token] < 0 else 1.0 / filters.repetition_penalty
    for token, count in Counter(output).items():
        x[token] -= filters.presence_penalty + filters.frequency_penalty * count
    return x
