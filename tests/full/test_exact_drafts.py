"""A thousand greedy tokens: drafts, budgets and cache policies change none of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from hotset import LLM
from hotset.formats.store import open_store
from hotset.models import resolve
from hotset.planner.plan_file import write_plan
from hotset.tools.pack import pack
from hotset.tools.plan import Wishes, make_plan
from hotset.tools.profile import ProfileOptions, profile
from hotset.tools.random_model import ModelShape
from hotset.tools.sparse_model import sparse_model
from hotset.tools.train_predictor import TrainOptions, train_predictor

pytestmark = pytest.mark.full

TEXT = Path(__file__).parents[2] / "LICENSE"
TOKENS = 1000
SHAPE = ModelShape(hidden=512, ffn=1792, layers=6, heads=8, kv_heads=2, vocab=4096, context=2048)
BUDGETS = {"a tenth": (90, 540), "half": (720, 1080), "all but a few": (1780, 20)}  # hot of a layer, cold slots of all


@pytest.fixture(scope="module", params=[0.001, 0.2], ids=["good predictors", "poor predictors"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sparse")
    sparse_model(folder / "dense", SHAPE)
    with LLM(folder / "dense") as llm:
        profile(llm, [TEXT], folder / "dense/profile.safetensors", ProfileOptions(tokens=5000))
    packed = pack(folder / "dense", folder / "packed").dest
    train_predictor(packed, [TEXT], TrainOptions(tokens=3000, loss=request.param, measure=60))
    return packed


def decoded(store: Path, tmp_path: Path, draft: bool, **settings: Any) -> tuple[int, ...]:
    opened = open_store(store)
    plan = make_plan(opened, resolve(opened.config), Wishes(context=2048), {"predictor": "low-rank"} | settings)
    assert plan.drafts
    write_plan(plan, tmp_path / "plan.json")
    with LLM(store, plan=tmp_path / "plan.json", draft=draft) as llm:
        found = llm.generate([1, 2, 3], max_tokens=TOKENS, temperature=0, ignore_eos=True)
    stats = found.stats
    print(f"{settings}: {stats.acceptance:.1%} of {stats.drafted} held, {stats.passes} passes", file=sys.stderr)
    assert (stats.drafted > 0) == draft
    return found.tokens


def test_a_thousand_greedy_tokens_under_all_budgets_and_policies(store: Path, tmp_path: Path) -> None:
    want = decoded(store, tmp_path, draft=False, hot=SHAPE.ffn, cold_slots=0)
    assert len(want) == TOKENS and len(set(want)) > 20
    for hot, slots in BUDGETS.values():
        for policy in ("clock", "lru", "lfu", "window"):
            got = decoded(store, tmp_path, draft=True, hot=hot, cold_slots=slots, policy=policy)
            assert got == want, (hot, slots, policy)
