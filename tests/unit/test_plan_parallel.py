"""Plans for several sequences at once, against replays, brute force and arithmetic by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from plan_models import ACTIVE, HOST, RATES, SIZES, shares_of

import hotset
from hotset.errors import FormatError, UsageError
from hotset.formats.store import Store, open_store
from hotset.models import resolve
from hotset.planner.drafting import Pass, of_rounds
from hotset.planner.model_cost import Demand, forecast
from hotset.planner.placement import Placement, Profiled
from hotset.planner.plan import place
from hotset.planner.plan_file import Plan, read_plan, write_plan
from hotset.planner.replay import replay
from hotset.planner.sizes import Predictor
from hotset.planner.statistics import lru_misses
from hotset.planner.use import neuron_use
from hotset.tools.plan import Wishes, make_plan, plan_for

NEURONS, LAYERS, TOKENS, WARM = 512, 16, 400, 150
MANY = replace(SIZES, layers=LAYERS, ffn=NEURONS, gate_bytes=LAYERS * NEURONS * SIZES.vector_bytes)


def texts(count: int, tokens: int, layer: int) -> NDArray[np.bool_]:
    """Activations [texts, tokens, neurons] of one layer in unrelated texts; most frequent neurons first."""
    often = np.sort(np.random.default_rng(layer).standard_normal(NEURONS))[::-1]
    rng = np.random.default_rng([layer, count])
    state = rng.standard_normal((count, NEURONS))
    active = np.empty((count, tokens, NEURONS), bool)
    least = NormalDist(0, np.sqrt(2)).inv_cdf(1 - ACTIVE)
    for token in range(tokens):
        state = 0.7 * state + np.sqrt(1 - 0.7**2) * rng.standard_normal(state.shape)
        active[:, token] = state + often > least
    return active


@pytest.fixture(scope="module")
def layers() -> NDArray[np.bool_]:
    """[layers, texts, tokens, neurons]"""
    return np.stack([texts(8, TOKENS, layer) for layer in range(LAYERS)])


@pytest.fixture(scope="module")
def profiled() -> Profiled:
    """From a text that is not among them."""
    return Profiled(shares_of([texts(1, 3000, layer)[0] for layer in range(LAYERS)]), {})


@pytest.mark.parametrize("parallel", [1, 2, 4, 8])
@pytest.mark.parametrize("hot", [0, 128])
def test_misses_of_a_step_are_those_of_a_replay(
    layers: NDArray[np.bool_], profiled: Profiled, parallel: int, hot: int
) -> None:
    use = neuron_use(profiled.shares[:, :1], parallel=parallel)
    border = int(np.searchsorted(use.hot[:, 0], hot))
    step = layers[0, :parallel].any(axis=0)[:, int(use.hot[border, 0]) :]
    assert use.wanted(border) == pytest.approx(step.sum(axis=1).mean(), rel=0.06)
    for slots in (200, 260, 320):
        replayed = lru_misses(step, slots)[WARM:].mean()
        least = use.least_slots(border)
        if abs(slots - least) > 0.3 * least:  # beside the cliff, which a mean cannot place to the neuron
            assert use.cold(border, slots).missed == pytest.approx(replayed, abs=0.08 * step.sum(axis=1).mean())


def misses(placement: Placement, layers: NDArray[np.bool_], parallel: int) -> float:
    """Of a step of so many texts, by replay."""
    step = layers[:, :parallel].any(axis=1).transpose(1, 0, 2)
    return float(replay(step, placement.hot, placement.cold_slots, "lru")[WARM:].sum(axis=1).mean())


@pytest.mark.parametrize(
    ("parallel", "held", "fewer"), [(2, 0.2, 0.7), (4, 0.4, 0.8), (8, 0.4, 0.95), (8, 0.5, 0.8), (8, 0.6, 1.0)]
)
def test_a_plan_for_several_misses_less_than_one_for_a_single_sequence(
    layers: NDArray[np.bool_], profiled: Profiled, parallel: int, held: float, fewer: float
) -> None:
    room = int(held * MANY.neurons * MANY.stride) + MANY.gate_bytes
    alone, together = (place(MANY, room, ["gate"], replace(profiled, parallel=n), HOST) for n in (1, parallel))
    assert sum(together.bytes(MANY).values()) <= room
    assert misses(together, layers, parallel) <= fewer * misses(alone, layers, parallel)
    assert misses(alone, layers, 1) <= 1.05 * misses(together, layers, 1), "and the other way round for one"


def test_a_step_needs_what_any_sequence_needs(layers: NDArray[np.bool_], profiled: Profiled) -> None:
    whole = Placement("gate", (NEURONS,) * LAYERS, 0)
    for parallel in (1, 3, 8):
        found = replace(profiled, parallel=parallel).demand(whole, MANY)
        used = layers[:, :parallel].any(axis=1).sum() / TOKENS
        pairs = layers[:, :parallel].sum() / TOKENS
        assert (found.parallel, found.missed) == (parallel, 0)
        assert found.candidates == pytest.approx(used, rel=0.06)
        assert found.active * found.users == pytest.approx(pairs, rel=0.06)


def test_forecast_of_a_step_by_hand() -> None:
    """4 sequences: weights come from memory once; gates are multiplied with 4 tokens, others with 1.5 of them."""
    demand = Demand(4000, 3000, 2000, 100, 80, 90 * 8192, parallel=4, users=1.5)
    sizes = replace(SIZES, low_rank_bytes=1 << 20)
    found = forecast(sizes, "low-rank", demand, 50_000_000, RATES, threads=2)
    before = 50_000_000 + sizes.predictor_bytes("low-rank")
    moved = before + (4000 + 3000 + 2000) * 2304
    products = 4 * before + (4 * 4000 + 1.5 * (3000 + 2000)) * 2304
    assert found.memory_s == pytest.approx((moved - (1 << 20)) / 20e9 / 4)
    assert found.compute_s == pytest.approx(products * 4096 / 2304 / 200e9 / 4)
    assert found.drive_s == pytest.approx(90 / 40_000 / 4)
    assert (found.reads, found.drive_bytes) == (20, 90 * 8192 / 4)
    one = forecast(sizes, "low-rank", replace(demand, parallel=1, users=1.0), 50_000_000, RATES, threads=2)
    assert one.tokens_per_s < found.tokens_per_s <= 4 * one.tokens_per_s * (1 + 1e-12)


@settings(max_examples=100, deadline=None)
@given(
    parallel=st.integers(1, 8),
    users=st.floats(1, 8),
    missed=st.floats(0, 1),
    predictor=st.sampled_from(["all", "gate", "low-rank"]),
)
def test_no_forecast_of_a_step_beats_its_bound(
    parallel: int, users: float, missed: float, predictor: Predictor
) -> None:
    lost = 4000 * missed
    demand = Demand(4000, 3000, 2000, lost, lost, lost * SIZES.stride, parallel=parallel, users=min(users, parallel))
    found = forecast(replace(SIZES, low_rank_bytes=1 << 20), predictor, demand, 50_000_000, RATES, threads=2)
    assert found.tokens_per_s <= found.bound_tokens_per_s * (1 + 1e-12)


def test_sequences_share_a_pass() -> None:
    """3 sequences, 2 drafts each at 0.03 s a step, 1.9 tokens each: a pass of 9 rows."""
    verify = Pass(0.3, 0.15, 0.002, 3e9, 1e9, 0.12, RATES, threads=2)
    step = Demand(1000, 900, 800, 0, 0, 0, parallel=3)
    draft = replace(forecast(SIZES, "all", step, 50_000_000, RATES, threads=2), tokens_per_s=3 / 0.03)
    found = of_rounds(draft, verify.shared(3), 2, 1.9)
    assert found.tokens_per_s == pytest.approx(3 * 1.9 / (2 * 0.03 + verify.seconds(9)))
    assert found.drive_s == pytest.approx(0.3 / (3 * 1.9))


@pytest.fixture(scope="module")
def story() -> Store:
    return open_store(next((Path(hotset.__file__).parent / "data").glob("stories-*")))


def made(story: Store, **settings: object) -> Plan:
    return make_plan(story, resolve(story.config), Wishes(memory=4 << 30, context=256), settings)


def test_plans_say_for_how_many_sequences_they_are(story: Store, tmp_path: Path) -> None:
    plan, path = made(story, parallel=4), tmp_path / "plan.json"
    assert (plan.parallel, made(story).parallel) == (4, 1)
    write_plan(plan, path)
    assert read_plan(path) == plan_for(story, resolve(story.config), Wishes(parallel=4), file=path) == plan
    with pytest.raises(UsageError, match="parallel is 2, the plan says 4"):
        plan_for(story, resolve(story.config), Wishes(parallel=2), file=path)
    saved = json.loads(path.read_text())
    path.write_text(json.dumps(saved | {"parallel": 9}))
    with pytest.raises(FormatError, match="parallel is 1 to 8"):
        read_plan(path)
    del saved["parallel"]
    path.write_text(json.dumps(saved))
    assert read_plan(path).parallel == 1, "as files of earlier versions"


@pytest.mark.parametrize("parallel", [0, 9])
def test_more_sequences_than_a_sparse_step_takes_are_refused(story: Store, parallel: int) -> None:
    with pytest.raises(UsageError, match="parallel"):
        made(story, parallel=parallel)
    with pytest.raises(UsageError, match=f"parallel is {parallel}; wanted 1 to 8"):
        Wishes(parallel=parallel)
