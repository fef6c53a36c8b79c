"""A probe is measured once, for each host and drive; what is kept is never worse than what it replaces."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from hotset import _core
from hotset.errors import FormatError, StorageError
from hotset.tools import plan_host, probe_drive, probe_neurons
from hotset.tools import probe as tool
from hotset.tools.disturbance import disturbed
from hotset.tools.probe_drive import MIB, DriveGrid

SMALL = DriveGrid((4096, 16384), (1, 8), (2,), (2 * MIB,), 0.005, 2, 4 * MIB)


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose probe takes no time, with a cache of its own."""
    monkeypatch.setenv("HOTSET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(probe_drive, "QUICK", SMALL)
    monkeypatch.setattr(probe_drive, "FULL", SMALL)
    monkeypatch.setattr(probe_drive, "LEAST_FILE", MIB)
    monkeypatch.setattr("hotset.tools.probe_kernels.int8_gmac_per_s", lambda threads, seconds: 50.0 * threads)
    monkeypatch.setattr("hotset.tools.probe_kernels.check_bytes_per_s", lambda threads, seconds: 9e9 * threads)
    monkeypatch.setattr(probe_neurons, "_LEAST_BYTES", MIB)
    monkeypatch.setattr(probe_neurons, "_CACHES", 0)
    monkeypatch.setattr(probe_neurons, "_MOST_STEPS", 3)
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


@pytest.mark.parametrize(("share", "busy"), [(0.0, False), (0.08, False), (0.6, True)])
def test_a_busy_host_is_told(quick: Path, monkeypatch: pytest.MonkeyPatch, share: float, busy: bool) -> None:
    def others(threads: int, work: Callable[[], object]) -> float:
        work()
        return share

    monkeypatch.setattr(tool, "disturbed", others)
    for found in (tool.probe(quick), tool.probe(quick)):
        assert (found.busy is not None) == busy
        assert not busy or re.search("60%.*--refresh", str(found.busy))


def test_the_least_disturbed_sample_counts(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other sample is taken beside something else, which halves the rate."""
    calls: list[bool] = []

    def others(threads: int, work: Callable[[], object]) -> float:
        calls.append(len(calls) % 2 == 0)
        work()
        return 0.5 if calls[-1] else 0.0

    monkeypatch.setattr(tool, "disturbed", others)
    rate = lambda threads, seconds: 1e9 if calls[-1] else 2e9  # noqa: E731
    monkeypatch.setattr("hotset.tools.probe_kernels.check_bytes_per_s", rate)
    found = tool.probe(quick)
    assert set(found.rates.check_bytes_per_s.values()) == {2e9}
    assert found.busy is None


def test_what_others_take_is_seen() -> None:
    """Processes that compute on every CPU take about half of each thread's time."""
    cpus = len(os.sched_getaffinity(0))
    if cpus != os.cpu_count():
        pytest.skip("not all CPUs are this process's")
    burn = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(burn) for _ in range(cpus)]

    def work() -> None:
        end = time.perf_counter() + 0.5
        while time.perf_counter() < end:
            pass

    try:
        assert disturbed(cpus, work) > 0.2
    finally:
        for process in others:
            process.kill()
            process.wait()
    assert 0 <= disturbed(1, work) <= 1


def test_another_host_measures_again(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool.probe(quick)
    info = _core.cpu_info() | {"model": "another CPU"}
    monkeypatch.setattr(_core, "cpu_info", lambda: info)
    assert tool.cached_rates(quick) is None
    assert tool.probe(quick).fresh


def test_a_drive_too_slow_to_be_seen_beside_work(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No read ends while the cores are measured: they do not slow it, so it has the rate that it has alone."""
    monkeypatch.setattr(probe_drive, "busy_in_order", lambda *_: (0.0, 1.0))
    found = tool.probe(quick)
    assert set(found.rates.busy_seq_bytes_per_s.values()) == {found.rates.seq_bytes_per_s}
    assert tool.cached_rates(quick) == found.rates
    assert set(found.record["busy_seq_bytes_per_s"][1]) == {0.0}, "samples are what was measured"


def test_rates_that_cannot_be_replace_none(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, summary = tool.probe(quick), tool.summary
    monkeypatch.setattr(tool, "summary", lambda *args: replace(summary(*args), seq_bytes_per_s=0.0))
    with pytest.raises(FormatError, match=r"seq_bytes_per_s is 0\.0"):
        tool.probe(quick, refresh=True)
    assert tool.cached_rates(quick) == first.rates


def test_a_store_on_a_read_only_mount(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick.mkdir()
    (quick / "neurons.safetensors").write_bytes(os.urandom(4 * MIB))
    make, access = os.mkdir, os.access

    def refuse(path: str, *args: object, **options: object) -> None:
        if quick in Path(path).parents:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        make(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "mkdir", refuse)
    monkeypatch.setattr(os, "access", lambda path, mode: access(path, mode) and Path(path) != quick)
    assert tool.probe(quick, full=True).fresh
    assert [file.name for file in quick.iterdir()] == ["neurons.safetensors"]
    assert not [*(quick.parent / "cache").glob(".probe-*")]


def test_no_room_for_the_models_of_a_probe(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(probe_neurons.NeuronModel, "_write_bundles", full)
        with (
            pytest.raises(StorageError, match=r"cache cannot hold models .*No space left"),
            probe_neurons.neuron_models(),
        ):
            pass
    assert not [*(quick.parent / "cache").iterdir()]
    (quick.parent / "file").touch()
    monkeypatch.setenv("HOTSET_CACHE", str(quick.parent / "file/cache"))
    with pytest.raises(StorageError, match=r"cannot hold models .*Not a directory"), probe_neurons.neuron_models():
        pass
    with pytest.raises(StorageError, match="cannot be written: Not a directory"):
        tool._write(quick.parent / "file/cache/probe.json", {})


def test_drives_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By all that the kernel says of them: sticks of one kind take turns as one device, exports of a server are one."""
    known = plan_host.mount(tmp_path)
    assert known.kind == plan_host.file_system(tmp_path) and known.source
    here = {"f_fsid": 1, "f_blocks": 10, "f_frsize": 4096}

    def at(mount: plan_host.Mount, **numbers: int) -> Path:
        monkeypatch.setattr(plan_host, "mount", lambda _: mount)
        monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(**here | numbers))
        return tool.probe_path(tmp_path / "not there yet")

    disk, share = plan_host.Mount("/", "vfat", "/dev/sdb1"), plan_host.Mount("/", "nfs4", "one:/models")
    others = [at(disk), at(disk, f_fsid=2), at(disk, f_blocks=11), at(replace(disk, source="/dev/sdc1")), at(share)]
    assert len({*others, at(replace(share, source="two:/models"))}) == 6
    assert at(disk) == others[0] and at(share, f_blocks=11) == others[-1], "its size is the server's affair"


@pytest.mark.parametrize("damage", ["", "{}", '{"format_version": 2}'])
def test_damaged_result_is_replaced(quick: Path, damage: str) -> None:
    path = tool.probe(quick).path
    path.write_text(damage)
    with pytest.raises(FormatError):
        tool.cached_rates(quick)
    assert tool.probe(quick).fresh
    assert not tool.probe(quick).fresh
