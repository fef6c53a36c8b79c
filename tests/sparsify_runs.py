"""Short runs of `hotset sparsify` on stories260K, for the tests that train."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "tests/golden/data/stories260k"
SHORT = {"batch": 4, "sequence": 32, "micro-batch": 2, "lr": 1e-3, "warmup": 2, "log-every": 1, "dtype": "f32"}


def corpus(folder: Path) -> Path:
    """English text that lies in this repository and does not change, as JSONL: 5,000 tokens of stories260K."""
    path = folder / "text.jsonl"
    path.write_text(json.dumps({"text": (ROOT / "LICENSE").read_text()}) + "\n")
    return path


def command(output: Path, data: Path, *extra: str, steps: int, **flags: Any) -> list[str]:
    """Arguments of one run; flags: over those of SHORT, with _ for -."""
    values = SHORT | {name.replace("_", "-"): value for name, value in flags.items()}
    pairs = [part for name, value in values.items() for part in (f"--{name}", str(value))]
    return [
        "sparsify",
        str(MODEL),
        "-d",
        str(data),
        "-o",
        str(output),
        "--steps",
        str(steps),
        "-t",
        "1",
        *pairs,
        *extra,
    ]


def start(arguments: list[str], *launcher: str) -> subprocess.Popen[str]:
    """The command as a process of its own; launcher: what starts the module, if not Python itself."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    whole = [sys.executable, *launcher, "-m", "hotset.cli.main", *arguments]
    return subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def forked(arguments: list[str]) -> BaseProcess:
    """The command in a process split off one that has imported PyTorch already, which takes seconds."""
    process = _forkserver().Process(target=_run, args=(arguments,))
    process.start()
    return process


def _forkserver() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hotset.train.sparsify", "transformers.models.llama.modeling_llama"])
    return context


def _run(arguments: list[str]) -> None:
    from hotset.cli.main import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(arguments))


def limited(model: Path, output: Path, data: Path, most: int, flags: dict[str, Any]) -> tuple[int | None, str]:
    """A run of two steps that may take `most` bytes beyond what PyTorch takes; flags: None for those without value.

    Returns its exit code and the last line on standard error.
    """
    given = ((f"--{name}", value) for name, value in (SHORT | flags).items())
    extra = [part for name, value in given for part in ((name,) if value is None else (name, str(value)))]
    said = output.with_suffix(".err")
    arguments = ["sparsify", str(model), "-d", str(data), "-o", str(output), "--steps", "2", "-t", "1", *extra]
    process = _forkserver().Process(target=_run_limited, args=(arguments, most, said))
    process.start()
    process.join()
    return process.exitcode, said.read_text().splitlines()[-1]


def _run_limited(arguments: list[str], most: int, said: Path) -> None:
    with said.open("w") as file:
        os.dup2(file.fileno(), 2)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + most, resource.RLIM_INFINITY))
    _run(arguments)


def losses(output: Path) -> dict[int, float]:
    """Step to loss, as logged."""
    entries = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return {entry["step"]: entry["loss"] for entry in entries if entry["kind"] == "train"}
