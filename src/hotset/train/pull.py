"""How strongly the neurons of each layer are pulled to zero: as strongly as its wanted share of zeros takes.

One weight for all empties layers that the loss needs least at first: of five, two had no neuron left (see the log).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# A weight moves zeros for as long as it lasts, so one that follows what they lack swings, and neurons that a swing has
# emptied stay so. What that changes by counts as well: a PI controller of the weight's logarithm.
_GAIN = 2.0  # at 1 % too few zeros the weight grows by 2 % a step
_DAMPING = 60.0  # zeros that come nearer by 1 % in a step make it smaller by a factor of exp(0.6)
_LEAST, _MOST = 1e-5, 1e3
_RANGE = (0.5, 0.97)  # zeros of a layer at least and at most, where more or fewer follow from its start


@dataclass(slots=True)
class Pull:
    """The weight of one layer's pull in the loss, led by its zeros in each step."""

    weight: float = 0.01
    start: float | None = None  # share of zeros before the first step
    short: float = 0.0  # zeros wanted but not there in the step before

    def follow(self, zeros: float, wanted: float) -> None:
        """zeros: share in the step just done; wanted: share in the next."""
        short = wanted - zeros
        change = _GAIN * short + _DAMPING * (short - self.short)
        self.weight, self.short = min(max(self.weight * math.exp(change), _LEAST), _MOST), short


def goals(starts: Sequence[float], wanted: float) -> list[float]:
    """Zeros wanted of each layer: all keep their distances from the mean, which moves to `wanted`."""
    mean = sum(starts) / len(starts)
    least, most = min(_RANGE[0], wanted), max(_RANGE[1], wanted)
    return [min(max(start + wanted - mean, least), most) for start in starts]
