"""Which neurons are active together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BLOCK = 256  # neurons compared with all others at once: 15 MB an array for a layer of 14336


def neighbours(active: NDArray[np.bool_], k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """For each neuron the `k` others nearest to it, and how near they are.

    Nearness is the Jaccard index: tokens in which both are active over tokens in which either is. It prefers partners
    of like frequency, so that not all of a layer name its few hottest neurons.

    Args:
        active: [tokens, neurons], tokens far enough apart to be independent.
    Returns: indices [neurons, k], nearest first, a neuron itself where it has fewer partners; nearness [neurons, k], 0
        for such.
    """
    neurons = active.shape[1]
    k = min(k, neurons - 1)
    ids = np.repeat(np.arange(neurons, dtype=np.int32)[:, None], k, axis=1)
    near = np.zeros((neurons, k), np.float32)
    used = np.flatnonzero(active.any(axis=0))
    x = active[:, used].astype(np.float32)
    counts = x.sum(axis=0)
    for start in range(0, used.size, _BLOCK):
        rows = slice(start, start + _BLOCK)
        both = x[:, rows].T @ x  # [block, used], whole numbers far below 2^24: exact
        jaccard = both / (counts[rows, None] + counts - both)
        jaccard[np.arange(len(both)), np.arange(start, start + len(both))] = 0
        best, value = _largest(jaccard, min(k, used.size))
        ids[used[rows], : best.shape[1]] = np.where(value > 0, used[best], used[rows, None])
        near[used[rows], : best.shape[1]] = value
    return ids, near


def working_bytes(tokens: int, neurons: int) -> int:
    """Most memory that `neighbours` takes besides its arguments and its result."""
    return 4 * tokens * neurons + 32 * _BLOCK * neurons


def _largest(x: NDArray[np.float32], k: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Indices and values of the `k` largest of each row, largest first."""
    some = np.sort(np.argpartition(-x, max(k - 1, 0), axis=1)[:, :k], axis=1)
    values = np.take_along_axis(x, some, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(some, order, axis=1), np.take_along_axis(values, order, axis=1)
