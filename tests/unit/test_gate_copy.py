"""`gates.safetensors`, which `hotset pack --gates copy` writes: against the bundles; damaged; in plans."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from packed_stores import bundles_of, dense_stores, neurons_of
from plan_models import HOST, SIZES, shares_of, trace
from safetensors import safe_open

from hotset import _core
from hotset.errors import FormatError, StorageError, UsageError
from hotset.formats.gates import GATES_FILE, read_gates, verify_gates
from hotset.formats.store import open_store
from hotset.planner.placement import Placement, Profiled
from hotset.planner.plan import judged, place
from hotset.tools.pack import pack

LAYERS = 16
MANY = replace(SIZES, layers=LAYERS, gate_bytes=LAYERS * 1024 * 2304, stride_without_gate=4608)
COPIED = replace(MANY, read_gate_bytes=MANY.gate_bytes, gate_piece=512 * MANY.vector_bytes)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dense_stores(tmp_path_factory.mktemp("dense"))("bamboo", "q8_0")


@pytest.fixture(scope="module")
def packed(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(dense, tmp_path_factory.mktemp("packed") / "store", gates=True).dest


def test_the_copy_is_of_the_bundles_gates(packed: Path) -> None:
    """As any safetensors reader sees them."""
    info = neurons_of(open_store(packed))
    size = info.layout.vector_bytes
    with safe_open(packed / GATES_FILE, "numpy") as file:
        for layer in range(info.layers):
            bundles = bundles_of(info, layer)
            copy = file.get_tensor(f"hotset.layers.{layer}.gates").reshape(-(-info.ffn // 512), -1)
            whole = np.concatenate([row[: min(512, info.ffn) * size] for row in copy])
            vectors = whole[: info.ffn * size].reshape(info.ffn, size)
            assert (vectors == bundles[:, 2 * size : 3 * size]).all()
            found = read_gates(packed, info)
            assert found is not None
            sums, rest = found.read_sums(layer)
            assert sums.tolist() == [_core.crc32c(vectors[i : i + 16].tobytes()) for i in range(0, info.ffn, 16)]
            assert rest.tolist() == [_core.crc32c(bundle[: 2 * size].tobytes()) for bundle in bundles]
            assert found.offsets[layer] % 4096 == 0


def test_a_packed_store_gets_one_and_keeps_it(dense: Path, packed: Path, tmp_path: Path) -> None:
    plain = pack(dense, tmp_path / "plain").dest
    neurons = (plain / "neurons.safetensors").read_bytes()
    report = pack(plain, gates=True)
    assert (report.dest, report.unchanged) == (plain, True)
    assert report.gate_bytes == (plain / GATES_FILE).stat().st_size
    assert (plain / GATES_FILE).read_bytes() == (packed / GATES_FILE).read_bytes()
    assert (plain / "neurons.safetensors").read_bytes() == neurons
    before = (plain / GATES_FILE).stat().st_mtime_ns
    pack(plain, gates=True)
    assert (plain / GATES_FILE).stat().st_mtime_ns == before
    pack(plain, gates=True, force=True)
    assert (plain / GATES_FILE).stat().st_mtime_ns != before


def test_no_copy_where_gates_tell_nothing(tmp_path: Path) -> None:
    dense = dense_stores(tmp_path)("arcee", "q8_0")
    with pytest.raises(UsageError, match="does not tell which neurons are zero"):
        pack(dense, tmp_path / "packed", gates=True)
    assert not (tmp_path / "packed").exists()


def test_damage_is_named(packed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(packed, tmp_path / "store")
    info = neurons_of(open_store(folder))
    found = read_gates(folder, info)
    assert found is not None
    whole = (folder / GATES_FILE).read_bytes()

    def with_change(at: int) -> None:
        data = bytearray(whole)
        data[at] ^= 1
        (folder / GATES_FILE).write_bytes(data)

    with_change(found.offsets[1] + 5)  # a weight: seen when it is read, and by inspect --verify
    assert read_gates(folder, info) is not None
    with pytest.raises(StorageError, match=r"hotset\.layers\.1\.gates"):
        verify_gates(folder)
    with_change(found.offsets[1] - 4096)  # a checksum
    with pytest.raises(StorageError, match=r"hotset\.layers\.0\.rest\.crc32c"):
        read_gates(folder, info)
    (folder / GATES_FILE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises((StorageError, FormatError)):
        read_gates(folder, info)
    (folder / "neurons.safetensors").write_bytes(_damaged(folder / "neurons.safetensors", info.offsets[0] + 7))
    with pytest.raises(StorageError, match="neuron 0 of layer 0 has checksum"):
        pack(folder, gates=True, force=True)


def _damaged(path: Path, at: int) -> bytes:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    return bytes(data)


def test_another_order_is_refused(packed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(packed, tmp_path / "store")
    raw = (folder / GATES_FILE).read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    about = json.loads(header["__metadata__"]["gates"])
    about["order_crc32c"] ^= 1
    header["__metadata__"] = {"gates": json.dumps(about)}
    text = json.dumps(header).encode().ljust(size)
    (folder / GATES_FILE).write_bytes(raw[:8] + text + raw[8 + size :])
    with pytest.raises(UsageError, match="another order of neurons"):
        read_gates(folder, neurons_of(open_store(folder)))


# --- plans ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def profiled() -> Profiled:
    return Profiled(shares_of([trace(seed) for seed in range(4)] * (LAYERS // 4)), {})


def placed(room: int, profiled: Profiled | None) -> Placement:
    return place(COPIED, room, ["gate", "read-gate", "all"], profiled, HOST)


def test_gates_are_read_where_they_do_not_fit(profiled: Profiled) -> None:
    room = COPIED.gate_bytes  # not enough for them and the neurons of a layer
    found = placed(room, profiled)
    assert found.predictor == "read-gate" and sum(found.hot) == 0
    assert sum(found.bytes(COPIED).values()) <= room
    other = place(MANY, room, ["gate", "all"], profiled, HOST)
    assert other.predictor == "all"
    assert found.forecast and other.forecast
    assert found.forecast.tokens_per_s > other.forecast.tokens_per_s


def test_gates_stay_in_memory_where_everything_fits(profiled: Profiled) -> None:
    found = placed(COPIED.gate_bytes + COPIED.neurons * COPIED.stride + (1 << 20), profiled)
    assert found.predictor == "gate" and sum(found.hot) == COPIED.neurons


def test_the_forecast_has_the_gates_in_order_and_what_is_missed_at_random(profiled: Profiled) -> None:
    plain = judged(Placement("gate", (0,) * LAYERS, 8000), COPIED, profiled, HOST).forecast
    read = judged(Placement("read-gate", (0,) * LAYERS, 8000), COPIED, profiled, HOST).forecast
    assert plain and read and HOST.rates
    assert read.drive_bytes - plain.drive_bytes == pytest.approx(LAYERS * 1024 * 2304)
    assert read.drive_s - plain.drive_s == pytest.approx(LAYERS * 1024 * 2304 / HOST.rates.seq_bytes_per_s)
    assert read.reads - plain.reads == LAYERS * 2
    assert read.memory_s == pytest.approx(plain.memory_s, rel=0.02)  # either way every gate passes through the cores
