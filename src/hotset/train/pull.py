"""How strongly the neurons of each layer are pulled to zero: as strongly as its wanted share of zeros takes.

One weight for all empties layers that the loss needs least at first: of five, two had no neuron left (see the log).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_GAIN = 2.0  # at 1 % too few zeros the weight grows by 2 % a step
_LEAST, _MOST = 1e-5, 1e3
_RANGE = (0.5, 0.97)  # zeros of a layer at least and at most, where more or fewer follow from its start


@dataclass(slots=True)
class Pull:
    """The weight of one layer's pull in the loss, led by its zeros in each step."""

    weight: float = 0.01
    start: float | None = None  # share of zeros before the first step

    def follow(self, zeros: float, wanted: float) -> None:
        """zeros: share in the step just done; wanted: share in the next."""
        self.weight = min(max(self.weight * math.exp(_GAIN * (wanted - zeros)), _LEAST), _MOST)


def goals(starts: Sequence[float], wanted: float) -> list[float]:
    """Zeros wanted of each layer: all keep their distances from the mean, which moves to `wanted`."""
    mean = sum(starts) / len(starts)
    least, most = min(_RANGE[0], wanted), max(_RANGE[1], wanted)
    return [min(max(start + wanted - mean, least), most) for start in starts]
