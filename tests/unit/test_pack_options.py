"""What `hotset pack --explain` says of an option, against the plan of a store that was packed with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from packed_stores import dense_stores, with_profile

from hotset.engine.budget import MIB, Host
from hotset.errors import MemoryBudgetError, UsageError
from hotset.formats.profile import Profile
from hotset.formats.store import open_store
from hotset.models import resolve
from hotset.quant import NeuronLayout
from hotset.tools import pack_order
from hotset.tools.pack import pack
from hotset.tools.pack_options import Cost, Option, pack_costs
from hotset.tools.pack_order import fewest_requests
from hotset.tools.plan import Planning, Wishes
from hotset.tools.random_model import ModelShape, random_model
from tests.clustered import activity, profile_of_activity
from tests.probed_hosts import RATES, write_probe

STRIDE = 16384  # so that requests are of few neurons, as those of larger models are
HOST = Host(base=100 * MIB, free=1 << 40)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dense_stores(tmp_path_factory.mktemp("dense"))("bamboo", "q8_0")


def profile_with(dense: Path, together: float) -> Profile:
    store = open_store(dense)
    config = resolve(store.config).config
    return profile_of_activity(store, activity(4500, len(config.layers), config.ffn, together))


@pytest.fixture
def folder(dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dense store with a profile, on a drive that was probed."""
    monkeypatch.setenv("HOTSET_CACHE", str(tmp_path / "cache"))
    write_probe(tmp_path / "cache", dense)
    return with_profile(dense, profile_with(dense, 0.8), tmp_path)


def planned(packed: Path, memory: int) -> Planning:
    store = open_store(packed)
    return Planning(store, resolve(store.config), Wishes(memory=memory, draft=False), {}, HOST)


@pytest.fixture
def memory(folder: Path, tmp_path: Path) -> int:
    """A budget in which about half of the neurons have room."""
    packed = pack(folder, tmp_path / "half", stride=STRIDE)
    for memory in range(150 * MIB, 400 * MIB, MIB // 4):
        try:
            placement = planned(packed.dest, memory).choice().placement
        except MemoryBudgetError:
            continue
        if sum(placement.hot) + placement.cold_slots > packed.layers * packed.neurons // 2:
            return memory
    raise AssertionError("no budget holds half of the neurons")


def row_of(rows: tuple[Cost, ...], order: str, stride: int) -> Cost:
    return next(row for row in rows if row.option == Option(order, stride))


def test_a_row_is_what_a_store_packed_so_would_plan(folder: Path, memory: int, tmp_path: Path) -> None:
    wishes = Wishes(memory=memory)
    costs = pack_costs(folder, tmp_path / "packed", stride=STRIDE, wishes=wishes, host=HOST)
    layers, ffn = np.array(profile_with(folder, 0.8).counts).shape[1:]
    for order, stride in [("none", STRIDE), ("frequency", STRIDE), ("coactivation", STRIDE), ("frequency", 4096)]:
        packed = pack(folder, tmp_path / f"{order}-{stride}", order=order, stride=stride).dest
        planning = planned(packed, memory)
        placement = planning.choice().placement
        demand, forecast = placement.demand, placement.forecast
        assert demand is not None and forecast is not None
        row = row_of(costs.rows, order, stride)
        assert row.drive_bytes == layers * ffn * stride
        assert row.neurons == sum(placement.hot) + placement.cold_slots
        assert row.memory_bytes == sum(placement.bytes(planning.sizes).values())
        assert (row.missed, row.requests, row.read_bytes) == (demand.missed, demand.requests, demand.read_bytes)
        assert row.tokens_per_s == forecast.tokens_per_s
        each = demand.read_bytes / max(demand.requests, 1e-9)
        assert row.drive_s == pytest.approx(demand.requests / RATES.reads_per_s(round(each)))
        # Of a store that is packed already, too.
        again = pack_costs(packed, stride=STRIDE, wishes=wishes, host=HOST)
        assert {row.option: row for row in again.rows} == {row.option: row for row in costs.rows}


def test_scales_in_memory_take_the_room_of_neurons(folder: Path, memory: int, tmp_path: Path) -> None:
    config = resolve(open_store(folder).config).config
    count, scales = len(config.layers) * config.ffn, 3 * 2 * -(-config.hidden // 32)
    for budget, all_fit in [(memory, False), (4 << 30, True)]:
        rows = pack_costs(folder, tmp_path / "packed", stride=STRIDE, wishes=Wishes(memory=budget), host=HOST).rows
        default, resident = (next(r for r in rows if chosen(r)) for chosen in (is_default, has_resident_scales))
        stride = -(-(NeuronLayout("q4_0", config.hidden, True).bytes - scales) // 512) * 512
        assert resident.option.stride == stride and resident.drive_bytes == count * stride
        assert "estimate" in resident.remark and not default.remark
        if all_fit:
            assert resident.neurons == default.neurons == count
            assert default.memory_bytes is not None and resident.memory_bytes is not None
            assert default.memory_bytes - resident.memory_bytes == count * (STRIDE - stride - scales)


def is_default(row: Cost) -> bool:
    return row.default


def has_resident_scales(row: Cost) -> bool:
    return row.option.resident_scales


@pytest.mark.parametrize("together", [0.0, 0.8])
def test_the_order_is_chosen_by_requests(together: float, tmp_path: Path) -> None:
    shape = ModelShape(hidden=64, ffn=800, layers=2, heads=4, kv_heads=2, vocab=512, context=256)
    random_model(shape, store=tmp_path / "dense")
    folder = with_profile(tmp_path / "dense", profile_with(tmp_path / "dense", together), tmp_path)
    store = open_store(folder)
    requests = fewest_requests(store, resolve(store.config), STRIDE)
    best = "coactivation" if together else "frequency"
    assert next(iter(requests)) == best
    assert together or requests["coactivation"] > pack_order.WORTH * requests["frequency"]
    report = pack(folder, tmp_path / "packed", stride=STRIDE)
    assert report.order == best and any(note.startswith(f"order {best}: with half") for note in report.notes)


def test_a_store_without_profile_tells_nothing(dense: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="hotset profile"):
        pack_costs(dense, tmp_path / "packed")
