"""What is allowed to be lost is kept to, whatever the budget: the fewer neurons are in memory, the less is given up."""

from __future__ import annotations

from pathlib import Path

import pytest

import hotset
from hotset.formats.predictors import Predictors, read_predictors
from hotset.formats.store import Store, open_store
from hotset.models import resolve
from hotset.planner.loss import calibrated, growth
from hotset.planner.placement import Placement, Profiled
from hotset.tools.plan import Wishes, make_plan
from hotset.tools.plan_loss import Losses
from hotset.tools.plan_profile import profiled
from hotset.tools.plan_sizes import neuron_sizes

DATA = Path(hotset.__file__).parent / "data"


@pytest.fixture(scope="module")
def story() -> Store:
    return open_store(next(DATA.glob("stories-*")))


@pytest.fixture(scope="module")
def trained(story: Store) -> Predictors:
    assert story.neurons is not None
    found = read_predictors(story.path, story.neurons)
    assert found is not None
    return found


def test_losses_grow_with_what_is_missing() -> None:
    assert growth(0, 30, 1e-4) == 1 and growth(0.7, 1, 1e-4) == 1
    for energy in (1e-4, 1e-3, 1e-2):
        found = [growth(absent / 10, 30, energy) for absent in range(11)]
        assert found == sorted(found)
    # Divergences of a 7B at one energy, all of its neurons in memory and fewer; absent as the plan estimates it.
    for absent, measured in ((0.2, 2.7), (0.43, 4.8), (0.97, 20)):
        assert growth(absent, 30, 8e-4) == pytest.approx(measured, rel=0.4)
    # The same with a fourteenth of them in memory, beside half as calibrated there, by energy.
    for energy, measured in ((5.1e-5, 2.25), (1.1e-4, 3.6), (2.3e-4, 3.9), (8e-4, 6.4)):
        assert growth(0.8, 30, energy) / growth(0.2, 30, energy) == pytest.approx(measured, rel=0.25)


def test_energy_follows_the_budget(story: Store, trained: Predictors) -> None:
    model, loss = resolve(story.config), 0.001
    known, sizes = profiled(story, model, trained, None), neuron_sizes(story, model, trained)
    losses = Losses(trained, known, sizes)

    def energy(memory: float) -> float:
        def place(now: Profiled | None) -> Placement:
            assert now is not None
            hot = int(memory * sizes.ffn)
            placement = Placement("low-rank", (hot,) * sizes.layers, 0)
            absent.append(now.demand(placement, sizes).absent)
            return Placement("low-rank", placement.hot, 0, now.demand(placement, sizes))

        absent: list[float] = []
        found = losses.within(loss, place)
        worse = found.worse(absent[-1])
        assert found.energy == pytest.approx(trained.energy_at(loss, worse), rel=0.25)  # another round would change
        assert trained.loss_at(found.energy, worse) == pytest.approx(loss, rel=0.2)  # measured with noise
        return found.energy

    found = [energy(memory) for memory in (1.0, 0.7, 0.4, 0.1)]
    assert found == sorted(found, reverse=True) and found[0] > 1.5 * found[-1]
    # Where they were calibrated nothing changes.
    assert known is not None
    same = losses.within(None, lambda now: _filled(now or known, calibrated(sizes), losses))
    assert same.energy == pytest.approx(trained.energy)


def _filled(known: Profiled, placement: Placement, losses: Losses) -> Placement:
    sizes = losses.sizes
    return Placement(placement.predictor, placement.hot, placement.cold_slots, known.demand(placement, sizes))


def test_plans_say_what_is_given_up(story: Store, trained: Predictors) -> None:
    whole = make_plan(story, resolve(story.config), Wishes(memory=1 << 30, predict="auto", loss=0.001))
    if whole.predictor == "low-rank":
        assert whole.energy is not None and whole.energy > trained.energy_at(0.001)
    exact = make_plan(story, resolve(story.config), Wishes(memory=1 << 30))
    assert exact.energy is None


def test_nothing_is_worse_where_it_was_measured(story: Store, trained: Predictors) -> None:
    """Whatever is given up: of each share of energy the loss was measured with half of the neurons in memory."""
    model = resolve(story.config)
    known, sizes = profiled(story, model, trained, None), neuron_sizes(story, model, trained)
    assert known is not None
    for giving in Losses(trained, known, sizes).for_drafts():
        assert giving.profiled is not None
        absent = giving.profiled.demand(calibrated(sizes), sizes).absent
        held = trained.drafts_hold(trained.loss_at(giving.energy))
        assert absent > 0 and giving.holds(absent) == pytest.approx(held)
        assert giving.holds(2 * absent) < held < giving.holds(absent / 2)
