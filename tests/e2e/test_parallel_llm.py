"""Several sequences at once under a budget that holds a part of the neurons: the same texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import hotset
from hotset import LLM
from hotset.engine.budget import Host
from hotset.formats.store import Store, open_store
from hotset.models import resolve
from hotset.planner.plan_file import Plan, write_plan
from hotset.tools.plan import Wishes, make_plan

PROMPTS = [
    "Once upon a time", "The little dog", "Tom and Ann went", "One day a girl",
    "There was a big tree", "Lily had a red ball", "In the garden", "A bird sat on",
]  # fmt: skip
TOKENS = 60


@pytest.fixture(scope="module")
def store() -> Store:
    return open_store(next((Path(hotset.__file__).parent / "data").glob("stories-*")))


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A process that does not grow between two plans, and no plans of before."""
    measured = Host.measure()
    with monkeypatch.context() as patch:
        patch.setattr(Host, "measure", classmethod(lambda cls: measured))
        patch.setenv("HOTSET_CACHE", str(tmp_path / "cache"))
        yield


def planned(store: Store, parallel: int, share: float) -> Plan:
    """With so large a share of the memory that all neurons take."""
    model = resolve(store.config)
    wishes = Wishes(memory=4 << 30, context=256, kv_tokens=2048, draft=False, parallel=parallel)
    whole = make_plan(store, model, wishes, {"predictor": "gate", "embedding": "memory", "prefill_chunk": 64})
    budget = whole.bytes - int((1 - share) * whole.memory["hot"])
    tight = Wishes(memory=budget, context=256, kv_tokens=2048, draft=False, parallel=parallel)
    return make_plan(store, model, tight, {"predictor": "gate", "embedding": "memory", "prefill_chunk": 64})


def run(plan: Plan, path: Path) -> tuple[list[str], float]:
    """(texts, neurons missed in a step)"""
    write_plan(plan, path)
    with LLM("stories-13m", plan=path, draft=False) as llm:
        llm.generate(PROMPTS, max_tokens=10, temperature=0, ignore_eos=True)
        before = llm.stats
        found = llm.generate(PROMPTS, max_tokens=TOKENS, temperature=0, ignore_eos=True)
        layers, missed = (llm.stats[name] - before[name] for name in ("neuron_layers", "neuron_missed"))
    return [one.text for one in found], missed / layers * len(plan.hot)


def test_a_plan_for_several_reads_no_more_and_changes_no_text(store: Store, tmp_path: Path) -> None:
    alone, together = (planned(store, parallel, 0.45) for parallel in (1, len(PROMPTS)))
    assert (alone.parallel, together.parallel) == (1, len(PROMPTS))
    assert abs(alone.bytes - together.bytes) < 64 << 10 and together.hot != alone.hot
    texts, missed = run(together, tmp_path / "together.json")
    other, missed_alone = run(alone, tmp_path / "alone.json")
    assert texts == other
    assert 0 < missed <= 1.02 * missed_alone, "little to gain: one layer may miss a fifth of the neurons"
    with LLM("stories-13m") as llm:
        assert texts == [c.text for c in llm.generate(PROMPTS, max_tokens=TOKENS, temperature=0, ignore_eos=True)]
