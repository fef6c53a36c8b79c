"""A plan that comes in a file: whether it is for this store and host, and what it takes by its own settings.

Files are edited by hand, so their sums are not believed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from hotset.engine.budget import RESERVE, KvType, kv_bytes, scratch_bytes
from hotset.errors import UsageError
from hotset.formats.predictors import read_predictors
from hotset.formats.sketch import read_sketch
from hotset.formats.store import Store
from hotset.models import Model
from hotset.planner.placement import Placement
from hotset.planner.plan_file import MadeFor, Plan, read_plan
from hotset.planner.sizes import PIECE_NEURONS, NeuronSizes
from hotset.tools.plan_fits import check_budget, grown
from hotset.tools.plan_sizes import embedding_buffers, embedding_bytes, neuron_sizes, resident_bytes


def given_plan(
    file: Path,
    store: Store,
    model: Model,
    wanted: MadeFor,
    kv: KvType,
    asked: Mapping[str, float | None],
    base: int,
) -> Plan:
    """The plan in a file, with the memory that it takes.

    wanted: for what it is to be. asked: parts of it that were asked for besides, which must not say otherwise. base:
        bytes that the process holds before weights are loaded.
    Raises: UsageError if it is not for that, MemoryBudgetError if it takes more, and what read_plan() raises.
    """
    plan = read_plan(file)
    plan.check(wanted, str(file))
    for name, want in asked.items():
        if want is not None and want != (says := getattr(plan, name)):
            raise UsageError(
                f"{name} is {want}, the plan says {'none' if says is None else says}; leave one of them out"
            )
    sizes = _sizes(plan, store, model)
    if len(plan.hot) != sizes.layers or max(plan.hot) > sizes.ffn:
        raise UsageError(
            f"{file} has {len(plan.hot)} layers with at most {max(plan.hot, default=0)} hot neurons; the model has "
            f"{sizes.layers} with {sizes.ffn} neurons: make it again with `hotset plan`"
        )
    more = grown(plan, base)
    held = {"process": plan.memory.get("process", 0) + more, "reserve": RESERVE}
    plan = replace(plan, memory={**plan.memory, **held, **_taken(plan, sizes, store, model, kv)})
    check_budget(plan, wanted.memory or plan.made_for.memory, more)
    return plan


def _sizes(plan: Plan, store: Store, model: Model) -> NeuronSizes:
    assert store.neurons is not None
    trained = read_predictors(store.path, store.neurons) if plan.predictor == "low-rank" else None
    sketch = read_sketch(store.path, store.neurons) if plan.predictor == "sketch" else None
    sizes = neuron_sizes(store, model, trained, sketch, plan.predictor == "read-gate")
    return replace(sizes, merged_bytes=plan.merged_bytes, gap_bytes=plan.gap_bytes)


def _taken(plan: Plan, sizes: NeuronSizes, store: Store, model: Model, kv: KvType) -> dict[str, int]:
    """Bytes by purpose, of what a plan's settings decide."""
    placement = Placement(plan.predictor, plan.hot, plan.cold_slots, spill=plan.spill)
    config = replace(model.config, ffn=min(PIECE_NEURONS, model.config.ffn))
    on_drive = plan.embedding == "drive"
    return {
        "resident": resident_bytes(store) - on_drive * embedding_bytes(store, model),
        "kv": kv_bytes(config, kv, plan.kv_tokens),
        "scratch": scratch_bytes(config, plan.prefill_chunk),
        "buffers": sizes.overhead_bytes(plan.prefill_chunk, plan.threads) + on_drive * embedding_buffers(store, model),
        **placement.bytes(sizes),
    }
