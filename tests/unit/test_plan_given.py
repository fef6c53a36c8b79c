"""Plans in files that people edit: what they take follows from their settings, not from their sums."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import hotset
from hotset import LLM
from hotset.errors import MemoryBudgetError, UsageError
from hotset.formats.store import Store, open_store
from hotset.models import resolve
from hotset.planner.plan_file import Plan, write_plan
from hotset.tools.plan import Wishes, make_plan, plan_for

DATA = Path(hotset.__file__).parent / "data"
BUDGET = 4 << 30
STRIDE = 1024  # bytes of a neuron with its gate


@pytest.fixture(scope="module")
def story() -> Store:
    return open_store(next(DATA.glob("stories-*")))


@pytest.fixture
def edited(story: Store, tmp_path: Path) -> Callable[..., Path]:
    def edit(plan: Plan, **changes: Any) -> Path:
        write_plan(plan, path := tmp_path / "plan.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return path

    return edit


def made(story: Store, memory: int | None = BUDGET, predict: Any = "exact", **settings: Any) -> Plan:
    return make_plan(story, resolve(story.config), Wishes(memory=memory, context=256, predict=predict), settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"predictor": "all", "hot": 100},
        {"predictor": "gate", "hot": 100, "cold_slots": 900},
        {"predictor": "low-rank", "hot": 0, "cold_slots": 0},
        {"predictor": "low-rank", "hot": 30, "cold_slots": 500, "prefill_chunk": 64, "threads": 3},
    ],
)
@pytest.mark.parametrize("predict", ["exact", "auto"])
def test_what_nobody_edited_takes_what_it_says(
    story: Store, edited: Callable[..., Path], settings: dict[str, Any], predict: Any
) -> None:
    plan = made(story, predict=predict, **settings)
    assert plan_for(story, resolve(story.config), Wishes(), file=edited(plan)) == plan


def test_more_hot_neurons_take_more(story: Store, edited: Callable[..., Path]) -> None:
    plan = made(story, predictor="all", hot=100, cold_slots=0)
    tight = plan.bytes + 200 * STRIDE  # a layer's neurons pass through memory, unless they are hot
    more = edited(plan, hot=[140] * 5)
    loaded = plan_for(story, resolve(story.config), Wishes(memory=tight), file=more)
    assert loaded.bytes == plan.bytes + (5 - 1) * 40 * STRIDE
    for changes in ({"hot": [200] * 5}, {"cold_slots": 2000}, {"kv_tokens": 1 << 14}, {"prefill_chunk": 4096}):
        with pytest.raises(MemoryBudgetError, match=rf"the budget is {tight}:"):
            plan_for(story, resolve(story.config), Wishes(memory=tight), file=edited(plan, **changes))
    with pytest.raises(MemoryBudgetError) as error, LLM(story.path, memory=tight, plan=edited(plan, hot=[200] * 5)):
        pass
    taken = re.search(r"the plan takes (\d+) bytes \(.*hot (\d+)", str(error.value))
    assert taken and [int(n) for n in taken.groups()] == [plan.bytes + 4 * 100 * STRIDE, 5 * 200 * STRIDE]


def test_the_budget_that_a_plan_was_made_for_holds(story: Store, edited: Callable[..., Path]) -> None:
    plan = made(story, predictor="low-rank", hot=10, cold_slots=0, predict="auto")
    own = replace(plan, made_for=replace(plan.made_for, memory=plan.bytes))
    with pytest.raises(MemoryBudgetError, match=f"the budget is {plan.bytes}:"):
        plan_for(story, resolve(story.config), Wishes(), file=edited(own, spill=1500))
    assert plan_for(story, resolve(story.config), Wishes(), file=edited(own)) == own


@pytest.mark.parametrize("hot", [[], [10] * 4, [10] * 4 + [1537]])
def test_neurons_that_the_model_lacks(story: Store, edited: Callable[..., Path], hot: list[int]) -> None:
    with pytest.raises(UsageError, match="the model has 5 with 1536 neurons"):
        plan_for(story, resolve(story.config), Wishes(), file=edited(made(story), hot=hot))
