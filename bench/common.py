"""What the comparisons share: the real model's files, hotset as a process, result files."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import peers

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench/results"
MODELS = ROOT / "build/models"
BUSY = 0.5  # load average from which a comparison is not worth keeping
HOTSET = [sys.executable, "-m", "hotset.cli.main"]


def hotset(*args: str) -> dict[str, Any]:
    """Runs one command of hotset with --json and returns what it printed."""
    done = subprocess.run([*HOTSET, *args, "--json"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"hotset {' '.join(args)} exited with {done.returncode}: {done.stderr[-800:]}")
    parsed: dict[str, Any] = json.loads(done.stdout)
    return parsed


def store_of(gguf: Path) -> Path:
    """The store made from a GGUF file; converted once, the weights unchanged."""
    dest = MODELS / gguf.stem
    if not (dest / "manifest.json").exists():
        hotset("convert", str(gguf), str(dest))
    return dest


def smollm2() -> Path:
    """The GGUF (Q4_1) of SmolLM2-135M-Instruct, downloaded once."""
    if given := os.environ.get("HOTSET_SMOLLM2"):
        return Path(given)
    from hotset.tools.pull import download

    return download("smollm2-135m-instruct")


def smollm2_as(kind: str) -> Path:
    """The real model in another GGUF type, made by llama.cpp."""
    return smollm2() if kind == "Q4_1" else peers.quantize(smollm2(), kind, MODELS)


def random_7b() -> tuple[Path, Path]:
    """Store and GGUF of random Q4_0 weights in the shape of Mistral 7B (4 GB each); made once."""
    store, gguf = MODELS / "random-7b-q4_0", MODELS / "random-7b.Q4_0.gguf"
    if not (store / "manifest.json").exists() or not gguf.exists():
        from hotset.tools.random_model import random_model

        random_model(store=store, gguf=gguf, quant="q4_0")
    return store, gguf


def result_path(what: str, cpu_model: str) -> Path:
    """bench/results/WHAT-CPU-DATE.json."""

    slug = re.sub(r"[^a-z0-9]+", "-", cpu_model.lower()).strip("-")
    return RESULTS / f"{what}-{slug}-{datetime.now(UTC):%Y-%m-%d}.json"


def commit() -> str:
    """Of the code that measures; with "+" if files differ from it."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()


def warn_if_busy() -> None:
    """Says so if other programs take part of the processor: ratios then mean little."""
    busy = os.getloadavg()[0]
    if busy > BUSY:
        print(
            f"warning: the load average is {busy:.1f}, so other programs share the cores; wait until it is below {BUSY}"
        )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
