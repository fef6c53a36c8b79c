"""The model of the package: `hotset run` without a model tells a story with it, also from a third of its neurons."""

from __future__ import annotations

import json
import re
from pathlib import Path

from hotset import LLM
from hotset.formats.store import open_store
from hotset.tools.resolve import PACKAGED, packaged, resolve_model

STORY = packaged("stories-13m")
KNOWN = """Once upon a time, there was a little girl named Lily. She loved to play with her toys.
One day, she went to the park with her mom. She saw a big dog. The dog was very happy and wanted to play with her."""


def test_what_lies_in_the_package() -> None:
    assert all(resolve_model(name) == packaged(name) for name in PACKAGED)
    store = open_store(STORY)
    assert store.neurons is not None and store.neurons.fmt == "q4_0"
    assert sum(path.stat().st_size for path in STORY.iterdir()) <= 24 << 20
    assert {"README.md", "profile.safetensors", "predictors.safetensors"} <= {path.name for path in STORY.iterdir()}


def test_its_bytes_are_those_it_was_made_with(hotset) -> None:
    done = hotset("inspect", "stories-13m", "--verify")
    assert done.code == 0
    assert "every block of stories-13m matches its checksum" in done.err


def test_without_a_model_a_story_is_told(hotset) -> None:
    done = hotset("run", "--seed", "3")
    assert done.code == 0
    assert done.out.startswith("Once upon a time")
    words = re.findall(r"[a-z]+", done.out.lower())
    common = set(re.findall(r"[a-z]+", KNOWN.lower()))
    assert len(words) > 30 and sum(word in common for word in words) > len(words) / 4


def test_a_third_of_the_neurons_in_memory_gives_the_same_story(hotset, tmp_path: Path) -> None:
    found = []
    for name, hot, slots in (("third", 341, 855), ("whole", 1536, 0)):
        chosen = ("--set", "predictor=gate", "--set", f"hot={hot}", "--set", f"cold_slots={slots}")
        assert hotset("plan", "stories-13m", *chosen, "--output", tmp_path / name).code == 0
        asked = ("run", "stories-13m", "Tom had a dog.", "--temperature", "0", "--json", "--stats")
        found.append(json.loads(hotset(*asked, "--plan", tmp_path / name).out))
    third, whole = found
    assert third["tokens"] == whole["tokens"]
    neurons = third["stats"]["neurons"]
    assert 0 < neurons["missed"] < neurons["candidates"] and neurons["reads"] > 0
    assert whole["stats"]["neurons"]["reads"] == 0


def test_it_knows_how_stories_go() -> None:
    with LLM(STORY) as llm:
        ids = llm.tokenizer.encode(KNOWN)
        told = llm.perplexity(KNOWN, window=len(ids), stride=len(ids)).value
        mixed = llm.perplexity(ids[::-1], window=len(ids), stride=len(ids)).value
    assert told < 20
    assert mixed > 20 * told


def test_a_beginning_from_a_file(hotset, tmp_path: Path) -> None:
    (tmp_path / "start.txt").write_text("The cat")
    done = hotset("run", "--file", tmp_path / "start.txt", "--max-tokens", "4")
    assert (done.code, done.out.startswith("The cat")) == (0, True)
