"""What this host does with a packed model under a budget: measures, asks the planner, keeps the answer.

The planner (src/hotset/planner) computes; here its numbers are gathered: sizes from the store, use of neurons from its
profile, rates from the host's probe, memory from the system.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hotset.config import ModelConfig
from hotset.engine.budget import RESERVE, Allotment, Host, KvType, allot, kv_bytes, room_for_neurons, scratch_bytes
from hotset.errors import HotsetError, InputError, MemoryBudgetError, StorageError, UsageError
from hotset.formats.gates import read_gates
from hotset.formats.neurons import NeuronInfo
from hotset.formats.predictors import Predictors, read_predictors
from hotset.formats.sketch import Sketch, read_sketch
from hotset.formats.store import Store
from hotset.loader import Predict
from hotset.models import Model
from hotset.planner import plan as planner
from hotset.planner.placement import Placement, Profiled
from hotset.planner.plan import DEPTH, POLICY
from hotset.planner.plan_file import Embedding, Plan, write_plan
from hotset.planner.rates import Rates
from hotset.planner.read_sizes import read_sizes
from hotset.planner.sizes import MOST_PARALLEL, PIECE_NEURONS, NeuronSizes
from hotset.tools.plan_choice import Choice, Choices
from hotset.tools.plan_fits import cached_plan, check_here
from hotset.tools.plan_gates import copy_remark
from hotset.tools.plan_given import given_plan
from hotset.tools.plan_host import allowed_threads, file_state, host_rates, made_for, plan_path, storage_remarks
from hotset.tools.plan_profile import profiled
from hotset.tools.plan_settings import checked, chosen_reads
from hotset.tools.plan_sizes import embedding_buffers, embedding_bytes, neuron_sizes, read_per_token, resident_bytes

# Without a budget a context as long as for any model; where neurons compete for the memory, one that leaves it to them.
_TIGHT_CONTEXT = 2048


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user asked for; None: whatever is best."""

    memory: int | None = None  # bytes; None: what the machine has free
    context: int | None = None
    kv_tokens: int | None = None
    kv: KvType = "f16"
    threads: int | None = None
    predict: Predict = "exact"
    loss: float | None = None  # of perplexity, relative, that predictors may cost; None: as they were calibrated
    draft: bool = True  # trained predictors may draft what is then verified, for exact answers
    parallel: int | None = None  # sequences usually decoded at once; None: one

    def __post_init__(self) -> None:
        if self.predict not in ("exact", "auto"):
            raise UsageError(f"predict is {self.predict!r}; wanted 'exact' or 'auto'")
        if self.kv not in ("f16", "int8"):
            raise UsageError(f"kv is {self.kv!r}; wanted 'f16' or 'int8'")
        if self.loss is not None and not 0 < self.loss < 1:
            raise UsageError(f"loss is {self.loss:g}; wanted more than 0 and less than 1, such as 0.01 or 1%")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads is {self.threads}; wanted at least 1")
        if self.parallel is not None and not 1 <= self.parallel <= MOST_PARALLEL:
            raise UsageError(
                f"parallel is {self.parallel}; wanted 1 to {MOST_PARALLEL}: steps of more compute every neuron"
            )


def plan_for(store: Store, model: Model, wishes: Wishes, *, file: Path | None = None) -> Plan:
    """The plan that a packed store is run by: from `file`, from the cache, or a new one, which the cache then keeps.

    Raises: MemoryBudgetError naming the least budget that works, what `file` takes, or what this host grants;
        UsageError if `file` was made for something else.
    """
    wanted, host = made_for(store, wishes.memory, wishes.kv, wishes.predict), Host.measure()
    if file is not None:
        asked = {name: getattr(wishes, name) for name in ("context", "threads", "kv_tokens", "parallel", "loss")}
        found = given_plan(file, store, model, wanted, wishes.kv, asked, host.base)
        check_here(found, wishes.memory or found.made_for.memory, host)
        return found
    if wishes.memory is None:  # depends on what happens to be free now
        return make_plan(store, model, wishes)
    more = (wishes.context, wishes.kv_tokens, wishes.threads, wishes.draft, wishes.loss, wishes.parallel or 1)
    cached = plan_path(wanted, file_state(store), list(more))
    kept = cached_plan(cached, wanted, wishes.memory, host.base)
    found = kept or make_plan(store, model, wishes)
    check_here(found, wishes.memory, host)
    if kept is None:
        with suppress(StorageError):  # then it is planned again next time
            write_plan(found, cached)
    return found


def make_plan(store: Store, model: Model, wishes: Wishes, settings: Mapping[str, Any] | None = None) -> Plan:
    """A new plan. settings: parts of it that the user chooses, see SETTINGS; `hot`: of every layer."""
    given = checked(settings or {})
    wishes = replace(wishes, **{k: given.pop(k) for k in ("context", "threads", "parallel") if k in given})
    return Planning(store, model, wishes, given).plan()


class Planning:
    """One plan in the making. host: None: as it is now. Its limit is for those who run the plan."""

    def __init__(
        self, store: Store, model: Model, wishes: Wishes, given: Mapping[str, Any], host: Host | None = None
    ) -> None:
        self.store, self.model, self.wishes, self.given = store, model, wishes, given
        assert store.neurons is not None
        self.info = store.neurons
        # The scratch memory knows of an FFN as wide as a piece of a prompt's stream; neurons.h has the rest.
        self.config: ModelConfig = replace(model.config, ffn=min(PIECE_NEURONS, model.config.ffn))
        self.host = (host or Host.measure()).unlimited()
        self.rates: Rates | None = host_rates(store)
        self.threads = wishes.threads or (self.rates.threads if self.rates else allowed_threads())
        self.parallel = wishes.parallel or 1
        self.notes: list[str] = list(storage_remarks(store, self.rates))
        self.trained = self._trained()
        sketched = wishes.predict == "auto" or given.get("predictor") == "sketch"
        self.sketch: Sketch | None = read_sketch(store.path, self._chosen_for()) if sketched else None
        if self.sketch and wishes.loss is not None and self.sketch.facts.perplexity_change > wishes.loss:
            self.sketch = None  # its thresholds are those of one loss
        self.resident = self._resident()
        self.sizes = self._sizes()
        self.profiled = self._profiled()
        self.more_buffers = 0
        self.embedding = self._embedding()
        if self.embedding == "drive":
            self.resident -= embedding_bytes(store, model)
            self.more_buffers = embedding_buffers(store, model)

    def plan(self) -> Plan:
        allotment = self._allotment()
        choice = self.choice(allotment)
        placement = choice.placement
        self.notes += planner.remarks(placement, self.sizes, self.profiled, self._planner_host())
        if not self.given:
            self.notes += copy_remark(
                self.store, self.sizes, placement, self._room(allotment), self.profiled, self._planner_host()
            )
        return Plan(
            made_for=made_for(self.store, self.wishes.memory, self.wishes.kv, self.wishes.predict),
            predictor=placement.predictor,
            hot=placement.hot,
            cold_slots=placement.cold_slots,
            policy=self.given.get("policy", POLICY),
            embedding=self.embedding,
            backend=self.given.get("backend") or (self.rates.backend if self.rates else "auto"),
            depth=self.given.get("depth") or self._depth(),
            threads=self.threads,
            context=allotment.context,
            kv_tokens=allotment.kv_tokens,
            prefill_chunk=allotment.max_step_tokens,
            parallel=self.parallel,
            memory=self._memory(placement, allotment),
            loss=self.wishes.loss,
            merged_bytes=self.sizes.merged_bytes,
            gap_bytes=self.sizes.gap_bytes,
            energy=choice.energy,
            drafts=choice.drafts,
            spill=placement.spill,
            forecast=placement.forecast,
            notes=tuple(self.notes),
        )

    def choice(self, allotment: Allotment | None = None) -> Choice:
        """Which neurons stay and what finds the others. allotment: of the rest of the memory, if it is at hand."""
        return self._choice(self._planner_host(), self._room(allotment or self._allotment()))

    def _planner_host(self) -> planner.Host:
        return planner.Host(self.threads, read_per_token(self.store, self.model), self.rates)

    def _chosen_for(self) -> NeuronInfo:
        """The neurons that predictors and sketch were made for."""
        return self.info

    def _resident(self) -> int:
        return resident_bytes(self.store)

    def _sizes(self) -> NeuronSizes:
        reads = replace(read_sizes(self.rates, self.info.stride), **chosen_reads(self.given))
        return reads.of(neuron_sizes(self.store, self.model, self.trained, self.sketch, self._gates()))

    def _gates(self) -> bool:
        """Whether the store has a copy of its gates to be read for every token."""
        try:
            return read_gates(self.store.path, self._chosen_for()) is not None
        except HotsetError as error:
            self.notes.append(f"{error}; the plan does without")
            return False

    def _choice(self, host: planner.Host, room: int) -> Choice:
        choices = Choices(self.sizes, room, host, self.profiled, self.trained, self.given)
        if self.wishes.predict == "exact":
            return choices.exact(self.wishes.loss)
        found = choices.within(self.wishes.loss, draft=self._may_draft)
        self.notes += choices.remarks(found)
        return found

    @property
    def _may_draft(self) -> bool:
        return self.wishes.draft and not self.config.dynamic_rope

    def _trained(self) -> Predictors | None:
        """The store's predictors, if they may be used."""
        exact = self.wishes.predict == "exact"
        if exact and not self._may_draft and self.given.get("predictor") != "low-rank":
            return None
        try:
            return read_predictors(self.store.path, self._chosen_for())
        except HotsetError as error:
            if not exact:
                raise
            self.notes.append(f"{error}; the plan does without")
            return None

    def _profiled(self) -> Profiled | None:
        try:
            found = profiled(self.store, self.model, self.trained, self.sketch)
            return found and replace(found, parallel=self.parallel)
        except InputError as error:  # too short: worse than none, as chance would order the neurons
            self.notes.append(f"{error}; the plan does without")
            return None

    def _depth(self) -> int:
        if self.rates is None:
            return DEPTH
        nearest = min(self.rates.best_depth, key=lambda block: abs(block - self.info.stride))
        return self.rates.best_depth[nearest]

    def _overhead(self, step_tokens: int) -> int:
        return self.sizes.overhead_bytes(step_tokens, self.threads) + self.more_buffers

    def _embedding(self) -> Embedding:
        """On the drive where neurons compete for the memory: a token reads one row of it."""
        chosen: Embedding | None = self.given.get("embedding")
        if not embedding_bytes(self.store, self.model):
            if chosen == "drive":
                raise UsageError(
                    "embedding=drive: this model's embedding is its head, too, which each token reads whole"
                )
            return "memory"
        return chosen or ("memory" if self._whole() else "drive")

    def _allotment(self) -> Allotment:
        """Context, KV cache and size of a prompt's steps: all that is wished if the whole model has room beside it."""
        found = self._whole()
        if found is None:
            least = self.resident + self._overhead(512) + self.sizes.ffn * self.sizes.stride
            try:
                found = self._allot(least, self._tight_context())
            except MemoryBudgetError:
                found = self._allot(least, self.wishes.context)
        if "prefill_chunk" in self.given:
            return replace(found, max_step_tokens=self.given["prefill_chunk"])
        return found

    def _whole(self) -> Allotment | None:
        """If all neurons have room beside what is wished."""
        everything = self.resident + self._overhead(512) + self.sizes.neurons * self.sizes.stride
        try:
            found = self._allot(everything, self.wishes.context)
        except MemoryBudgetError:
            return None
        return found if found.context >= self._tight_context() else None

    def _tight_context(self) -> int:
        return self.wishes.context or min(self.config.context, _TIGHT_CONTEXT)

    def _allot(self, weights: int, context: int | None) -> Allotment:
        return allot(
            self.config,
            weights,
            self.host,
            kv=self.wishes.kv,
            memory=self.wishes.memory,
            context=context,
            kv_tokens=self.wishes.kv_tokens,
        )

    def _room(self, allotment: Allotment) -> int:
        """Bytes for neurons and what finds them."""
        fixed = self.resident + self._overhead(allotment.max_step_tokens)
        return room_for_neurons(
            self.config, fixed, self.host, kv=self.wishes.kv, memory=self.wishes.memory, allotment=allotment
        )

    def _memory(self, placement: Placement, allotment: Allotment) -> dict[str, int]:
        tokens, step = allotment.kv_tokens, allotment.max_step_tokens
        scratch, kv = scratch_bytes(self.config, step), kv_bytes(self.config, self.wishes.kv, tokens)
        overhead = self._overhead(step)
        return {
            "process": self.host.base,
            "reserve": RESERVE,
            "resident": self.resident,
            "kv": kv,
            "scratch": scratch,
            "buffers": overhead,
            **placement.bytes(self.sizes),
        }
