"""How much energy predictors give up under a budget: what keeps to the loss that is allowed, or drafts best."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hotset.formats.predictors import Predictors
from hotset.planner.loss import calibrated, growth
from hotset.planner.placement import Placement, Profiled
from hotset.planner.sizes import NeuronSizes
from hotset.tools.plan_profile import giving_up

_ROUNDS = 3  # of placing neurons and asking how many are missing then
_STEPS = 4  # towards the energy that keeps to a loss where so many are missing
_DRAFTS = 6  # shares of energy tried

Place = Callable[[Profiled | None], Placement]


@dataclass(frozen=True, slots=True)
class Giving:
    """What low-rank predictors give up, and what is known of the neurons they choose then."""

    trained: Predictors
    energy: float  # share of an FFN's output, where neurons are in memory
    profiled: Profiled | None
    usual: float  # growth of the loss where they were calibrated, at this energy

    def holds(self, absent: float) -> float:
        """Share of drafts that are the exact tokens, where so many of the chosen neurons are not in memory."""
        return self.trained.drafts_hold(self.trained.loss_at(self.energy, self.worse(absent)))

    def worse(self, absent: float) -> float:
        """Times as much as where they were calibrated is lost."""
        return growth(absent, self.trained.fetch, self.energy) / self.usual


class Losses:
    """What a store's low-rank predictors lose, by what they give up and by what is in memory."""

    def __init__(self, trained: Predictors, profiled: Profiled | None, sizes: NeuronSizes) -> None:
        self.trained, self.profiled, self.sizes = trained, profiled, sizes

    def within(self, loss: float | None, place: Place) -> Giving:
        """So much that the loss is kept to: the fewer neurons are in memory, the less.

        loss: of perplexity; None: as calibrated. place: low-rank predictors with their neurons, for what these use.
        """
        found = self._giving(self.trained.energy_at(loss))
        for _ in range(_ROUNDS):
            placement = place(found.profiled)
            if placement.predictor != "low-rank" or placement.demand is None:
                break  # they do not fit, or how many are missing is not known
            found = self._keeping(loss, placement.demand.absent, found)
        return found

    def _keeping(self, loss: float | None, absent: float, found: Giving) -> Giving:
        """What keeps to the loss where so many are missing, from near by: how much worse that is depends on it, too."""
        for _ in range(_STEPS):
            next_to = self.trained.energy_at(loss, found.worse(absent))
            found = self._giving(math.sqrt(found.energy * next_to))  # half the way, as steps all the way swing
        return found

    def for_drafts(self) -> list[Giving]:
        """Among which the best for drafts is chosen: as calibrated, and from the least to the most tried with them."""
        tried = [energy for energy, _ in self.trained.drafts or self.trained.measured]
        energies = np.geomspace(min(tried), max(tried), _DRAFTS).tolist()
        return [self._giving(energy) for energy in (self.trained.energy, *energies)]

    def _giving(self, energy: float) -> Giving:
        known = self.profiled and giving_up(self.profiled, self.trained, energy)
        # What is wanted less often is missing less often, there as here.
        absent = known.demand(calibrated(self.sizes), self.sizes).absent if known else 0.0
        return Giving(self.trained, energy, known, growth(absent, self.trained.fetch, energy))
