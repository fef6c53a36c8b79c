"""Small things that the parts of the synthetic model share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Random = Callable[[str], np.random.Generator]  # a generator for each name, the same for each seed
Stored = Callable[[Floats], Floats]  # a matrix as the store will hold it


def rms_norm(x: Floats, eps: float) -> Floats:
    """x [tokens, n] with mean square 1; norm weights are all 1 in a synthetic model."""
    y: Floats = x / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + np.float32(eps))
    return y


def changing_rms(x: Floats) -> float:
    """Size of what changes from token to token in x [tokens, n], per element."""
    return float(np.sqrt(np.square(x - x.mean(axis=0)).mean()))


def away_from(rows: Floats, direction: Floats) -> Floats:
    """rows [n, cols] without their part along `direction` [cols]; changes `rows`."""
    rows -= np.outer(rows @ direction, direction / np.square(direction).sum())
    return rows


def scale_for_correlation(stream: Floats, added: Floats, wanted: float, least: float, most: float) -> float:
    """The s for which stream + s * added correlates by `wanted` from token to token, within [least, most].

    Both [tokens, n]. `added` is the slower: more of it, more correlation. The condition, lagged power = wanted * power,
    is a quadratic equation in s.
    """
    h, o = stream - stream.mean(axis=0), added - added.mean(axis=0)

    def excess(a: Floats, b: Floats) -> float:
        lagged = float((a[1:] * b[:-1]).sum(dtype=np.float64) + (b[1:] * a[:-1]).sum(dtype=np.float64))
        return lagged / 2 - wanted * float((a * b).sum(dtype=np.float64))

    roots = np.roots([excess(o, o), 2 * excess(h, o), excess(h, h)])
    positive = [float(r.real) for r in roots if abs(r.imag) < 1e-9 and r.real > 0]
    reached = excess(h, h) >= 0
    return float(np.clip(0.0 if reached else min(positive, default=most), least, most))
