"""Packing: options, profiles, drives and files that cannot be, and stores that contradict themselves."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_vectors import FOLDER
from packed_stores import DenseStore, dense_stores, neurons_of, profile_of, with_profile

from hotset.errors import FormatError, HotsetError, StorageError, UsageError
from hotset.formats.store import NEURONS, open_store
from hotset.tools.convert import convert
from hotset.tools.pack import pack


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> DenseStore:
    return dense_stores(tmp_path_factory.mktemp("dense"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fmt": "q4_1"}, "'q4_1'; there are q4_0, q8_0"),
        ({"order": "hot"}, "unknown order 'hot'; there are auto, none, frequency, coactivation"),
        ({"order": "frequency"}, "order frequency needs .*profile.safetensors; make it with `hotset profile"),
        ({"stride": "wide"}, "stride is 'wide'; wanted auto or bytes, such as"),
        ({"stride": 100}, "stride is 100 bytes; a neuron has 162"),
        ({"stride": 4097}, "direct reads on this drive ask for multiples of"),
        ({"stride": "1073741824"}, "up to 16777216"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str, dense: DenseStore, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        pack(dense("llama", "f32"), tmp_path / "packed", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("shape", "changes", "message"),
    [
        ((3, 100), {}, "counts 3 layers of 100 neurons; the store has 2 of 100"),
        ((2, 96), {}, "counts 2 layers of 96 neurons; the store has 2 of 100"),
        ((2, 100), {"model": "another"}, "profile of another model"),
        ((2, 100), {"tokens": 50, "steps": np.full((2, 8), 50)}, "comes from 50 tokens"),
    ],
)
def test_profiles_that_do_not_serve(
    shape: tuple[int, int], changes: dict[str, Any], message: str, dense: DenseStore, tmp_path: Path
) -> None:
    source = dense("llama", "f32")
    profile = profile_of(open_store(source), np.zeros(shape, np.int64), **changes)
    with pytest.raises(HotsetError, match=message):
        pack(with_profile(source, profile, tmp_path), tmp_path / "packed")
    assert not list(tmp_path.glob("packed*"))


def test_damaged_weights_are_not_packed(tmp_path: Path) -> None:
    convert(FOLDER / "llama", tmp_path / "dense", quant="q8_0")
    entry = open_store(tmp_path / "dense").entries["model.layers.1.mlp.down_proj.weight"]
    with (tmp_path / "dense" / NEURONS).open("r+b") as file:
        file.seek(entry.offset + entry.bytes // 2)
        file.write(b"\xff")
    with pytest.raises(StorageError, match="checksum"):
        pack(tmp_path / "dense", tmp_path / "packed")


def test_a_full_disk_leaves_nothing(dense: DenseStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageError, match="is full"):
        pack(dense("llama", "f32"), tmp_path / "packed")
    assert not list(tmp_path.iterdir())


NEURON_KEYS = {"format": "q4_0", "gated": True, "hidden": 72, "stride": 4096, "order": "none"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "must have exactly"),
        ({**NEURON_KEYS, "more": 1}, "must have exactly"),
        ({**NEURON_KEYS, "format": "q4_1"}, "cannot be"),
        ({**NEURON_KEYS, "format": ["q4_0"]}, "cannot be"),
        ({**NEURON_KEYS, "gated": 1}, "cannot be"),
        ({**NEURON_KEYS, "hidden": 2**40}, "cannot be"),
        ({**NEURON_KEYS, "hidden": -72}, "cannot be"),
        ({**NEURON_KEYS, "stride": 8192}, r"wanted the same \[neurons, 8192\]"),
        ({**NEURON_KEYS, "hidden": 7200}, "does not hold a bundle of"),
    ],
)
def test_configs_that_contradict_the_bundles(change: Any, message: str, dense: DenseStore, tmp_path: Path) -> None:
    pack(dense("llama", "f32"), tmp_path / "packed", stride=4096)
    path = tmp_path / "packed" / "config.json"
    config = json.loads(path.read_text())
    assert config["hotset"]["neurons"] == NEURON_KEYS
    config["hotset"]["neurons"] = change
    path.write_text(json.dumps(config))
    with pytest.raises(FormatError, match=message):
        open_store(tmp_path / "packed")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"layers.1.order", b"layers.2.order", "does not belong to a whole set"),
        (b'"format":"i32"', b'"format":"u32"', "does not belong to a whole set"),
        (b'"shape":[100,4096]', b'"shape":[4096,100]', "wanted the same"),
        (b'"format":"neurons"', b'"format":"neurone"', "is not one of"),
    ],
)
def test_headers_that_contradict_themselves(
    old: bytes, new: bytes, message: str, dense: DenseStore, tmp_path: Path
) -> None:
    pack(dense("llama", "f32"), tmp_path / "packed", stride=4096)
    path = tmp_path / "packed" / NEURONS
    data = path.read_bytes()
    escaped = [text.replace(b'"', b'\\"') for text in (old, new)]
    assert data.count(escaped[0])
    path.write_bytes(data.replace(escaped[0], escaped[1]))
    with pytest.raises(FormatError, match=message):
        open_store(tmp_path / "packed")


def test_an_order_that_names_a_neuron_twice_is_found_when_it_is_read(dense: DenseStore, tmp_path: Path) -> None:
    pack(dense("llama", "f32"), tmp_path / "packed")
    entry = open_store(tmp_path / "packed").entries["hotset.layers.1.order"]
    with (tmp_path / "packed" / NEURONS).open("r+b") as file:
        file.seek(entry.offset)
        file.write((5).to_bytes(4, "little"))
    info = neurons_of(open_store(tmp_path / "packed"))
    assert info.read_order(0)[0] == 0
    with pytest.raises(FormatError, match="order of layer 1 does not name each of its 100 neurons once"):
        info.read_order(1)
