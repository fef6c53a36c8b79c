"""Which share of zeros each layer gets, so that a wanted share costs least. Pure functions.

What a layer adds to the divergence is taken as its sensitivity times the energy it loses; layers are taken to add up.
Both are checked by measuring the whole afterwards. Best is then the spread at which the next zero costs the same in
every layer (Lagrange), for which one number is searched.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hotset.tools.threshold_scores import EDGES, Curve

MOST_ZEROS = 0.95  # of one layer
_STEPS = 60  # halvings of the multiplier's range, 2^-60 to 2^60 in its logarithm


def spread(curves: Sequence[Curve], sensitivity: Sequence[float], zeros: float) -> NDArray[np.float64]:
    """Share of zeros of each layer, their mean at most `zeros` and as near to it as thresholds can be told apart.

    sensitivity: divergence for each unit of energy lost, > 0.
    """
    shares = np.stack([c.share for c in curves])
    costs = np.stack([c.lost * s for c, s in zip(curves, sensitivity, strict=True)])
    costs = np.where(shares <= MOST_ZEROS, costs, np.inf)
    low, high = -200.0, 200.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if _best(shares, costs, middle).mean() > zeros else (middle, high)
    return _best(shares, costs, low)


def _best(shares: NDArray[np.float64], costs: NDArray[np.float64], log2_price: float) -> NDArray[np.float64]:
    """By layer the share at which cost minus price times share is least."""
    at = np.argmin(costs - np.exp2(log2_price) * shares, axis=1)
    return np.asarray(shares[np.arange(len(shares)), at])


def threshold_at(curve: Curve, share: float) -> float:
    """The score below which this share lies; 0 where even the least threshold has more."""
    index = curve.at(share)
    return float(EDGES[index]) if index >= 0 else 0.0
