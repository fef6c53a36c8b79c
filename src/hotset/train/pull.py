"""How strongly neurons are pulled to zero: as strongly as the wanted share of zeros takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

_GAIN = 2.0  # at 1 % too few zeros the weight grows by 2 % a step
_LEAST, _MOST = 1e-5, 1e3


@dataclass(slots=True)
class Pull:
    """The weight of the pull in the loss, led by the zeros of each step."""

    weight: float = 0.01
    start: float | None = None  # share of zeros before the first step

    def follow(self, zeros: float, wanted: float) -> None:
        """zeros: share in the step just done; wanted: share in the next."""
        self.weight = min(max(self.weight * math.exp(_GAIN * (wanted - zeros)), _LEAST), _MOST)
