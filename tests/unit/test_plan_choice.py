"""Which placement a plan takes: predicted, exact, or exact with drafts, whichever is foretold to be fastest."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hotset
from bench.sparse_child import load
from hotset import LLM
from hotset.cli.plan import table
from hotset.engine.budget import Host as Memory
from hotset.formats.predictors import Predictors, read_predictors
from hotset.formats.store import Store, open_store
from hotset.loader import Predict
from hotset.models import resolve
from hotset.planner.drafting import verification
from hotset.planner.loss import calibrated, growth
from hotset.planner.plan import Host, place
from hotset.planner.plan_file import write_plan
from hotset.planner.rates import Rates
from hotset.tools.evaluate_variants import Variant, opened
from hotset.tools.plan import Wishes, make_plan
from hotset.tools.plan_choice import Choices
from hotset.tools.plan_loss import Losses
from hotset.tools.plan_profile import giving_up, profiled
from hotset.tools.plan_sizes import neuron_sizes
from hotset.tools.run_stats import lines, run_stats

DATA = Path(hotset.__file__).parent / "data"
MIB = 1 << 20
ROOM = 12 * MIB // 5  # of 7.5 MiB that all neurons take
# Random reads so slow beside reads in order that one pass over all neurons costs no more than a few tokens' misses.
ORDERED = Rates(
    2, 0.05e9, {4096: 2e3}, {4096: 64}, {4096: 3.0}, {2: 80e9}, {2: 600.0},
    busy_seq_bytes_per_s={2: 0.04e9}, busy_work_share={2: 0.9},
)  # fmt: skip
RANDOM = replace(ORDERED, seq_bytes_per_s=1e8, random_reads_per_s={4096: 200e3})


@pytest.fixture(scope="module")
def story() -> Store:
    return open_store(next(DATA.glob("stories-*")))


@pytest.fixture(scope="module")
def trained(story: Store) -> Predictors:
    assert story.neurons is not None
    found = read_predictors(story.path, story.neurons)
    assert found is not None
    return found


def choices(story: Store, trained: Predictors, rates: Rates, room: int, **given: Any) -> Choices:
    model = resolve(story.config)
    sizes, known = neuron_sizes(story, model, trained), profiled(story, model, trained, None)
    return Choices(sizes, room, Host(2, 5 * MIB, rates), known, trained, given)


def test_a_loss_allows_exact_answers_where_drafts_are_faster(story: Store, trained: Predictors) -> None:
    found = choices(story, trained, ORDERED, ROOM)
    predicted, drafted = found.within(0.001, draft=False), found.within(0.001, draft=True)
    assert not predicted.drafts and drafted.drafts and drafted.placement.predictor == "low-rank"
    assert predicted.speed is not None and drafted.speed is not None and drafted.speed > 1.2 * predicted.speed
    assert drafted == found.exact(None), "what drafts lose is not what may be lost"
    assert drafted.energy is not None


def brute_force(found: Choices, energy: float) -> float:
    """Tokens/s with drafts that give up so much, at the best number of drafts in a round, from 1 to 64."""
    assert found.trained is not None and found.profiled is not None and found.host.rates is not None
    known = giving_up(found.profiled, found.trained, energy)
    draft = place(found.sizes, found.room, ["low-rank"], known, found.host)
    assert draft.demand is not None and draft.forecast is not None
    hot = sum(draft.hot)
    usual = known.demand(calibrated(found.sizes), found.sizes).absent
    worse = np.divide(*(growth(absent, found.trained.fetch, energy) for absent in (draft.demand.absent, usual)))
    p = found.trained.drafts_hold(found.trained.loss_at(energy, worse))
    every, host = known.every(found.sizes, hot), found.host
    verify = verification(found.sizes, hot, every, host.resident_bytes, found.host.rates, host.threads)
    tokens = np.cumsum(p ** np.arange(65))[1:]
    seconds = [k / draft.forecast.tokens_per_s + verify.seconds(k + 1) for k in range(1, 65)]
    return float((tokens / seconds).max())


@pytest.mark.parametrize(("room", "reads"), [(1.6, 1e3), (2.4, 2e3), (3.6, 2e4)])
def test_drafts_give_up_what_makes_most_exact_tokens_a_second(
    story: Store, trained: Predictors, room: float, reads: float
) -> None:
    """Of shares of energy that are a hundred-fold apart."""
    found = choices(story, trained, replace(ORDERED, random_reads_per_s={4096: reads}), int(room * MIB))
    speeds = []
    for giving in Losses(trained, found.profiled, found.sizes).for_drafts():
        choice = found._drafted(giving)
        assert choice is not None and choice.speed is not None
        speeds.append(choice.speed)
        assert choice.speed == pytest.approx(brute_force(found, giving.energy))
    assert max(speeds) >= 0.97 * max(brute_force(found, trained.energy * factor) for factor in np.geomspace(0.1, 10, 9))


def test_a_loss_is_used_where_that_is_faster(story: Store, trained: Predictors) -> None:
    found = choices(story, trained, RANDOM, ROOM)
    best, exact = found.within(0.1, draft=True), found.exact(None)
    assert not best.drafts and best.speed is not None and exact.speed is not None and best.speed > exact.speed
    # Without a probe nobody knows what is faster, and less is read where neurons are left out.
    unknown = choices(story, trained, RANDOM, ROOM)
    unknown = replace(unknown, host=replace(unknown.host, rates=None))
    assert not unknown.within(0.1, draft=True).drafts and unknown.exact(None).drafts


def test_what_the_user_chose_is_not_drafted_unless_exact(story: Store, trained: Predictors) -> None:
    for given in ({"predictor": "low-rank"}, {"hot": 100, "cold_slots": 1000}):
        found = choices(story, trained, ORDERED, ROOM, **given)
        assert found.within(0.001, draft=True) == found.within(0.001, draft=False)
    assert choices(story, trained, ORDERED, ROOM, predictor="low-rank").exact(None).drafts


@pytest.fixture
def tight(story: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> int:
    """A budget with room for less than half of the neurons, on a host where drafts pay."""
    monkeypatch.setenv("HOTSET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("hotset.tools.plan.host_rates", lambda _: ORDERED)
    monkeypatch.setattr("hotset.tools.plan.Host", Namespace(measure=lambda: Memory(100 * MIB, 1 << 40)))
    none = {"predictor": "all", "hot": 0, "cold_slots": 0, "prefill_chunk": 64}
    plan = make_plan(story, resolve(story.config), Wishes(memory=1 << 40, context=256), none)
    return plan.bytes - plan.memory["spill"] + 10 * MIB // 3


def test_a_plan_says_what_it_took(story: Store, tight: int, tmp_path: Path) -> None:
    wishes = Wishes(memory=tight, context=256, predict="auto", loss=0.001)
    plan = make_plan(story, resolve(story.config), wishes)
    assert plan.drafts and plan.exact and plan.energy is not None and plan.bytes <= tight
    assert "nothing is lost" in " ".join(plan.notes) and "(exact, for drafts)" in "\n".join(table(plan))
    alone = make_plan(story, resolve(story.config), replace(wishes, draft=False))
    assert alone.predictor == "gate" and alone.exact and not alone.drafts and "gate (exact)" in "\n".join(table(alone))
    other = make_plan(story, resolve(story.config), replace(wishes, loss=0.1, draft=False))
    assert not other.drafts and not other.exact
    assert "nothing is lost" not in " ".join(other.notes) and "(predicted, loss at most 10.00%)" in "\n".join(
        table(other)
    )

    told = {}
    for name, made, draft in (("drafted", plan, True), ("not drafted", plan, False), ("predicted", other, True)):
        write_plan(made, file := tmp_path / "plan.json")
        with LLM(story.path, plan=file, draft=draft) as llm:
            done = llm.generate("Once upon a time", max_tokens=40, temperature=0, ignore_eos=True)
            told[name] = llm.mode, done.stats.drafted > 0, done.tokens, lines(run_stats(llm, done))
    assert told["drafted"][:2] == ("exact, drafted", True) and told["not drafted"][:2] == ("exact", False)
    assert told["predicted"][:2] == ("predicted within a loss of 10%", False)
    assert told["drafted"][2] == told["not drafted"][2], "drafts change no token"
    for name, mode in (("drafted", "exact, drafted"), ("not drafted", "exact"), ("predicted", "predicted within")):
        assert any(line.startswith(f"mode     {mode}") for line in told[name][3])


@pytest.mark.parametrize("follow", ["greedy", "text"])
def test_the_benchmark_drafts_where_the_plan_does(story: Store, tight: int, follow: str) -> None:
    args = Namespace(
        store=story.path, memory=tight, context=256, predict="auto", loss="0.1%", draft=True, follow=follow
    )
    args.step = "planned"
    with load(args) as llm:
        assert llm.plan is not None and llm.plan.drafts and llm.plan.exact


def test_evaluations_see_what_predictors_lose(story: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with so little memory that drafts would be taken."""
    monkeypatch.setattr("hotset.tools.plan.host_rates", lambda _: ORDERED)
    small = Memory(100 * MIB, 1225 * MIB // 10)
    monkeypatch.setattr("hotset.tools.plan.Host", Namespace(measure=lambda: small))
    assert make_plan(story, resolve(story.config), Wishes(predict="auto")).drafts
    with opened(Variant("predicted", str(story.path), predicted=True), story.path, None) as llm:
        assert llm.mode.startswith("predicted")


@pytest.mark.parametrize("predict", ["exact", "auto"])
def test_nothing_is_drafted_where_the_engine_cannot(story: Store, tight: int, predict: Predict) -> None:
    """With dynamic RoPE keys change as the text grows."""
    loss = None if predict == "exact" else 0.001
    model, wishes = resolve(story.config), Wishes(memory=tight, context=256, predict=predict, loss=loss)
    assert make_plan(story, model, wishes).drafts
    ropes = tuple(replace(rope, dynamic_factor=2.0) for rope in model.config.ropes)
    dynamic = replace(model, config=replace(model.config, ropes=ropes))
    assert not make_plan(story, dynamic, wishes).drafts
