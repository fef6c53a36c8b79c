"""What the options of packing cost on this host: for each of them the plan that a store packed so would get."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hotset.engine.budget import Host
from hotset.errors import MemoryBudgetError, UsageError
from hotset.formats.gates import gates_bytes
from hotset.formats.neurons import ORDERS, NeuronInfo
from hotset.formats.profile import PROFILE_FILE
from hotset.formats.store import NEURONS, Store, open_store
from hotset.models import Model, least_gate, resolve
from hotset.planner.sizes import NeuronSizes
from hotset.quant import NeuronLayout, neuron_format
from hotset.quant.neurons import GROUP
from hotset.tools.pack_order import compared, fewest_requests, neuron_orders
from hotset.tools.pack_plan import AUTO, chosen_stride, direct_alignment
from hotset.tools.plan import Planning, Wishes
from hotset.tools.resolve import resolve_model

_SCALE_BYTES = 2
_STEPS = (512, 4096)  # bytes, of which strides are tried


@dataclass(frozen=True, slots=True)
class Option:
    """resident_scales: those of all neurons stay in memory, and a bundle is shorter; the engine has no such bundles.

    gates_copied: side by side, to be read in order for every token.
    """

    order: str
    stride: int
    resident_scales: bool = False
    gates_copied: bool = False


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one option. Of a token: requests of the drive and so on; None where the profile or the probe is missing."""

    option: Option
    default: bool
    drive_bytes: int  # of all bundles on the drive, and the copy of the gates
    neurons: int | None = None  # that are in memory at a time
    memory_bytes: int | None = None  # what these, and what finds the others, take
    missed: float | None = None
    requests: float | None = None
    read_bytes: float | None = None
    drive_s: float | None = None
    tokens_per_s: float | None = None
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Costs:
    rows: tuple[Cost, ...]
    notes: tuple[str, ...]  # why the default is what it is, and what is not known


@dataclass(frozen=True, slots=True)
class _Source:
    """A dense store, or a packed one that would be packed anew."""

    store: Store
    model: Model
    layout: NeuronLayout
    alignment: int  # of direct reads

    @property
    def neurons(self) -> int:
        return len(self.model.config.layers) * self.model.config.ffn

    @property
    def scale_bytes(self) -> int:
        """Of one vector."""
        return _SCALE_BYTES * -(-self.layout.hidden // GROUP)

    def padded(self, size: int, step: int = 1) -> int:
        step = max(step, self.alignment)
        return -(-size // step) * step


def pack_costs(
    store: str | Path,
    dest: Path | None = None,
    *,
    fmt: str = "q4_0",
    stride: str | int = AUTO,
    order: str = AUTO,
    wishes: Wishes | None = None,
    host: Host | None = None,
) -> Costs:
    """Plans for every option, without packing anything; the others are as `hotset pack` would choose them.

    Args:
        store, dest, fmt, stride, order: as for pack(); a packed store keeps its format.
        wishes: the budget and so on, as for a plan. Drafts are not considered.
        host: memory of process and machine; None: as they are now.
    Raises: UsageError, InputError (no profile, a short one), and what planning raises.
    """
    source = _source(resolve_model(store), dest, fmt)
    if not (source.store.path / PROFILE_FILE).is_file():
        raise UsageError(
            f"what options cost follows from a profile; make one with `hotset profile {source.store.path}`"
        )
    chosen = chosen_stride(stride, source.layout, source.alignment)
    requests = fewest_requests(source.store, source.model, chosen)
    default = Option(next(iter(requests)) if order == AUTO else order, chosen)
    wishes, host = replace(wishes or Wishes(), draft=False), host or Host.measure()
    options = sorted(
        set(_options(source, default)),
        key=lambda o: (o.resident_scales, o.gates_copied, o.stride, ORDERS.index(o.order)),
    )
    rows = tuple(_cost(source, option, option == default, wishes, host) for option in options)
    return Costs(rows, (*compared(requests), *_notes(source, rows)))


def _source(folder: Path, dest: Path | None, fmt: str) -> _Source:
    store = open_store(folder)
    model = resolve(store.config)
    layout = NeuronLayout(neuron_format(fmt), model.config.hidden, model.config.gated)
    if store.neurons is not None:
        layout = store.neurons.layout
    return _Source(store, model, layout, direct_alignment(dest or folder / "packed"))


def _options(source: _Source, default: Option) -> Iterator[Option]:
    """The default, and what differs from it in one thing."""
    for order in ORDERS:
        yield replace(default, order=order)
    for stride in (source.layout.bytes, *(source.padded(source.layout.bytes, step) for step in _STEPS)):
        yield replace(default, stride=stride)
    without = source.layout.bytes - len(source.layout.roles) * source.scale_bytes
    yield replace(default, stride=source.padded(without), resident_scales=True)
    if least_gate(source.model, source.store.entries) is not None:
        yield replace(default, gates_copied=True)


def _cost(source: _Source, option: Option, default: bool, wishes: Wishes, host: Host) -> Cost:
    size = source.neurons * option.stride + option.gates_copied * gates_bytes(_imagined(source, option))
    if option.stride % source.alignment:
        why = f"direct reads of this drive ask for multiples of {source.alignment}"
        return Cost(option, default, size, remark=why)
    try:
        planning = _Imagined(source, option, wishes, host)
        placement = planning.choice().placement
    except MemoryBudgetError:
        if default:
            raise
        return Cost(option, default, size, remark="does not fit into the budget")
    demand, rates = placement.demand, planning.rates
    assert demand is not None, "there is a profile"
    scales, own = planning.scale_bytes, planning.sizes
    in_order = own.in_order_bytes(placement.predictor)
    ordered_s = in_order / rates.seq_bytes_per_s if rates else 0.0
    return Cost(
        option,
        default,
        size,
        neurons=sum(placement.hot) + placement.cold_slots,
        memory_bytes=sum(placement.bytes(planning.sizes).values()) + scales,
        missed=demand.missed,
        requests=demand.requests + own.in_order_reads(placement.predictor),
        read_bytes=demand.read_bytes + in_order,
        drive_s=rates.drive_seconds(demand.requests, demand.read_bytes) + ordered_s if rates else None,
        tokens_per_s=placement.forecast.tokens_per_s if placement.forecast else None,
        remark="an estimate: there are no such bundles" if option.resident_scales else "",
    )


class _Imagined(Planning):
    """Of a store as it would be if it were packed with an option."""

    def __init__(self, source: _Source, option: Option, wishes: Wishes, host: Host) -> None:
        self._source, self._option = source, option
        of_all = source.neurons * len(source.layout.roles) * source.scale_bytes
        self.scale_bytes = of_all if option.resident_scales else 0
        info = _imagined(source, option)
        super().__init__(replace(source.store, neurons=info), source.model, wishes, {}, host)

    def _gates(self) -> bool:
        return self._option.gates_copied

    def _chosen_for(self) -> NeuronInfo:
        return self._source.store.neurons or self.info

    def _resident(self) -> int:
        return super()._resident() + self.scale_bytes

    def _sizes(self) -> NeuronSizes:
        sizes = super()._sizes()
        if not self._option.resident_scales or not sizes.gated:
            return sizes
        without_gate = self._source.padded(2 * (sizes.vector_bytes - self._source.scale_bytes))
        return replace(sizes, stride_without_gate=without_gate)


@dataclass(frozen=True, slots=True)
class _Ordered(NeuronInfo):
    """Bundles that are nowhere yet."""

    orders: tuple[NDArray[np.int32], ...] = ()

    def read_order(self, layer: int) -> NDArray[np.int32]:
        return self.orders[layer]


def _imagined(source: _Source, option: Option) -> NeuronInfo:
    layers, ffn = len(source.model.config.layers), source.model.config.ffn
    return _Ordered(
        path=str(source.store.path / NEURONS),
        fmt=source.layout.fmt,
        gated=source.layout.gated,
        hidden=source.layout.hidden,
        ffn=ffn,
        stride=option.stride,
        order=option.order,
        offsets=(0,) * layers,
        _orders=(),
        _sums=(),
        orders=tuple(neuron_orders(option.order, source.store, layers, ffn)),
    )


def _notes(source: _Source, rows: tuple[Cost, ...]) -> Iterator[str]:
    default = next(row for row in rows if row.default)
    scales = next(row for row in rows if row.option.resident_scales)
    yield (
        f"stride {default.option.stride}: a neuron has {source.layout.bytes} bytes, and direct reads of this drive ask "
        f"for multiples of {source.alignment}; more is read and held for nothing"
    )
    if scales.tokens_per_s and default.tokens_per_s:
        change = scales.tokens_per_s / default.tokens_per_s - 1
        yield f"scales in the bundle: with all of them in memory tokens/s would change by {change:+.1%}"
    copied = next((row for row in rows if row.option.gates_copied), None)
    if copied and copied.tokens_per_s and default.tokens_per_s:
        change = copied.tokens_per_s / default.tokens_per_s - 1
        yield f"gates in the bundle: with a copy of all of them (--gates copy) tokens/s would change by {change:+.1%}"
    if default.tokens_per_s is None:
        yield "this host was not probed, so no times are known; `hotset probe` measures them"
