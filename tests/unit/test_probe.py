"""What a probe concludes from its samples, and that it is measured once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hotset import _core
from hotset.errors import FormatError, StorageError
from hotset.planner.rates import Rates, load_rates, rates_from_json
from hotset.tools import probe as tool
from hotset.tools import probe_drive, probe_neurons
from hotset.tools.probe_drive import MIB, DriveGrid, DriveSample
from hotset.tools.probe_kernels import int8_gmac_per_s, thread_counts

RATES = Rates(
    threads=2,
    seq_bytes_per_s=3e9,
    random_reads_per_s={4096: 100e3, 16384: 50e3},
    best_depth={4096: 64, 16384: 32},
    cpu_us_per_read=5.0,
    memory_bytes_per_s={1: 10e9, 4: 30e9},
    int8_gmac_per_s={1: 100.0, 2: 190.0},
    neuron_bytes_per_s={1: 7e9},
)
SMALL = DriveGrid((4096, 16384), (1, 8), (2,), (2 * MIB,), 0.005, 2, 4 * MIB)


def sample(backend: str, block: int, depth: int, reads: float, *, random: bool = True, size: int = 100) -> DriveSample:
    return DriveSample(backend, random, block, depth, size, reads, reads * block, 1e6 / reads, True)


def test_reads_of_any_size() -> None:
    assert RATES.reads_per_s(512) == 100e3
    assert RATES.reads_per_s(4096) == 100e3
    assert RATES.reads_per_s(10240) == pytest.approx(1 / 15e-6)  # half way between 10 and 20 microseconds
    assert RATES.reads_per_s(16384) == pytest.approx(50e3)
    assert RATES.reads_per_s(65536) == pytest.approx(12.5e3)


def test_rates_by_threads() -> None:
    assert [RATES.memory_rate(n) for n in (1, 2, 4, 9)] == [10e9, 10e9, 30e9, 30e9]
    assert [RATES.gmac_rate(n) for n in (1, 2, 3)] == [100, 190, 190]
    assert RATES.neuron_rate(3) == 7e9
    assert replace(RATES, neuron_bytes_per_s={}).neuron_rate(4) == RATES.memory_rate(4)
    assert replace(RATES, memory_bytes_per_s={2: 7e9}).memory_rate(1) == 7e9


def test_rates_survive_a_file(tmp_path: Path) -> None:
    path = tmp_path / "probe.json"
    path.write_text(json.dumps({"format_version": 1, "rates": RATES.as_json()}))
    assert load_rates(path) == RATES
    old = replace(RATES, neuron_bytes_per_s={})
    assert rates_from_json(old.as_json(), "here") == old


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("threads", 0), ("threads", True), ("threads", 1.5), ("seq_bytes_per_s", -1), ("seq_bytes_per_s", "3"),
        ("random_reads_per_s", {}), ("random_reads_per_s", {"a": 1}), ("random_reads_per_s", {"4096": None}),
        ("best_depth", {"4096": 1.5}), ("memory_bytes_per_s", [1]), ("direct", 1), ("backend", None),
        ("cpu_us_per_read", 10**400),
    ],
)  # fmt: skip
def test_hostile_rates(field: str, value: object) -> None:
    with pytest.raises(FormatError, match=field):
        rates_from_json(RATES.as_json() | {field: value}, "here")


def test_hostile_files(tmp_path: Path) -> None:
    path = tmp_path / "probe.json"
    with pytest.raises(StorageError, match="hotset probe"):
        load_rates(path)
    for text in ("", "[1]", "{", "[" * 100_000, '{"format_version": 2}', '{"format_version": true}', "\xff"):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(FormatError, match="hotset probe"):
            load_rates(path)
    with pytest.raises(FormatError, match="exactly threads"):
        rates_from_json({"threads": 1}, "here")


def test_summary_takes_the_best() -> None:
    drive = [
        sample("pread", 4096, 64, 50e3), sample("pread", MIB, 4, 9e3, random=False),
        sample("io_uring", 4096, 1, 10e3), sample("io_uring", 4096, 32, 97e3), sample("io_uring", 4096, 64, 100e3),
        sample("io_uring", 65536, 1, 20e3), sample("io_uring", 65536, 64, 30e3),
        sample("io_uring", MIB, 4, 3e3, random=False), sample("io_uring", MIB, 8, 2e3, random=False),
        sample("pread", 4096, 64, 900e3, size=10),  # a small range says nothing about the whole
    ]  # fmt: skip
    rates = tool.summary(2, drive, {2: [5.0, 6.0], 1: [3.0]}, {1: [9.0, 8.0]}, {1: [2.0]})
    assert rates.backend == "io_uring"
    assert rates.seq_bytes_per_s == 3e3 * MIB
    assert rates.random_reads_per_s == {4096: 97e3, 65536: 30e3}
    assert rates.best_depth == {4096: 32, 65536: 64}
    assert rates.cpu_us_per_read == pytest.approx(1e6 / 97e3)
    assert (rates.memory_bytes_per_s, rates.int8_gmac_per_s) == ({1: 3.0, 2: 6.0}, {1: 9.0})
    assert rates.neuron_bytes_per_s == {1: 2.0}


def test_equal_back_ends_are_told_apart_by_cpu() -> None:
    def backend(*reads_and_cpu: tuple[float, float]) -> str:
        random = [
            replace(sample(name, 4096, 8, reads), cpu_us_per_read=cpu)
            for name, (reads, cpu) in zip(("pread", "io_uring"), reads_and_cpu, strict=True)
        ]
        order = [sample(name, MIB, 4, 1e3, random=False) for name in ("pread", "io_uring")]
        return tool.summary(2, random + order, {1: [1.0]}, {1: [1.0]}, {1: [1.0]}).backend

    assert backend((100e3, 8), (90e3, 3)) == "io_uring"
    assert backend((100e3, 8), (60e3, 3)) == "pread"
    assert backend((60e3, 8), (100e3, 9)) == "io_uring"


def test_drive_samples(tmp_path: Path) -> None:
    done: list[int] = []
    with probe_drive.scratch_file(tmp_path / "new", 4 * MIB) as path:
        samples = probe_drive.measure(path, SMALL, lambda: done.append(1))
        assert path.stat().st_size == 4 * MIB
    assert len(samples) == len(done) == probe_drive.steps(SMALL)
    assert not any((tmp_path / "new").iterdir())
    for s in samples:
        assert s.bytes_per_s == pytest.approx(s.reads_per_s * s.block_bytes)
        assert s.reads_per_s > 0
    assert {s.range_bytes for s in samples} == {2 * MIB, 4 * MIB}
    assert {s.backend for s in samples} == set(probe_drive.backends())


def test_file_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_drive, "LEAST_FILE", 2 * MIB)
    (tmp_path / "resident.safetensors").write_bytes(bytes(MIB))
    with probe_drive.file_to_read(tmp_path, 3 * MIB) as path:
        assert path.stat().st_size == 3 * MIB
    assert not path.exists()
    (tmp_path / "neurons.safetensors").write_bytes(bytes(2 * MIB))
    with probe_drive.file_to_read(tmp_path, 3 * MIB) as path:
        assert path.name == "neurons.safetensors"
    assert path.exists()


def test_full_drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_drive.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100 * MIB}))
    with pytest.raises(StorageError, match="100 MiB free"), probe_drive.file_to_read(tmp_path, 3 * MIB):
        pass


def test_thread_counts() -> None:
    assert [thread_counts(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


def test_kernel_rate_is_in_the_right_place() -> None:
    """Between what scalar code and any CPU could do."""
    assert 0.05 < int8_gmac_per_s(2, 0.05) < 10_000


def test_neurons_of_a_known_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every neuron is active, so the bytes counted are the bytes computed."""
    model = probe_neurons.NeuronModel(tmp_path, 128)
    engine = model.engine(1)
    engine.record(activations=True)
    step = np.ones(1, np.int32)
    engine.step(np.array([engine.sequence_new()], np.int32), step, step, np.zeros(1, np.uint8))
    assert np.unpackbits(engine.take_record()[0]).sum() == 128
    assert model.bytes_per_token == 128 * 3 * _core.vector_bytes("q4_0", probe_neurons.HIDDEN)
    monkeypatch.setattr("time.perf_counter", iter(range(100)).__next__)  # a second each time
    assert probe_neurons.neuron_bytes_per_s(model, 2, 4.5) == 4 * model.bytes_per_token / 5


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose probe takes no time, with a cache of its own."""
    monkeypatch.setenv("HOTSET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(probe_drive, "QUICK", SMALL)
    monkeypatch.setattr(probe_drive, "FULL", SMALL)
    monkeypatch.setattr(probe_drive, "LEAST_FILE", MIB)
    monkeypatch.setattr("hotset.tools.probe_kernels.int8_gmac_per_s", lambda threads, seconds: 50.0 * threads)
    monkeypatch.setattr(probe_neurons, "_LEAST_BYTES", MIB)
    monkeypatch.setattr(probe_neurons, "_CACHES", 0)
    monkeypatch.setattr("hotset.tools.doctor.memory_rates", lambda counts, seconds: {n: 5e9 * n for n in counts})
    return tmp_path / "place"


def test_measured_once(quick: Path) -> None:
    assert tool.cached_rates(quick) is None
    steps: list[tuple[int, int, str]] = []
    first = tool.probe(quick, progress=lambda done, total, what: steps.append((done, total, what)))
    assert steps[-1][0] == steps[-1][1] == len(steps)
    assert first.fresh
    assert tool.cached_rates(quick) == first.rates
    again = tool.probe(quick)
    assert not again.fresh
    assert (again.rates, again.record["measured_at"]) == (first.rates, first.record["measured_at"])
    assert 0 <= again.age_seconds < 60
    assert tool.probe(quick, refresh=True).fresh
    assert tool.probe(quick, full=True).fresh  # quick is not enough
    assert not tool.probe(quick, full=True).fresh
    assert not tool.probe(quick).fresh


@pytest.mark.parametrize(("load", "busy"), [(0.0, False), (0.4, False), (1e3, True)])
def test_a_busy_host_is_told(quick: Path, monkeypatch: pytest.MonkeyPatch, load: float, busy: bool) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (load, load, load))
    for found in (tool.probe(quick), tool.probe(quick)):
        assert (found.busy is not None) == busy
        assert not busy or "--refresh" in str(found.busy)


def test_another_host_measures_again(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool.probe(quick)
    info = _core.cpu_info() | {"model": "another CPU"}
    monkeypatch.setattr(_core, "cpu_info", lambda: info)
    assert tool.cached_rates(quick) is None
    assert tool.probe(quick).fresh


@pytest.mark.parametrize("damage", ["", "{}", '{"format_version": 1}'])
def test_damaged_result_is_replaced(quick: Path, damage: str) -> None:
    path = tool.probe(quick).path
    path.write_text(damage)
    with pytest.raises(FormatError):
        tool.cached_rates(quick)
    assert tool.probe(quick).fresh
    assert not tool.probe(quick).fresh
