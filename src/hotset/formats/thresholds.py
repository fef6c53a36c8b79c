"""Least scores of the neurons that predictors choose, by the energy that is given up with the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Share of energy given up where neurons are missing, to that where they are in memory: at equal divergence and 3.0 GB a
# 7B decodes 1.2 times as fast as with 10 (docs/decisions/log.md).
FETCH = 30.0


@dataclass(frozen=True, slots=True, eq=False)
class Thresholds:
    """Of each layer: the least scores that give up some shares of the energy of its output, on held-out tokens."""

    losses: NDArray[np.float32]  # [n], ascending
    scores: NDArray[np.float32]  # [layers, n], descending
    predicted: NDArray[np.float32]  # [layers, n]: share of the neurons with such scores
    recall: NDArray[np.float32]  # [layers, n]: share of the active neurons among them

    def at(self, loss: float) -> tuple[float, ...]:
        """[layers]: least scores at which not more than about `loss` of the energy is given up."""
        return tuple(self.scores[:, self._index(loss)].tolist())

    def shares(self, loss: float) -> tuple[float, ...]:
        """[layers]: of a layer's neurons, that are predicted then."""
        return tuple(self.predicted[:, self._index(loss)].tolist())

    def share(self, loss: float) -> float:
        """Of the neurons of all layers, that are predicted then."""
        return float(np.mean(self.shares(loss)))

    def found(self, loss: float) -> float:
        """Share of the active neurons of a layer, the mean of all layers, that are predicted then."""
        return float(self.recall[:, self._index(loss)].mean())

    def _index(self, loss: float) -> int:
        return max(int(np.searchsorted(self.losses, np.float32(loss), side="right")) - 1, 0)


def fetch_energy(energy: float, ratio: float = FETCH) -> float:
    """Share given up where neurons are missing, for that where they are in memory."""
    return min(ratio * energy, 0.9)


def limits(tables: Thresholds, energy: float, ratio: float = FETCH) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Least scores of neurons in memory and of missing ones, by layer, that give up about this share of energy."""
    keep, fetch = tables.at(energy), tables.at(fetch_energy(energy, ratio))
    return keep, tuple(max(k, f) for k, f in zip(keep, fetch, strict=True))
