"""What the core says of this host, its rates, and CRC-32C."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hotset import _core
from hotset.errors import HostError, StorageError, UsageError

BACKENDS = ["auto", "pread", "memory", *(["io_uring"] if _core.io_info()["io_uring_works"] else [])]


def test_isa_list_and_selection() -> None:
    isas = {isa.name: isa for isa in _core.isa_list()}
    assert isas["scalar"].supported
    assert all(isa.compiled for isa in isas.values() if isa.supported)
    assert all(isa.description for isa in isas.values())
    assert isas[_core.select_isa()].supported
    assert _core.select_isa("scalar") == "scalar"
    with pytest.raises(HostError, match="'mmx' is unknown; choose one of scalar"):
        _core.select_isa("mmx")
    for name, isa in isas.items():
        if not isa.supported:
            with pytest.raises(HostError, match="not supported"):
                _core.select_isa(name)


def test_isa_from_the_environment() -> None:
    code = "from hotset import _core; print(_core.select_isa(), _core.select_isa('scalar'))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HOTSET_ISA": "scalar"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == ["scalar", "scalar"]


def test_cpu_info() -> None:
    info = _core.cpu_info()
    flags = Path("/proc/cpuinfo").read_text().split()
    for feature, flag in (("avx2", "avx2"), ("avx512vnni", "avx512_vnni"), ("f16c", "f16c"), ("dotprod", "asimddp")):
        assert (feature in info["features"]) == (flag in flags)  # type: ignore[operator]
    assert set(info["allowed_cpus"]) <= os.sched_getaffinity(0)  # type: ignore[call-overload]
    assert info["model"]
    assert all(isinstance(info[f"l{level}_bytes"], int) for level in ("1d", "2", "3"))


def test_memory_bandwidth() -> None:
    assert 1e8 < _core.memory_bandwidth(1, 16, 0.02) < 1e13
    with pytest.raises(UsageError, match="seconds"):
        _core.memory_bandwidth(1, 16, 0)
    with pytest.raises(UsageError, match="megabytes"):
        _core.memory_bandwidth(1, 0, 1)
    with pytest.raises(UsageError, match="0 threads"):
        _core.memory_bandwidth(0, 16, 1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("random", [True, False])
def test_drive_read(tmp_path: Path, backend: str, random: bool) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * (1 << 20))
    rate = _core.drive_read(str(path), 4096, 4, backend, random, 0.02)
    assert rate["reads_per_s"] > 1
    assert rate["bytes_per_s"] == pytest.approx(4096 * rate["reads_per_s"])
    assert rate["cpu_us_per_read"] > 0
    assert rate["direct"] in {0.0, 1.0}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("threads", [1, 2])
def test_drive_read_beside_work(tmp_path: Path, backend: str, threads: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * (4 << 20))
    rate = _core.busy_drive_read(str(path), 1 << 18, 4, backend, threads, 0.1)
    assert rate["reads_per_s"] > 1
    assert rate["bytes_per_s"] == pytest.approx((1 << 18) * rate["reads_per_s"])
    assert 0 < rate["work_share"] <= 1
    with pytest.raises(UsageError, match="threads"):
        _core.busy_drive_read(str(path), 1 << 18, 4, backend, 0, 0.1)
    with pytest.raises(StorageError, match="No such file"):
        _core.busy_drive_read(str(tmp_path / "none"), 4096, 4, backend, threads, 0.1)


def test_drive_read_refuses(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 5000)
    with pytest.raises(StorageError, match="file has 5000 bytes, wanted at least one block of 8192"):
        _core.drive_read(str(path), 8192, 4, "auto", True, 0.01)
    with pytest.raises(StorageError, match="No such file"):
        _core.drive_read(str(tmp_path / "none"), 4096, 4, "auto", True, 0.01)
    with pytest.raises(UsageError, match="wanted auto, io_uring, pread"):
        _core.drive_read(str(path), 4096, 4, "aio", True, 0.01)
    with pytest.raises(UsageError, match="depth of a reader must be between 1 and 4096, got 0"):
        _core.drive_read(str(path), 4096, 0, "auto", True, 0.01)


def test_crc32c_takes_anything_contiguous() -> None:
    data = b"123456789"
    want = 0xE3069283  # the check value of CRC-32C
    array = np.frombuffer(data, np.uint8)
    for view in (data, bytearray(data), memoryview(data), array, array.copy()):
        assert _core.crc32c(view) == want  # type: ignore[arg-type]
    assert _core.crc32c(data[4:], _core.crc32c(data[:4])) == want
    assert _core.crc32c(b"") == 0
    with pytest.raises(UsageError, match="contiguous"):
        _core.crc32c(array[::2])
    with pytest.raises(UsageError, match="crc32c of a str"):
        _core.crc32c("text")  # type: ignore[arg-type]
