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
from hotset.engine.budget import RESERVE, Host
from hotset.errors import MemoryBudgetError, UsageError
from hotset.formats.store import Store, open_store
from hotset.models import resolve
from hotset.planner.plan_file import Plan, write_plan
from hotset.tools.plan import Wishes, make_plan, plan_for

DATA = Path(hotset.__file__).parent / "data"
BUDGET = 4 << 30
STRIDE = 1024  # bytes of a neuron with its gate
MIB = 1 << 20


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    """A process that does not grow between two plans."""
    host = Host.measure()
    monkeypatch.setattr(Host, "measure", lambda: host)
    return host


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
        plan_for(story, resolve(story.config), Wishes(), file=edited(own, hot=[40] * 5))
    assert plan_for(story, resolve(story.config), Wishes(), file=edited(own)) == own


@pytest.mark.parametrize("hot", [[], [10] * 4, [10] * 4 + [1537]])
def test_neurons_that_the_model_lacks(story: Store, edited: Callable[..., Path], hot: list[int]) -> None:
    with pytest.raises(UsageError, match="the model has 5 with 1536 neurons"):
        plan_for(story, resolve(story.config), Wishes(), file=edited(made(story), hot=hot))


@pytest.mark.parametrize("changed", [{"reserve": 0}, {"process": 0}, {"reserve": 0, "process": 0}])
def test_what_the_process_holds_is_not_believed(
    story: Store, edited: Callable[..., Path], changed: dict[str, int]
) -> None:
    plan = made(story, predictor="all", hot=100, cold_slots=0)
    file = edited(plan, memory={**plan.memory, **changed})
    assert plan_for(story, resolve(story.config), Wishes(memory=plan.bytes), file=file) == plan
    with pytest.raises(MemoryBudgetError, match=f"the plan takes {plan.bytes} bytes .* budget is {plan.bytes - 1}:"):
        plan_for(story, resolve(story.config), Wishes(memory=plan.bytes - 1), file=file)


def test_a_process_that_has_grown_takes_what_it_holds(
    story: Store, edited: Callable[..., Path], host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that has loaded much else, with the plan of `hotset plan`, which has not."""
    plan = made(story, predictor="all", hot=100, cold_slots=0)
    file = edited(plan, made_for=json.loads(json.dumps(plan.as_json()["made_for"])) | {"memory": plan.bytes})
    for more, counted in ((RESERVE // 8 - 1, 0), (RESERVE // 8, RESERVE // 8), (500 * MIB, 500 * MIB)):
        now = replace(host, base=host.base + more)
        monkeypatch.setattr(Host, "measure", lambda now=now: now)
        roomy = Wishes(memory=plan.bytes + counted)
        assert plan_for(story, resolve(story.config), roomy, file=file).bytes == plan.bytes + counted
        if counted:
            told = f"budget is {plan.bytes}: raise it, or plan again without the file, .* {counted} bytes more"
            with pytest.raises(MemoryBudgetError, match=told):
                plan_for(story, resolve(story.config), Wishes(), file=file)


def test_a_loss_beside_a_plan(story: Store, edited: Callable[..., Path]) -> None:
    model, wishes = resolve(story.config), Wishes(memory=BUDGET, context=256, predict="auto", loss=0.01)
    file = edited(make_plan(story, model, wishes))
    assert plan_for(story, model, Wishes(loss=0.01), file=file).loss == 0.01
    with pytest.raises(UsageError, match=r"loss is 0\.05, the plan says 0\.01; leave one of them out"):
        plan_for(story, model, Wishes(loss=0.05), file=file)
    with pytest.raises(UsageError, match=r"loss is 0\.05, the plan says none"):
        plan_for(story, model, Wishes(loss=0.05), file=edited(made(story, predict="auto")))


def test_a_predictor_that_was_chosen_and_does_not_fit(story: Store) -> None:
    fixed = {"prefill_chunk": 512, "embedding": "memory"}
    tight = made(story, predictor="all", hot=0, cold_slots=0, **fixed).bytes + 10 * STRIDE
    for predict in ("exact", "auto"):
        with pytest.raises(MemoryBudgetError, match=r"predictor gate .* at least 2547648 bytes; \d+ are left for them"):
            made(story, tight, predict, predictor="gate", **fixed)
        assert made(story, BUDGET, predict, predictor="gate", **fixed).predictor == "gate"
    assert made(story, tight, **fixed).predictor == "low-rank", "where nobody chose"


@pytest.mark.parametrize("cache", ["file/cache", "x" * 300])
def test_a_cache_that_cannot_be_written(
    story: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOTSET_CACHE", str(tmp_path / cache))
    model, wishes = resolve(story.config), Wishes(memory=BUDGET, context=256)
    assert plan_for(story, model, wishes) == make_plan(story, model, wishes)
