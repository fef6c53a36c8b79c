"""Short runs of `hotset sparsify` on stories260K, for the tests that train."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
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
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hotset.train.sparsify", "transformers.models.llama.modeling_llama"])
    process = context.Process(target=_run, args=(arguments,))
    process.start()
    return process


def _run(arguments: list[str]) -> None:
    from hotset.cli.main import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(arguments))


def losses(output: Path) -> dict[int, float]:
    """Step to loss, as logged."""
    entries = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return {entry["step"]: entry["loss"] for entry in entries if entry["kind"] == "train"}
