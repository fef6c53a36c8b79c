"""A packed model whose memory limit is lowered while it writes, in numbers and by a real control group."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.cgroup import CgroupError, Group, limited_group
from bench.common import HOTSET
from hotset import LLM
from hotset.engine import memory_watch
from hotset.engine.cgroup import MemoryGroup
from hotset.engine.memory_watch import MARGIN, MemoryLimitWarning
from hotset.tools.pack import pack
from hotset.tools.random_model import ModelShape, random_model

MIB = 1 << 20
PROMPT, TOKENS = "Once", 120
SHAPE = ModelShape(hidden=512, ffn=8192, layers=8, heads=8, kv_heads=2, vocab=512, context=256)
# Says "loaded", waits for a line, then says "token" for each; holds its memory until another line, then says what came.
CHILD = f"""
import json, sys, warnings
from hotset import LLM
store, plan = sys.argv[1:]
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    with LLM(store, plan=plan) as llm:
        stream = llm.stream({PROMPT!r}, max_tokens={TOKENS}, temperature=0, ignore_eos=True)
        print("loaded", flush=True)
        sys.stdin.readline()
        for _ in stream:
            print("token", flush=True)
        sys.stdin.readline()
        slots = llm.stats["neuron_cold_slots"]
print(json.dumps({{"tokens": stream.completion.tokens, "told": [str(w.message) for w in told], "slots": slots}}))
"""


@dataclass(frozen=True)
class Packed:
    store: Path
    plan_file: Path
    tokens: tuple[int, ...]  # what it writes when nobody takes its memory


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Packed]:
    """Random weights with a ReLU: half of the neurons, of 100 MiB in all, are active at a time."""
    folder = tmp_path_factory.mktemp("random")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOTSET_CACHE", str(folder / "cache"))
        random_model(SHAPE, store=folder / "dense", quant="q8_0")
        config = folder / "dense/config.json"
        text = json.dumps(json.loads(config.read_text()) | {"hidden_act": "relu"})
        config.write_text(text)
        manifest = json.loads((folder / "dense/manifest.json").read_text())
        manifest["files"]["config.json"]["bytes"] = len(text)
        (folder / "dense/manifest.json").write_text(json.dumps(manifest))
        store = pack(folder / "dense", folder / "packed", fmt="q8_0").dest
        settings = ("predictor=gate", "hot=0", "prefill_chunk=64", f"cold_slots={SHAPE.layers * SHAPE.ffn}")
        flags = [part for setting in settings for part in ("--set", setting)]
        # In a process of its own, which holds as little as the one that then runs.
        plan = [*HOTSET, "plan", str(store), "--memory", "1GiB", *flags, "--output", str(folder / "plan.json")]
        subprocess.run(plan, check=True, capture_output=True)
        with LLM(store, plan=folder / "plan.json") as llm:
            tokens = llm.generate(PROMPT, max_tokens=TOKENS, temperature=0, ignore_eos=True).tokens
        assert len(set(tokens)) > 10
        yield Packed(store, folder / "plan.json", tokens)


def test_the_text_stays_the_same_when_slots_are_given_up(packed: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 64 << 30
    monkeypatch.setattr(memory_watch, "memory_group", lambda: MemoryGroup(limit, used=1 << 30, peak=None))
    monkeypatch.setattr(memory_watch, "_SECONDS", 0.0)
    with LLM(packed.store, plan=packed.plan_file) as llm:
        slots = llm.stats["neuron_cold_slots"]
        with llm.stream(PROMPT, max_tokens=TOKENS, temperature=0, ignore_eos=True) as stream:
            for number, _ in enumerate(stream):
                if number == 20:
                    limit = (1 << 30) + 10 * MIB
                    with pytest.warns(MemoryLimitWarning, match=f"fallen from 65536 to {limit // MIB} MiB"):
                        next(stream)
                    limit = 64 << 30
            assert stream.completion.tokens == packed.tokens
        assert llm.stats["neuron_cold_slots"] < slots


def in_use(group: Group) -> int:
    """Bytes that the kernel cannot take back: all but files."""
    stat = dict(line.split() for line in (group.folder / "memory.stat").read_text().splitlines())
    anonymous = int(stat["total_rss"] if "total_rss" in stat else stat["anon"])
    files = int(stat.get("total_cache", stat.get("file", 0)))
    return max(anonymous, int((group.folder / group.files.used).read_text()) - files)


def lower(group: Group, limit: int) -> None:
    """As far down to `limit` as the kernel grants without ending a process."""
    with suppress(OSError):  # version 1: still too much in use
        group.set_limit(max(limit, in_use(group) + MARGIN // 2))


def run_limited(packed: Packed, change: Callable[[Group, subprocess.Popen[str]], None]) -> tuple[dict[str, Any], int]:
    """What the child says at its end, and its group's last limit; `change` is called when the child has loaded."""
    try:
        with limited_group(1 << 30) as group:
            command = group.enter([sys.executable, "-c", CHILD, str(packed.store), str(packed.plan_file)])
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            try:
                assert child.stdout is not None and child.stdin is not None
                assert child.stdout.readline() == "loaded\n"
                change(group, child)
                output, _ = child.communicate("\n", timeout=100)
            finally:
                child.kill()
                child.wait()
            assert (group.kills, child.returncode) == (0, 0)
            return json.loads(output.splitlines()[-1]), group.limit_bytes
    except CgroupError as error:
        pytest.skip(str(error))


def test_a_limit_below_what_is_planned_is_kept(packed: Packed) -> None:
    """The slots are still empty; filled, they and the buffers of a step would not fit."""

    def change(group: Group, child: subprocess.Popen[str]) -> None:
        lower(group, in_use(group) + 95 * MIB)
        assert child.stdin is not None
        child.stdin.write("\n")

    said, limit = run_limited(packed, change)
    assert said["tokens"] == list(packed.tokens)
    assert said["slots"] < SHAPE.layers * SHAPE.ffn
    assert [f"fallen from 1024 to {limit // MIB} MiB" in text for text in said["told"]] == [True]


def test_a_limit_that_falls_below_what_is_held_is_kept(packed: Packed) -> None:
    goal = 0

    def change(group: Group, child: subprocess.Popen[str]) -> None:
        nonlocal goal
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write("\n")
        child.stdin.flush()
        for _ in range(40):
            assert child.stdout.readline() == "token\n"
        goal, end = in_use(group) - 30 * MIB, time.monotonic() + 60
        while group.limit_bytes > goal and time.monotonic() < end:
            lower(group, goal)
            time.sleep(0.02)

    said, limit = run_limited(packed, change)
    assert said["tokens"] == list(packed.tokens)
    assert limit <= goal
    assert said["slots"] < SHAPE.layers * SHAPE.ffn
    assert "given up" in said["told"][0]
