"""The command line as a person meets it: a process, its two outputs and its exit code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from hotset.tools.convert import convert
from hotset.tools.pack import pack
from hotset.tools.random_model import ModelShape, random_model

ROOT = Path(__file__).parents[2]
TINY = ModelShape(hidden=64, ffn=128, layers=2, heads=4, kv_heads=2, vocab=512, context=256)


@dataclass(frozen=True, slots=True)
class Finished:
    code: int
    out: str
    err: str


Hotset = Callable[..., Finished]


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A cache of its own, a fixed width, and no way to a hub."""
    cache = tmp_path_factory.mktemp("cache")
    return {**os.environ, "HOTSET_CACHE": str(cache), "COLUMNS": "100", "TERM": "dumb", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="session")
def hotset(environment: dict[str, str]) -> Hotset:
    """Runs `hotset ARGS…`; `stdin` is text or bytes, `env` adds variables."""

    def call(*args: str | Path, stdin: str | bytes = b"", env: dict[str, str] | None = None) -> Finished:
        done = subprocess.run(
            [sys.executable, "-m", "hotset.cli.main", *map(str, args)],
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            capture_output=True,
            env=environment | (env or {}),
            timeout=120,
            check=False,
        )
        return Finished(done.returncode, done.stdout.decode(), done.stderr.decode())

    return call


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of a tiny model with random weights and no chat template."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    random_model(TINY, store=path)
    return path


@pytest.fixture(scope="session")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    random_model(TINY, gguf=path)
    return path


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stories260K with ReLU in place of SiLU."""
    folder = tmp_path_factory.mktemp("relu")
    shutil.copytree(ROOT / "tests/golden/data/stories260k", folder / "source")
    config = json.loads((folder / "source/config.json").read_text())
    (folder / "source/config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    convert(folder / "source", folder / "dense", quant="f32")
    return pack(folder / "dense", folder / "packed", fmt="q8_0").dest
