"""Stores of local sources in the cache: what makes another one, and what becomes of the one before."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from builders import llama_weights, write_folder

from hotset.formats.store import open_store
from hotset.tools.convert import convert
from hotset.tools.resolve import SOURCE_FILES, resolve_model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTSET_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "model", llama_weights())


def test_only_what_a_conversion_reads_makes_another_store(folder: Path) -> None:
    store = resolve_model(folder)
    (folder / "notes.txt").write_text("mine")
    (folder / "README.md").write_text("theirs")
    assert resolve_model(folder) == store
    (folder / "generation_config.json").write_text("{}")
    assert resolve_model(folder) != store


@pytest.mark.parametrize("older", [False, True])
def test_all_that_a_conversion_opens_counts(folder: Path, tmp_path: Path, older: bool) -> None:
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator(["a b"], vocab_size=257, special_tokens=["</s>"], show_progress=False)
    made.save_model(str(folder)) if older else made.save(str(folder / "tokenizer.json"))
    for name in ("tokenizer_config.json", "generation_config.json", "added_tokens.json", "chat_template.json"):
        (folder / name).write_text("{}")
    with opened_files() as names:
        convert(folder, tmp_path / "store")
    read = {Path(name).name for name in names if Path(name).parent == folder and Path(name) != folder}
    assert {"config.json", "model.safetensors", "merges.txt" if older else "tokenizer.json"} <= read
    assert not {name for name in read if not any(fnmatchcase(name, pattern) for pattern in SOURCE_FILES)}


@contextmanager
def opened_files() -> Iterator[list[str]]:
    """Names of the files that are opened meanwhile. A hook cannot be removed, so this one is told when to be quiet."""
    names: list[str] = []
    active = [True]

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and active and isinstance(arguments[0], str | os.PathLike):
            names.append(os.fspath(arguments[0]))

    sys.addaudithook(note)
    try:
        yield names
    finally:
        active.clear()


MADE = {"profile.safetensors": b"counts", ".profile-01234567.npz": b"half of the counts"}


def add_made(store: Path) -> None:
    for name, data in MADE.items():
        (store / name).write_bytes(data)


def test_a_profile_goes_on_to_the_next_store_of_the_same_weights(folder: Path, recwarn: Any) -> None:
    first = resolve_model(folder)
    add_made(first)
    os.utime(folder / "model.safetensors", ns=(1, 1))  # copied again
    second = resolve_model(folder)
    assert second != first and not first.exists() and not recwarn
    assert {name: (second / name).read_bytes() for name in MADE} == MADE
    open_store(second).verify()


def test_a_profile_of_other_weights_stays_where_it_is(folder: Path) -> None:
    first = resolve_model(folder)
    add_made(first)
    write_folder(folder, llama_weights(seed=1))
    os.utime(folder / "model.safetensors", ns=(1, 1))
    with pytest.warns(UserWarning, match=rf"{first.name}, .* is kept: \.profile-01234567\.npz, profile\.safetensors"):
        second = resolve_model(folder)
    assert {name: (first / name).read_bytes() for name in MADE} == MADE
    assert not [name for name in MADE if (second / name).exists()]


def test_a_damaged_store_may_hold_a_profile(folder: Path) -> None:
    first = resolve_model(folder)
    add_made(first)
    os.truncate(first / "neurons.safetensors", 100)
    os.utime(folder / "model.safetensors", ns=(1, 1))
    with pytest.warns(UserWarning, match="is kept: .*neurons.safetensors has 100 bytes"):
        resolve_model(folder)
    assert (first / "profile.safetensors").is_file()
