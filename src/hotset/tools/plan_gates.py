"""Whether a copy of the gates on the drive would pay, for plans of a store that has none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from hotset.formats.gates import gates_bytes, piece_stride
from hotset.formats.store import Store
from hotset.planner.placement import Placement, Profiled
from hotset.planner.plan import Host, place
from hotset.planner.sizes import NeuronSizes

_WORTH_IT = 1.15  # times as fast, for which to advise a third more of the drive


def copy_remark(
    store: Store, sizes: NeuronSizes, mine: Placement, room: int, profiled: Profiled | None, host: Host
) -> Iterator[str]:
    """What to tell a user whose exact plan would be faster with a copy. mine: the plan's placement within `room`."""
    assert store.neurons is not None
    if not sizes.gate_bytes or sizes.read_gate_bytes or mine.predictor not in ("all", "gate"):
        return
    if mine.demand is None or mine.demand.missed == 0 or mine.forecast is None:
        return
    sizes = replace(sizes, read_gate_bytes=gates_bytes(store.neurons), gate_piece=piece_stride(store.neurons))
    other = place(sizes, room, ["read-gate"], profiled, host)
    if other.predictor != "read-gate" or other.forecast is None:
        return
    if other.forecast.tokens_per_s > _WORTH_IT * mine.forecast.tokens_per_s:
        yield (
            f"with a copy of its gates, {sizes.read_gate_bytes / 1e9:.2f} GB more on the drive, this plan would make "
            f"{other.forecast.tokens_per_s:.2f} tokens/s: `hotset pack {store.path} --gates copy`"
        )
