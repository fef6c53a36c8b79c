"""The statistics that synthetic sparse models are made to have, and the parameters that give them.

A latent (gate or up before its ReLU) is mean + noise: the mean is the neuron's own and makes neurons hot or cold, the
noise changes from token to token. Everything below is in units of the noise. docs/explanation/synthetic-workload.md
says where the numbers come from.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Workload:
    name: str
    zeros: float  # mean over layers
    zeros_range: tuple[float, float]  # of the first layer and of the second
    mean_spread: float  # standard deviation of means over neurons
    mean_correlation: float  # between a neuron's gate and up means
    noise_correlation: float  # between a neuron's gate and up noise
    token_correlation: float  # of the FFN's input with that of the next token
    decays: tuple[float, ...]  # tokens after which a head's attention has fallen by e; heads take turns
    predictable: float  # share of the noise's variance in the directions that a low-rank predictor can find
    confidence: float = 0.0  # mean probability of the token that is meant to follow; 0: the head is noise
    targets: dict[str, float] = field(default_factory=dict)  # by the names of `Measured`

    def zeros_by_layer(self, layers: int) -> NDArray[np.float64]:
        """The first layer is the least sparse, the second the sparsest, then zeros fall evenly; the mean is kept."""
        first, second = self.zeros_range
        if layers < 3:
            return np.full(layers, self.zeros)
        last = 2 * (self.zeros * layers - first) / (layers - 1) - second
        return np.concatenate([[first], np.linspace(second, last, layers - 1)])


PUBLISHED = Workload(
    name="published",
    zeros=0.90,
    zeros_range=(0.78, 0.94),
    mean_spread=1.0,
    mean_correlation=0.5,
    noise_correlation=0.3,
    token_correlation=0.50,
    decays=(2.0, 4.0, 8.0, 16.0),
    predictable=0.66,
    confidence=0.5,
    targets={
        "zeros": 0.90,
        "concentration": 0.27,
        "reuse_5": 0.775,
        "lru_miss": 0.05,
        "recall": 0.92,
        "over_prediction": 2.0,
    },
)
HARD = Workload(
    name="hard",
    zeros=0.91,
    zeros_range=(0.81, 0.95),
    mean_spread=0.40,
    mean_correlation=0.3,
    noise_correlation=0.2,
    token_correlation=0.25,
    decays=(1.5, 3.0, 6.0, 12.0),
    predictable=0.66,
    targets={
        "zeros": 0.91,
        "concentration": 0.53,
        "reuse_1": 0.27,
        "reuse_5": 0.57,
        "energy_half": 0.988,
    },
)
