"""From a store, and for a packed one a plan, to the native engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from hotset import _core
from hotset.engine.budget import Allotment, Host, KvType, allot
from hotset.errors import ModelError, UsageError
from hotset.formats.files import read_at
from hotset.formats.gates import read_gates
from hotset.formats.neurons import NeuronInfo
from hotset.formats.predictors import read_predictors, verify_predictors
from hotset.formats.sketch import read_sketch, verify_sketch
from hotset.formats.sparsity import ffn_floors, read_sparsity
from hotset.formats.store import BLOCK_BYTES, WEIGHT_FILES, Store, StoreEntry
from hotset.models import Model, TensorSpec, least_gate
from hotset.planner.plan_file import Plan
from hotset.planner.sizes import knows_gates, spill_places

_IN_BUNDLES = ("gate", "up", "down", "gate_bias", "up_bias")
Predict = Literal["exact", "auto"]


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a model is loaded; LLM says what each means. Raises UsageError for what it does not know."""

    memory: int | None
    threads: int | None
    context: int | None
    kv_tokens: int | None
    kv: KvType
    isa: str | None
    load: str
    predict: Predict
    loss: float | None
    draft: bool
    plan: Path | None
    parallel: int | None

    def __post_init__(self) -> None:
        threads = self.threads
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise UsageError(f"threads is {threads!r}; wanted a whole number of at least 1")
        if self.kv not in ("f16", "int8"):
            raise UsageError(f"kv is {self.kv!r}; wanted 'f16' or 'int8'")
        if self.load not in ("auto", "read", "mmap"):
            raise UsageError(f"load is {self.load!r}; wanted 'auto', 'read' or 'mmap'")
        if self.predict not in ("exact", "auto"):
            raise UsageError(f"predict is {self.predict!r}; wanted 'exact' or 'auto'")


class Loaded(NamedTuple):
    core: _core.Engine
    allotment: Allotment
    plan: Plan | None  # of a packed store


def load_model(store: Store, model: Model, options: LoadOptions) -> Loaded:
    """Raises MemoryBudgetError before anything is loaded, and what planning and _core.Engine raise."""
    if store.neurons is not None:
        plan = _plan(store, model, options)
        allotment = Allotment(plan.context, plan.kv_tokens, plan.prefill_chunk)
        return Loaded(_load_core(store, model, options, allotment, plan), allotment, plan)
    if options.plan is not None:
        raise UsageError(f"a plan is for a packed store; {store.path} is not: make one with `hotset pack {store.path}`")
    allotment = allot(
        model.config,
        store.weight_bytes,
        Host.measure(),
        kv=options.kv,
        memory=options.memory,
        context=options.context,
        kv_tokens=options.kv_tokens,
        mapped=options.load == "mmap",
    )
    return Loaded(_load_core(store, model, options, allotment, None), allotment, None)


def _plan(store: Store, model: Model, options: LoadOptions) -> Plan:
    from hotset.tools.plan import Wishes, plan_for  # the second way up: a budget must become a plan

    wishes = Wishes(
        options.memory,
        options.context,
        options.kv_tokens,
        options.kv,
        options.threads,
        options.predict,
        loss=options.loss,
        draft=options.draft,
        parallel=options.parallel,
    )
    return plan_for(store, model, wishes, file=options.plan)


def _load_core(
    store: Store, model: Model, options: LoadOptions, allotment: Allotment, plan: Plan | None
) -> _core.Engine:
    return load_core(
        store,
        model,
        _sparse_options(store, model, plan) if plan else None,
        threads=plan.threads if plan else options.threads or 0,
        kv=options.kv,
        kv_tokens=allotment.kv_tokens,
        max_step_tokens=allotment.max_step_tokens,
        load=options.load,
        isa=options.isa,
        embed_io=plan.backend if plan and plan.embedding == "drive" else None,
    )


def load_core(
    store: Store,
    model: Model,
    sparse: _core.SparseOptions | None,
    *,
    threads: int,
    kv_tokens: int,
    max_step_tokens: int,
    kv: KvType = "f16",
    load: str = "auto",
    isa: str | None = None,
    embed_io: str | None = None,
) -> _core.Engine:
    """The native engine of a store alone. sparse: how one gets at the neurons of a packed store, None for others.

    embed_io: what reads the embedding, if it stays on the drive.
    """
    found = [(spec, store.entries.get(spec.name)) for spec in model.tensors]
    tensors = [
        tensor_ref(spec.role, spec.layer, entry)
        for spec, entry in found
        if entry is not None and not (sparse and spec.role in _IN_BUNDLES)  # the core names roles that are missing
    ]
    files = WEIGHT_FILES[:1] if sparse else WEIGHT_FILES  # neurons have checksums of their own
    sums = [(str(store.path / name), store.files[name]) for name in files]
    core = _core.Engine(
        model.config.to_native(),
        tensors,
        checksums=[_core.FileChecksums(path, BLOCK_BYTES, s.bytes, s.crc32c) for path, s in sums if s.crc32c],
        threads=threads,
        kv_type=kv,
        kv_tokens=kv_tokens,
        max_step_tokens=max_step_tokens,
        load=load,
        isa=isa,
        neurons=_neuron_file(store, model) if sparse else None,
        sparse=sparse,
        embed_io=embed_io,
    )
    if (sparsity := read_sparsity(store)) is not None:
        for layer, floor in enumerate(ffn_floors(store, sparsity, len(model.config.layers), model.config.ffn)):
            core.set_ffn_floor(layer, **floor)
    return core


def tensor_ref(role: str, layer: int, entry: StoreEntry) -> _core.TensorRef:
    return _core.TensorRef(role, layer, entry.path, entry.offset, entry.bytes, entry.fmt, entry.rows, entry.cols)


def _neuron_file(store: Store, model: Model) -> _core.NeuronFile:
    info = store.neurons
    assert info is not None
    config = model.config
    got, wanted = (info.layers, info.ffn, info.hidden, info.gated), (len(config.layers), config.ffn, config.hidden)
    if got != (*wanted, config.gated):
        raise ModelError(
            f"{info.path} has {got[0]} layers of {got[1]} neurons of {got[2]}; config.json says {wanted[0]} layers of "
            f"{wanted[1]} of {wanted[2]}: pack the store again"
        )
    return _core.NeuronFile(
        info.path,
        info.fmt,
        info.hidden,
        info.gated,
        info.stride,
        info.ffn,
        info.offsets,
        [info.read_crc32c(layer) for layer in range(info.layers)],
        gate_bias=_biases(store, info, model, "gate_bias"),
        up_bias=_biases(store, info, model, "up_bias"),
    )


def _biases(store: Store, info: NeuronInfo, model: Model, role: str) -> list[list[float]]:
    """[layers][ffn] in the store's order of neurons; the file has them in the model's. Empty where there are none."""
    specs: list[TensorSpec] = sorted(
        (s for s in model.tensors if s.role == role and s.name in store.entries), key=lambda s: s.layer
    )
    entries = [(spec.layer, store.entries[spec.name]) for spec in specs]
    values = [(i, np.frombuffer(read_at(Path(e.path), e.offset, e.bytes), "<f4")) for i, e in entries]
    return [bias[info.read_order(layer)].tolist() for layer, bias in values]


def _gate_file(store: Store, info: NeuronInfo) -> _core.GateFile:
    found = read_gates(store.path, info)
    if found is None:
        raise UsageError(f"{store.path} has no copy of its gates; use another predictor, or `hotset pack --gates copy`")
    sums, rest = zip(*(found.read_sums(layer) for layer in range(info.layers)), strict=True)
    return _core.GateFile(str(found.path), info.fmt, info.hidden, info.ffn, found.stride, found.offsets, sums, rest)


def _sparse_options(store: Store, model: Model, plan: Plan) -> _core.SparseOptions:
    assert store.neurons is not None
    keep: list[float] = []
    fetch: list[float] = []
    low_rank: list[tuple[_core.TensorRef, _core.TensorRef]] = []
    relu = ahead = False
    sketch: _core.SketchFile | None = None
    gates: _core.GateFile | None = None
    if knows_gates(plan.predictor):
        limit = least_gate(model, store.entries)
        if limit is None:
            raise UsageError(
                f"predictor {plan.predictor} needs a gate that is zero for some neurons; this model's is not: use all"
            )
        keep = fetch = [limit] * len(model.config.layers)
        gates = _gate_file(store, store.neurons) if plan.predictor == "read-gate" else None
    elif plan.predictor == "low-rank":
        trained = read_predictors(store.path, store.neurons)
        if trained is None:
            raise UsageError(f"{store.path} has no predictors; use another predictor, or `hotset train-predictor`")
        verify_predictors(store.path)
        energy = trained.energy_at(plan.loss) if plan.energy is None else plan.energy
        (keep, fetch), relu, ahead = map(list, trained.limits(energy)), trained.relu, trained.ahead
        pairs = zip(trained.down, trained.up, strict=True)
        low_rank = [(tensor_ref("down", i, d), tensor_ref("up", i, u)) for i, (d, u) in enumerate(pairs)]
    elif plan.predictor == "sketch":
        made = read_sketch(store.path, store.neurons)
        if made is None:
            raise UsageError(f"{store.path} has no sketch; use another predictor, or `hotset sketch`")
        verify_sketch(store.path)
        keep, fetch = list(made.facts.keep), list(made.facts.fetch)
        sketch = _core.SketchFile(str(made.path), made.facts.bits, made.offsets)
    return _core.SparseOptions(
        plan.hot,
        plan.cold_slots,
        plan.policy,
        plan.predictor,
        keep,
        fetch,
        low_rank,
        relu,
        plan.backend,
        plan.depth,
        plan.drafts,
        ahead=ahead,
        sketch=sketch,
        overlap=plan.overlap,
        spill=spill_places(plan.predictor, model.config.ffn) if plan.spill is None else plan.spill,
        merged_bytes=plan.merged_bytes,
        gap_bytes=plan.gap_bytes,
        gates=gates,
    )
