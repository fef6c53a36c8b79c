"""What activations are like: share of zeros, concentration, reuse between tokens, misses of caches. Pure functions.

`active` is bool [tokens, neurons] of one layer throughout, tokens in the order of the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Active = NDArray[np.bool_]
Counts = NDArray[np.int64]


def zeros(active: Active) -> float:
    """Share of neurons that a token leaves at zero, mean over tokens."""
    return 1.0 - float(active.mean())


def union_counts(active: Active, batch: int) -> Counts:
    """For each neuron, in how many of the tokens // batch steps of `batch` consecutive tokens any has it active."""
    steps = len(active) // batch
    counts: Counts = (
        active[: steps * batch].reshape(steps, batch, active.shape[1]).any(axis=1).sum(axis=0, dtype=np.int64)
    )
    return counts


def concentration(counts: Counts, share: float = 0.8) -> float:
    """The smallest part of the neurons that makes up `share` of all activations; 0 where there are none.

    Source: the measure of PowerInfer's insight 1 (arXiv:2312.12456). All counts together give the model-wide figure.
    """
    curve = concentration_curve(counts)
    return float(np.searchsorted(curve, share * (1 - 1e-12)) / counts.size) if counts.any() else 0.0


def concentration_curve(counts: Counts) -> NDArray[np.float64]:
    """[neurons + 1]: share of all activations that the i most active neurons have."""
    sums = np.concatenate([[0], np.cumsum(np.sort(counts, axis=None)[::-1])])
    return sums / max(int(sums[-1]), 1)


def reuse(active: Active, window: int) -> float:
    """Share of a token's active neurons that one of the `window` tokens before it had active, too.

    The first `window` tokens have too few before them and are left out. 0 where nothing is active.
    """
    seen = np.zeros(active.shape, bool)
    for back in range(1, window + 1):
        seen[window:] |= active[window - back : len(active) - back]
    later = active[window:]
    return float((later & seen[window:]).sum() / max(int(later.sum()), 1))


def lru_misses(active: Active, slots: int) -> Counts:
    """Misses of each token under LRU with room for `slots` neurons, empty at first; [tokens].

    A layer's neurons are asked for all at once, so what is there when the token comes is hit, whatever the order. Of
    one token's neurons those of lower index count as used later, and stay if there are more than fit.
    """
    recent = np.empty(0, np.intp)  # what the cache holds, most recent first
    misses = np.empty(len(active), np.int64)
    for token, wanted in enumerate(active):
        hits = wanted[recent]
        now = np.flatnonzero(wanted)
        misses[token] = now.size - np.count_nonzero(hits)
        recent = np.concatenate([now, recent[~hits]])[:slots]
    return misses


def belady_misses(active: Active, slots: int) -> Counts:
    """Misses of each token under the best policy there can be, which knows the future; [tokens].

    After each token the `slots` neurons stay, of those held and those just read, that are wanted again soonest.
    Source: Belady 1966, with bypass: a neuron may be computed without being kept.
    """
    held = np.zeros(active.shape[1], bool)
    misses = np.empty(len(active), np.int64)
    for token, (wanted, next_use) in enumerate(zip(active, _next_uses(active), strict=True)):
        misses[token] = np.count_nonzero(wanted & ~held)
        candidates = np.flatnonzero((wanted | held) & (next_use < len(active)))
        if candidates.size > slots:
            candidates = candidates[np.argpartition(next_use[candidates], slots)[:slots]] if slots else candidates[:0]
        held[:] = False
        held[candidates] = True
    return misses


def _next_uses(active: Active) -> Iterator[NDArray[np.int32]]:
    """For each token, when each neuron is active next after it; len(active) = never."""
    tokens, neurons = active.shape
    after = [np.flatnonzero(active[:, k]) for k in range(neurons)]
    uses = np.concatenate([*after, [tokens]]).astype(np.int32)
    ends = np.cumsum([len(a) for a in after])
    position = ends - [len(a) for a in after]  # of each neuron's next use, in `uses`
    for wanted in active:
        position += wanted
        yield np.where(position < ends, uses[np.minimum(position, uses.size - 1)], np.int32(tokens))


def miss_rate(misses: Counts, active: Active, warm_up: int = 0) -> float:
    """Missed share of active neurons after `warm_up` tokens, which fill the cache."""
    return float(misses[warm_up:].sum() / max(int(active[warm_up:].sum()), 1))


def energy_kept(values: NDArray[np.floating], keep: float = 0.5) -> float:
    """Share of a token's sum of squares that the larger `keep` of its non-zero values carry, mean over tokens.

    values: activation times the norm of the down column, [tokens, neurons].
    """
    ordered = np.sort(np.square(values, dtype=np.float64), axis=1)[:, ::-1].cumsum(axis=1)
    kept = np.rint(np.count_nonzero(values, axis=1) * keep).astype(np.intp)
    used = np.flatnonzero((kept > 0) & (ordered[:, -1] > 0))
    return float((ordered[used, kept[used] - 1] / ordered[used, -1]).mean()) if used.size else 0.0


def autocorrelation(x: NDArray[np.floating], lags: Sequence[int]) -> list[float]:
    """Correlation of what changes in x [tokens, n] with itself `lag` tokens later, all dimensions together."""
    changing = x - x.mean(axis=0)
    power = float(np.square(changing).mean())
    return [float((changing[lag:] * changing[: len(x) - lag]).mean()) / power for lag in lags]
