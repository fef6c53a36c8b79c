"""Packed models on drives that fail, lie, or are none: the right text, or one line and the documented exit code."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Hotset = Callable[..., Any]  # a process: code, out, err
PROMPT = ("Once upon a time there was a", "--temperature", "0", "-n", "12", "--ignore-eos", "--raw")


def answer(hotset: Hotset, store: Path, plan: Path, backend: str, predictor: str = "all") -> Any:
    settings = {"hot": 0, "cold_slots": 20, "predictor": predictor, "backend": backend}
    flags = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    done = hotset("plan", store, *flags, "-o", plan)
    return done if done.code else hotset("run", store, *PROMPT, "--plan", plan)


@pytest.mark.parametrize("predictor", ["all", "read-gate"])
def test_backends_and_faults(hotset: Hotset, packed: Path, tmp_path: Path, predictor: str) -> None:
    plan = tmp_path / "plan.json"
    want = answer(hotset, packed, plan, "pread")
    assert want.code == 0 and want.out
    if predictor == "read-gate":
        packed = shutil.copytree(packed, tmp_path / "copied")
        made = hotset("pack", packed, "--gates", "copy")
        assert made.code == 0 and "gates      a copy of" in made.out
        assert hotset("inspect", packed, "--verify").code == 0
    for backend in ("auto", "fault:short:1:0.5", "fault:flaky:2:0.5"):
        assert answer(hotset, packed, plan, backend, predictor).out == want.out
    for backend, code, message in (
        ("fault:error:1:0.5", 5, "failed: Input/output error"),
        ("fault:cut:1:0.5", 5, "truncated"),
        ("fault:corrupt:1:1", 4, "checksum"),
        ("floppy", 2, "no I/O back end 'floppy'"),
    ):
        done = answer(hotset, packed, plan, backend, predictor)
        assert (done.code, message in done.err, "Traceback" in done.err) == (code, True, False), done.err
        assert want.out.startswith(done.out.rstrip("\n"))  # what came before the error is right


def test_a_store_cut_short(hotset: Hotset, packed: Path, tmp_path: Path) -> None:
    store = shutil.copytree(packed, tmp_path / "store")
    os.truncate(store / "neurons.safetensors", (packed / "neurons.safetensors").stat().st_size // 2)
    done = hotset("run", store, *PROMPT)
    assert done.code in (4, 5) and "neurons.safetensors" in done.err and "Traceback" not in done.err


def test_a_store_in_memory(hotset: Hotset, packed: Path, tmp_path: Path) -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir():
        pytest.skip("no tmpfs here")
    with tempfile.TemporaryDirectory(dir=shm) as folder:
        store = shutil.copytree(packed, Path(folder) / "store")
        done = answer(hotset, store, tmp_path / "a.json", "auto")
        assert done.code == 0 and "lies on tmpfs" in hotset("plan", store).err
        assert done.out == answer(hotset, packed, tmp_path / "b.json", "auto").out
