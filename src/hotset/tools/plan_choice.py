"""Which placement a plan takes: the fastest that gives what was asked for, drafted where that is faster still."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hotset.errors import MemoryBudgetError, UsageError
from hotset.formats.predictors import Predictors
from hotset.planner.drafting import as_draft, drafted
from hotset.planner.placement import Placement, Profiled
from hotset.planner.plan import Host, judged, least_bytes, place
from hotset.planner.sizes import NeuronSizes, Predictor
from hotset.tools.plan_loss import Giving, Losses


@dataclass(frozen=True, slots=True)
class Choice:
    placement: Placement
    giving: Giving | None = None  # what low-rank predictors give up
    drafts: bool = False  # these only draft, so nothing is lost

    @property
    def energy(self) -> float | None:
        return self.giving.energy if self.giving and self.placement.predictor == "low-rank" else None

    @property
    def speed(self) -> float | None:
        """Tokens/s; None where it is not known."""
        return self.placement.forecast.tokens_per_s if self.placement.forecast else None


@dataclass(frozen=True, slots=True)
class Choices:
    """given: `predictor`, `hot` and `cold_slots`, where the user chose them."""

    sizes: NeuronSizes
    room: int  # bytes
    host: Host
    profiled: Profiled | None
    trained: Predictors | None  # that may be used
    given: Mapping[str, Any]

    def exact(self, loss: float | None) -> Choice:
        """The fastest with every neuron that is not zero. loss: that drafts may have; None: whatever is fastest."""
        plain = Choice(self._place(self._exact(), self.profiled))
        if self.trained is None:
            return plain
        drafting = plain.placement.predictor == "low-rank"  # the user's choice
        if not drafting and (self._chosen or self._whole(plain)):
            return plain
        losses = Losses(self.trained, self.profiled, self.sizes)
        givings = losses.for_drafts() if loss is None else [losses.within(loss, self._low_rank)]
        found = self._fastest(self._given_draft(plain.placement, g) if drafting else self._drafted(g) for g in givings)
        if found is None:
            return plain
        # Where nothing was measured: one pass over the model shared by many tokens, against one for each.
        unknown = plain.speed is None or found.speed is None
        return found if drafting or unknown or _faster(found, plain) else plain

    def within(self, loss: float | None, *, draft: bool) -> Choice:
        """The fastest that keeps to a loss: predicted, exact, or exact with drafts if these are allowed, too."""
        if self.trained is None:
            return Choice(self._place(self._any(), self.profiled))
        losses = Losses(self.trained, self.profiled, self.sizes)
        giving = losses.within(loss, self._low_rank)
        found = Choice(self._place(self._any(), giving.profiled), giving)
        if not draft or self._chosen or self._whole(found) or found.speed is None:
            return found
        other = self._fastest(map(self._drafted, losses.for_drafts()))  # what drafts lose nobody sees
        return other if other and (self._crowded(found) or _faster(other, found)) else found

    def remarks(self, choice: Choice) -> Iterator[str]:
        """What a user who allowed a loss should know."""
        if choice.drafts:
            yield "exact answers, drafted, are forecast to be faster than predicted ones: nothing is lost"
        elif (demand := choice.placement.demand) and self._crowded(choice):
            yield (
                f"of some layers a token needs about {demand.in_use:.0f} neurons besides the hot ones, and there is "
                f"room for {choice.placement.places(self.sizes)}: others are left out, so that more is lost than is "
                "allowed; raise the budget, or plan with --predict exact"
            )
        if self.trained is None and not self.sizes.sketch_bytes and "predictor" not in self.given:
            yield (
                "the store has neither predictors nor a sketch for this loss, so answers are those of --predict exact; "
                "`hotset train-predictor` makes predictors"
            )

    def _crowded(self, choice: Choice) -> bool:
        return choice.placement.crowded(self.sizes)

    @property
    def _chosen(self) -> bool:
        return bool(self.given.keys() & {"predictor", "hot", "cold_slots"})

    def _whole(self, choice: Choice) -> bool:
        """Nothing is read, so a pass over all neurons takes longer than the tokens it verifies."""
        return sum(choice.placement.hot) == self.sizes.neurons

    def _exact(self) -> list[Predictor]:
        return self._usable({"gate": self.sizes.gate_bytes, "read-gate": self.sizes.read_gate_bytes})

    def _any(self) -> list[Predictor]:
        """Best guess first."""
        sizes = self.sizes
        has: dict[Predictor, int] = {"low-rank": sizes.low_rank_bytes, "sketch": sizes.sketch_bytes}
        return self._usable({**has, "gate": sizes.gate_bytes, "read-gate": sizes.read_gate_bytes})

    def _usable(self, has: Mapping[Predictor, int]) -> list[Predictor]:
        """has: bytes of predictors that give what was asked for."""
        if "predictor" in self.given:
            return [self.given["predictor"]]
        found = [name for name, size in has.items() if size and not (name == "read-gate" and self.given.get("hot"))]
        # Whoever chooses what stays in memory wants the rest found, not read whole.
        return found if found and self.given.keys() & {"hot", "cold_slots"} else [*found, "all"]

    def _low_rank(self, known: Profiled | None) -> Placement:
        return self._place(["low-rank"], known)

    def _place(self, predictors: Sequence[Predictor], known: Profiled | None) -> Placement:
        """Raises MemoryBudgetError if a predictor that the user chose does not fit."""
        placement = place(self.sizes, self.room, predictors, known, self.host)
        chosen: Predictor | None = self.given.get("predictor")
        if chosen is not None and chosen in predictors and placement.predictor != chosen:
            raise MemoryBudgetError(
                f"predictor {chosen} and the neurons of a layer take at least {least_bytes(self.sizes, chosen)} bytes; "
                f"{self.room} are left for them: choose another predictor, or raise the budget"
            )
        return self._overridden(placement, known)

    def _overridden(self, placement: Placement, known: Profiled | None) -> Placement:
        """The placement with what the user chose. Raises MemoryBudgetError if that does not fit."""
        if not self.given.keys() & {"hot", "cold_slots"}:
            return placement
        hot = (self.given["hot"],) * self.sizes.layers if "hot" in self.given else placement.hot
        if max(hot) > self.sizes.ffn:
            raise UsageError(f"hot is {max(hot)}; a layer has {self.sizes.ffn} neurons")
        if placement.predictor == "read-gate" and max(hot) > 0:
            raise UsageError(f"hot is {max(hot)}; with predictor read-gate it is 0: choose cold_slots instead")
        slots = self.given.get("cold_slots", placement.cold_slots)
        chosen = replace(placement, hot=hot, cold_slots=slots, spill=None)
        if (wanted := sum(chosen.bytes(self.sizes).values())) > self.room:
            raise MemoryBudgetError(
                f"{sum(hot)} hot neurons, {chosen.cold_slots} cold slots and predictor {chosen.predictor} take "
                f"{wanted} bytes; {self.room} are left for them: choose fewer, or raise the budget"
            )
        chosen = judged(chosen, self.sizes, known, self.host)
        wider = chosen.with_places(self.sizes)
        return wider if sum(wider.bytes(self.sizes).values()) <= self.room else chosen

    def _fastest(self, choices: Iterable[Choice | None]) -> Choice | None:
        """The first where no speed is known. Drafts are worse than foretold where neurons find no place."""
        return max((c for c in choices if c), key=lambda c: (not self._crowded(c), c.speed or 0.0), default=None)

    def _drafted(self, giving: Giving) -> Choice | None:
        found = drafted(self.sizes, self.room, giving.profiled, self.host, giving.holds)
        return None if found is None else Choice(found, giving, drafts=True)

    def _given_draft(self, placement: Placement, giving: Giving) -> Choice:
        """The user's placement, whose predictor drafts."""
        found = judged(placement, self.sizes, giving.profiled, self.host)
        return Choice(as_draft(found, self.sizes, giving.profiled, self.host, giving.holds), giving, drafts=True)


def _faster(one: Choice, other: Choice) -> bool:
    return (one.speed or 0.0) > (other.speed or 0.0)
