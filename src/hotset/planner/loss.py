"""What predictors lose under a budget, beside what they lost where they were calibrated. Pure functions."""

from __future__ import annotations

from hotset.planner.placement import Placement
from hotset.planner.sizes import NeuronSizes

# Where predictors are calibrated: share of the neurons that there is room for, and share of these that stay.
MEMORY, HOT = 0.5, 0.9
# Where all of the neurons are missing, the divergence is 0.45 times as many times larger as energy is given up more
# for them, at an energy of 2.5e-4. Where none is, it grows as about the root of the energy, where all are as the energy
# itself. Found on a 7B, from all of its neurons in memory to a fourteenth of them (docs/decisions/log.md).
_ALL_MISSING, _POWER = 0.45, 1.2
_AT, _STEEPER = 2.5e-4, 0.55
_TRIED = 0.2, 4.0  # times that energy


def growth(absent: float, fetch: float, energy: float) -> float:
    """Divergence, to that with all neurons in memory.

    absent: share of the neurons worth computing that are not in memory. fetch: energy given up where neurons are
    missing, to that where they are in memory, which is `energy`.
    """
    steeper = min(max(energy / _AT, _TRIED[0]), _TRIED[1]) ** (_STEEPER * absent**2)
    return 1 + _ALL_MISSING * (fetch - 1) * float(absent**_POWER * steeper)


def calibrated(sizes: NeuronSizes) -> Placement:
    """What is in memory where predictors are calibrated."""
    kept = int(MEMORY * sizes.neurons)
    hot = int(HOT * kept / sizes.layers)
    return Placement("low-rank", (hot,) * sizes.layers, kept - hot * sizes.layers)
