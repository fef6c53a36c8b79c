"""What predictors lose under a budget, beside what they lost where they were calibrated. Pure functions."""

from __future__ import annotations

from hotset.planner.plan import Placement
from hotset.planner.sizes import NeuronSizes

# Where predictors are calibrated: share of the neurons that there is room for, and share of these that stay.
MEMORY, HOT = 0.5, 0.9
# Where all of the neurons are missing, the divergence is 0.45 times as many times larger as energy is given up more
# for them: found on a 7B, from all of its neurons in memory to a twelfth of them (docs/decisions/log.md).
_ALL_MISSING, _POWER = 0.45, 1.2


def growth(absent: float, fetch: float) -> float:
    """Divergence, to that with all neurons in memory.

    absent: share of the neurons worth computing that are not in memory. fetch: energy given up where neurons are
    missing, to that where they are in memory.
    """
    return 1 + _ALL_MISSING * (fetch - 1) * float(absent**_POWER)


def calibrated(sizes: NeuronSizes) -> Placement:
    """What is in memory where predictors are calibrated."""
    kept = int(MEMORY * sizes.neurons)
    hot = int(HOT * kept / sizes.layers)
    return Placement("low-rank", (hot,) * sizes.layers, kept - hot * sizes.layers)
