"""Missing neurons have places to be read to: as many as are wanted, or the plan says that more is lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from plan_models import ACTIVE, HOST, SIZES, TOKENS, latents, shares_of

import hotset
from bench.sparse_child import step
from hotset import LLM
from hotset.formats.predictors import Predictors, read_predictors
from hotset.formats.store import Store, open_store
from hotset.models import resolve
from hotset.planner.placement import Placement, Profiled
from hotset.planner.plan import judged, place
from hotset.planner.plan_file import Plan, write_plan
from hotset.planner.use import Finds, neuron_use
from hotset.tools.plan import Wishes, make_plan
from hotset.tools.plan_choice import Choices
from hotset.tools.plan_profile import giving_up, profiled
from hotset.tools.plan_sizes import neuron_sizes

DATA = Path(hotset.__file__).parent / "data"
MIB = 1 << 20


def test_neurons_in_use_are_those_of_a_replay() -> None:
    """Of two layers that share the slots: read, or computed and still there."""
    values = [latents(seed, spread=spread) for seed, spread in ((1, 1.0), (2, 0.3))]
    active = [v > np.quantile(v, 1 - ACTIVE) for v in values]
    keep, fetch = ([v > np.quantile(v, 1 - share) for v in values] for share in (0.25, 0.12))
    by_layer = tuple((float(k.mean()), float(f.mean())) for k, f in zip(keep, fetch, strict=True))
    use = neuron_use(shares_of(active), Finds(0.25, 0.12, by_layer=by_layer))
    hot = np.array([200, 50])
    wanted = [f[:, n:].sum() / TOKENS for f, n in zip(fetch, hot, strict=True)]
    assert use.in_use(hot, 0) == pytest.approx(wanted, rel=0.05)
    counts = np.zeros(2)
    recent: list[tuple[int, int]] = []
    for token in range(TOKENS):
        held, used = set(recent), []
        for layer in (0, 1):
            cold = np.flatnonzero(keep[layer][token])
            cold = cold[cold >= hot[layer]]
            used += [(layer, n) for n in cold if (layer, n) in held or fetch[layer][token, n]]
        if token >= 500:
            counts += np.bincount([layer for layer, _ in used], minlength=2)
        last = set(used)
        recent = [*used, *(n for n in recent if n not in last)][:700]
    assert use.in_use(hot, 700) == pytest.approx(counts / (TOKENS - 500), rel=0.2)


def test_what_a_predictor_wants_read_has_a_place() -> None:
    """Where a layer's quarter is too few: more places if they fit, else another predictor, else whatever fits."""
    sizes = replace(SIZES, low_rank_bytes=1 << 20)
    active = [v > np.quantile(v, 1 - ACTIVE) for v in map(latents, range(4))]
    few = Profiled(shares_of(active), {"low-rank": Finds(0.15, 0.15)})
    many = replace(few, finds={"low-rank": Finds(0.5, 0.5, by_layer=((0.4, 0.4),) * 3 + ((0.8, 0.8),))})
    usual = Placement("low-rank", (0,) * 4, 0)
    usual = judged(usual, sizes, many, HOST)
    assert usual.demand is not None and usual.demand.in_use == pytest.approx(0.8 * sizes.ffn, rel=0.01)
    assert usual.crowded(sizes) and usual.places(sizes) == sizes.ffn // 4
    assert not judged(usual, sizes, few, HOST).crowded(sizes), "0.15 of a layer, 0.25 places"
    room = sizes.predictor_bytes("low-rank") + 11 * sizes.ffn // 10 * sizes.stride
    found = place(sizes, room, ["low-rank"], many, HOST)
    assert not found.crowded(sizes) and found.demand is not None
    assert found.spill == found.places(sizes) >= found.demand.in_use / 0.8 > 0.7 * sizes.ffn / 0.8
    assert sum(found.bytes(sizes).values()) <= room
    assert found.bytes(sizes)["spill"] == found.spill * sizes.stride
    room -= sizes.ffn // 5 * sizes.stride
    assert place(sizes, room, ["low-rank"], many, HOST).crowded(sizes)
    room = sizes.ffn * sizes.stride
    assert place(sizes, room, ["low-rank", "all"], many, HOST).predictor == "all"


@pytest.fixture(scope="module")
def story() -> Store:
    return open_store(next(DATA.glob("stories-*")))


@pytest.fixture(scope="module")
def trained(story: Store) -> Predictors:
    assert story.neurons is not None
    found = read_predictors(story.path, story.neurons)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def text(story: Store) -> list[int]:
    with LLM(story.path) as llm:
        return list(llm.generate("Once upon a time", max_tokens=150, temperature=1, seed=5, ignore_eos=True).tokens)


def choices(story: Store, trained: Predictors, room: float) -> Choices:
    """room: MiB."""
    model = resolve(story.config)
    sizes, known = neuron_sizes(story, model, trained), profiled(story, model, trained, None)
    return Choices(sizes, int(room * MIB), HOST, known, trained, {})


def read(story: Store, plan: Plan, text: list[int], file: Path) -> float:
    """Neurons that the engine reads."""
    write_plan(plan, file)
    with LLM(story.path, plan=file) as llm:
        seq = llm.core.sequence_new()
        for token in text:
            step(llm.core, seq, [token], False)
        return llm.stats["neuron_missed"]


@pytest.mark.parametrize(
    ("room", "energy", "usual", "crowded"),
    [
        (1.2, 2e-4, True, True),
        (1.2, 1e-2, True, False),
        (1.8, 2.5e-3, True, True),
        (1.8, 5e-3, True, False),
        (2.4, 8e-4, True, True),
        (2.4, 2.5e-3, False, False),
        (3.0, 2.5e-3, True, False),
        (3.6, 8e-4, False, False),
    ],
)
def test_plans_know_where_the_engine_leaves_neurons_out(
    story: Store,
    trained: Predictors,
    text: list[int],
    tmp_path: Path,
    room: float,
    energy: float,
    usual: bool,
    crowded: bool,
) -> None:
    """usual: the usual number of places is enough, or, if crowded, there is no room for more."""
    found = choices(story, trained, room)
    assert found.profiled is not None
    placed = place(found.sizes, found.room, ["low-rank"], giving_up(found.profiled, trained, energy), HOST)
    assert (placed.spill is None, placed.crowded(found.sizes)) == (usual, crowded)
    made = make_plan(story, resolve(story.config), Wishes(predict="auto", context=256), {"predictor": "low-rank"})
    made = replace(made, hot=placed.hot, cold_slots=placed.cold_slots, energy=energy)
    wanted = read(story, replace(made, spill=1536), text, tmp_path / "plan.json")
    left_out = 1 - read(story, replace(made, spill=placed.spill), text, tmp_path / "plan.json") / wanted
    assert left_out > 0.02 if crowded else left_out < 0.002
    if not usual:
        assert read(story, replace(made, spill=None), text, tmp_path / "plan.json") < 0.95 * wanted


def test_plans_have_more_places_or_say_that_more_is_lost(story: Store, trained: Predictors) -> None:
    given = {"predictor": "low-rank", "hot": 0, "cold_slots": 0}
    plan = make_plan(story, resolve(story.config), Wishes(predict="auto", loss=0.1, context=256), given)
    assert plan.spill is not None and 1536 // 4 < plan.spill < 1536 and "more is lost" not in " ".join(plan.notes)
    assert plan.memory["spill"] == 2 * plan.spill * 1024, "of two layers, bundles of 1 KiB"
    short = choices(story, trained, 1.2)
    found = short.within(0.1, draft=False)
    assert found.placement.predictor == "low-rank", "nothing else fits"
    assert "more is lost than is allowed" in " ".join(short.remarks(found))
    fine = choices(story, trained, 2.4)
    assert not list(fine.remarks(found := fine.within(0.1, draft=False))) and found.placement.predictor == "low-rank"
    assert fine.within(0.001, draft=False).placement.predictor == "all", "places for so many do not fit"
