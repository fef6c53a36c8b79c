"""What a probe concludes from its samples, and how it gets them."""

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
from hotset.tools.probe_kernels import check_bytes_per_s, int8_gmac_per_s, thread_counts

RATES = Rates(
    threads=2,
    seq_bytes_per_s=3e9,
    random_reads_per_s={4096: 100e3, 16384: 50e3},
    best_depth={4096: 64, 16384: 32},
    cpu_us_per_read={4096: 5.0, 16384: 6.0},
    memory_bytes_per_s={1: 10e9, 4: 30e9},
    int8_gmac_per_s={1: 100.0, 2: 190.0},
    weight_bytes_per_s={2: 20e9},
    neuron_bytes_per_s={1: 7e9},
    check_bytes_per_s={1: 15e9},
    placed_reads_per_s={4096: 80e3, 16384: 40e3},
    busy_seq_bytes_per_s={1: 2.5e9, 2: 2e9},
    busy_work_share={1: 0.9, 2: 0.8},
    layer_s={1: 1e-5},
    vector_s={1: 2e-8, 2: 1e-8},
    cache_bytes=1 << 20,
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


def test_no_mix_of_reads_is_faster_than_the_bound() -> None:
    """By brute force: mixes of 40 requests of all sizes measured, none smaller than the neuron's."""
    sizes, least = (4096, 8192, 16384), 4096
    rates = replace(RATES, random_reads_per_s={4096: 100e3, 8192: 60e3, 16384: 55e3}, seq_bytes_per_s=1e9)
    for small in range(0, 41, 5):
        for middle in range(0, 41 - small, 5):
            counts = (small, middle, 40 - small - middle)
            took = sum(n / rates.reads_per_s(size) for n, size in zip(counts, sizes, strict=True))
            read = sum(n * size for n, size in zip(counts, sizes, strict=True))
            assert rates.least_drive_seconds(40, read, least) <= took * (1 + 1e-9)
    assert rates.least_drive_seconds(40, 40 * 4096, least) == pytest.approx(40 / 100e3), "reached by equal requests"
    assert rates.least_drive_seconds(1, 10 * 16384, least) == pytest.approx(10 / 55e3)
    assert rates.least_drive_seconds(0, 0, least) == rates.drive_seconds(0, 0) == rates.read_cpu_s(0, 0) == 0
    fast = replace(rates, random_reads_per_s={4096: 100e3, 1 << 20: 900.0})
    assert fast.least_drive_seconds(3, 3 << 20, least) == pytest.approx((3 << 20) / 1e9), "reads in order"


def test_what_so_many_reads_take() -> None:
    assert RATES.drive_seconds(10, 10 * 10240) == pytest.approx(10 * 18.75e-6)
    assert replace(RATES, placed_reads_per_s={}).drive_seconds(10, 10 * 10240) == pytest.approx(10 * 15e-6)
    assert RATES.read_cpu_s(10, 10 * 5000) == pytest.approx(50e-6)
    assert RATES.read_cpu_s(10, 10 * 90_000) == pytest.approx(60e-6)


@pytest.mark.parametrize(("read", "work"), [(3e9, 0.1), (3e9, 0.5), (3e9, 2.0), (0, 1.0), (1e9, 0)])
def test_reads_in_order_beside_work(read: float, work: float) -> None:
    """Step by step: both at their shared pace, then what is left at its own, into memory that no cache holds."""
    rates = replace(RATES, placed_reads_per_s={4096: 80e3, 1 << 20: 2.7e9 / (1 << 20)})
    step, seconds, left_read, left_work = 1e-4, 0.0, read, work
    while left_read > 0 or left_work > 0:
        both = left_read > 0 and left_work > 0
        left_read -= step * (2e9 if both else 2.7e9)
        left_work -= step * (0.8 if both else 1.0)
        seconds += step
    assert rates.in_order_seconds(read, work, 2) == pytest.approx(seconds, abs=3 * step)
    bare = replace(RATES, busy_seq_bytes_per_s={}, busy_work_share={}, placed_reads_per_s={})
    assert bare.in_order_seconds(read, work, 2) == max(read / 3e9, work)


def test_rates_by_threads() -> None:
    assert [RATES.memory_rate(n) for n in (1, 2, 4, 9)] == [10e9, 10e9, 30e9, 30e9]
    assert [RATES.gmac_rate(n) for n in (1, 2, 3)] == [100, 190, 190]
    assert (RATES.neuron_rate(3), RATES.weight_rate(1), RATES.check_rate(2)) == (7e9, 20e9, 15e9)
    bare = replace(RATES, neuron_bytes_per_s={}, weight_bytes_per_s={}, check_bytes_per_s={})
    assert {bare.neuron_rate(4), bare.weight_rate(4), bare.check_rate(4)} == {RATES.memory_rate(4)}
    assert replace(RATES, memory_bytes_per_s={2: 7e9}).memory_rate(1) == 7e9


def test_rates_survive_a_file(tmp_path: Path) -> None:
    path = tmp_path / "probe.json"
    path.write_text(json.dumps({"format_version": 4, "rates": RATES.as_json()}))
    assert load_rates(path) == RATES
    old = replace(RATES, neuron_bytes_per_s={})
    assert rates_from_json(old.as_json(), "here") == old


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("threads", 0), ("threads", True), ("threads", 1.5), ("seq_bytes_per_s", -1), ("seq_bytes_per_s", "3"),
        ("random_reads_per_s", {}), ("random_reads_per_s", {"a": 1}), ("random_reads_per_s", {"4096": None}),
        ("best_depth", {"4096": 1.5}), ("memory_bytes_per_s", [1]), ("direct", 1), ("backend", None),
        ("cpu_us_per_read", {"4096": 10**400}), ("cpu_us_per_read", {}), ("check_bytes_per_s", {"1": 0}),
        ("cache_bytes", 0),
    ],
)  # fmt: skip
def test_hostile_rates(field: str, value: object) -> None:
    with pytest.raises(FormatError, match=field):
        rates_from_json(RATES.as_json() | {field: value}, "here")


def test_hostile_files(tmp_path: Path) -> None:
    path = tmp_path / "probe.json"
    with pytest.raises(StorageError, match="hotset probe"):
        load_rates(path)
    for text in ("", "[1]", "{", "[" * 100_000, '{"format_version": 1}', '{"format_version": true}', "\xff"):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(FormatError, match="hotset probe"):
            load_rates(path)
    with pytest.raises(FormatError, match="exactly threads"):
        rates_from_json({"threads": 1}, "here")


TABLE = {
    "memory_bytes_per_s": {2: [5.0, 6.0], 1: [3.0]},
    "int8_gmac_per_s": {1: [9.0, 8.0]},
    "weight_bytes_per_s": {1: [3.0, 4.0, 9.0]},
    "neuron_bytes_per_s": {1: [2.0]},
    "check_bytes_per_s": {1: [5.0, 6.0]},
    "placed_reads_per_s": {4096: [7.0, 8.0, 6.0]},
    "busy_seq_bytes_per_s": {1: [2.0, 1.0, 3.0]},
    "busy_work_share": {1: [0.9, 0.8, 1.0]},
    "layer_s": {1: [2e-5, 1e-5, 3e-5]},
    "vector_s": {1: [2e-8]},
}


def test_summary_takes_the_best() -> None:
    drive = [
        sample("pread", 4096, 64, 50e3), sample("pread", MIB, 4, 9e3, random=False),
        sample("io_uring", 4096, 1, 10e3), sample("io_uring", 4096, 32, 97e3), sample("io_uring", 4096, 64, 100e3),
        sample("io_uring", 65536, 1, 20e3), sample("io_uring", 65536, 64, 30e3),
        sample("io_uring", MIB, 4, 3e3, random=False), sample("io_uring", MIB, 8, 2e3, random=False),
        sample("pread", 4096, 64, 900e3, size=10),  # a small range says nothing about the whole
    ]  # fmt: skip
    rates = tool.summary(2, drive, TABLE, 77)
    assert rates.backend == "io_uring"
    assert rates.seq_bytes_per_s == 3e3 * MIB
    assert rates.random_reads_per_s == {4096: 100e3, 65536: 30e3}
    assert rates.best_depth == {4096: 32, 65536: 64}, "the least that is good enough"
    assert rates.cpu_us_per_read == pytest.approx({4096: 1e6 / 97e3, 65536: 1e6 / 30e3})
    assert (rates.memory_bytes_per_s, rates.int8_gmac_per_s) == ({1: 9.0, 2: 6.0}, {1: 9.0})
    engine = (rates.weight_bytes_per_s, rates.neuron_bytes_per_s, rates.check_bytes_per_s)
    assert engine == ({1: 4.0}, {1: 2.0}, {1: 5.5}), "medians"
    beside = (rates.placed_reads_per_s, rates.busy_seq_bytes_per_s, rates.busy_work_share)
    assert beside == ({4096: 7.0}, {1: 2.0}, {1: 0.9}), "medians"
    assert rates.cache_bytes == 77


def test_equal_back_ends_are_told_apart_by_cpu() -> None:
    def backend(*reads_and_cpu: tuple[float, float]) -> str:
        random = [
            replace(sample(name, 4096, 8, reads), cpu_us_per_read=cpu)
            for name, (reads, cpu) in zip(("pread", "io_uring"), reads_and_cpu, strict=True)
        ]
        order = [sample(name, MIB, 4, 1e3, random=False) for name in ("pread", "io_uring")]
        return tool.summary(2, random + order, TABLE).backend

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


def test_rates_of_cores_are_in_the_right_place() -> None:
    """Between what scalar code and any CPU could do."""
    assert 0.05 < int8_gmac_per_s(2, 0.05) < 10_000
    assert 1e8 < check_bytes_per_s(2, 0.05) < 1e12


def test_neurons_of_a_known_model(tmp_path: Path) -> None:
    """Vectors are counted by what the engine says: gates of all candidates, the rest of those with a gate above 0."""
    model = probe_neurons.NeuronModel(tmp_path, 3, 256)
    engine = model.engine(1, probe_neurons.ALL)
    engine.record(activations=True)
    step = np.ones(1, np.int32)
    engine.step(np.array([engine.sequence_new()], np.int32), step, step, np.ones(1, np.uint8))
    active = np.unpackbits(engine.take_record()[0]).sum()
    assert 0.3 * 3 * 256 < active < 0.7 * 3 * 256, "half of the gates of random weights"
    rows = sum((4096, 512, 512, 4096)) + probe_neurons.RANK
    maps = _core.packed_bytes("q4_0", rows, 4096) + _core.packed_bytes("q4_0", 256, probe_neurons.RANK)
    assert model.weight_bytes == 3 * maps
    chosen = {least: model.decode(2, least, 0.05).vectors for least in (-1e9, 0.674, 1e9)}
    assert chosen[1e9] == 0 and chosen[-1e9] == pytest.approx(3 * 256 + 2 * active, rel=0.2)
    assert chosen[0.674] == pytest.approx(chosen[-1e9] / 4, rel=0.3), "a quarter"


def test_rates_of_decoding_are_differences_of_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The large model's steps, then the small one's."""
    (tmp_path / "small").mkdir()
    small = probe_neurons.NeuronModel(tmp_path / "small", 2, 64, probe_neurons.SMALL)
    models = probe_neurons.NeuronModels(probe_neurons.NeuronModel(tmp_path, 1, 64), small)
    none, some, every = (probe_neurons.NONE, probe_neurons.A_QUARTER, probe_neurons.ALL)
    steps = {
        (1, none): probe_neurons.Step(2e-3, 0), (1, some): probe_neurons.Step(5e-3, 600),
        (2, none): probe_neurons.Step(4e-5, 0), (2, every): probe_neurons.Step(7e-5, 150),
    }  # fmt: skip
    monkeypatch.setattr(
        probe_neurons.NeuronModel, "decode", lambda self, threads, least, seconds: steps[self.layers, least]
    )
    layer_s, vector_s = (way(models, 2, 1.0) for way in (probe_neurons.layer_seconds, probe_neurons.vector_seconds))
    assert (layer_s, vector_s) == (pytest.approx(2e-5), pytest.approx(2e-7))
    weights, vector = models.large.weight_bytes, _core.vector_bytes("q4_0", 4096)
    assert probe_neurons.weight_bytes_per_s(models, 2, 1.0) == pytest.approx(weights / 2e-3)
    assert probe_neurons.weight_bytes_per_s(models, 2, 1.0, layer_s) == pytest.approx(weights / 1.98e-3)
    assert probe_neurons.neuron_bytes_per_s(models, 2, 1.0) == pytest.approx(600 * vector / 3e-3)
    assert probe_neurons.neuron_bytes_per_s(models, 2, 1.0, vector_s) == pytest.approx(vector / 4.8e-6)
    assert probe_neurons.neuron_bytes_per_s(models, 2, 1.0, 1.0) == pytest.approx(vector / 2.5e-6), "half at most"
