"""Packed stores that were damaged or made to deceive, and packing of dense ones: nothing but hotset's own errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import llama_weights, write_folder
from hypothesis import given
from test_hostile_files import SETTINGS, damage, fresh, lie, only_hotset_errors

from hotset.formats.store import CONFIG, MANIFEST, NEURONS, RESIDENT, open_store
from hotset.tools.convert import convert
from hotset.tools.pack import pack


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dense")
    convert(write_folder(root / "model", llama_weights()), root / "store", quant="ffn=q8_0")
    return root / "store"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, dense: Path) -> Path:
    return pack(dense, tmp_path_factory.mktemp("packed") / "store").dest


def read_everything(path: Path) -> None:
    store = open_store(path)
    info = store.neurons
    for layer in range(info.layers if info else 0):
        assert info is not None
        assert info.read_order(layer).shape == info.read_crc32c(layer).shape == (info.ffn,)
    store.verify()


@SETTINGS
@given(change=damage(head=3000))
def test_damaged_neurons(packed: Path, tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    copy = fresh(packed, tmp_path)
    data = change((copy / NEURONS).read_bytes())
    (copy / NEURONS).write_bytes(data)
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["files"][NEURONS]["bytes"] = len(data)  # as who wants to deceive would
    manifest["files"][NEURONS]["crc32c"] = [0] * -(-len(data) // (1 << 20))
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with only_hotset_errors():
        read_everything(copy)


@SETTINGS
@given(change=lie())
def test_configs_that_lie(packed: Path, tmp_path: Path, change: Callable[[Any], Any]) -> None:
    copy = fresh(packed, tmp_path)
    config = json.loads((copy / CONFIG).read_text())
    config["hotset"]["neurons"] = change({"neurons": config["hotset"]["neurons"]}).get("neurons")
    (copy / CONFIG).write_text(json.dumps(config))
    with only_hotset_errors():
        read_everything(copy)


@SETTINGS
@given(change=damage(head=3000))
@pytest.mark.parametrize("name", [NEURONS, RESIDENT, CONFIG, MANIFEST])
def test_a_damaged_dense_store_is_packed_or_refused(
    dense: Path, tmp_path: Path, name: str, change: Callable[[bytes], bytes]
) -> None:
    copy = fresh(dense, tmp_path)
    (copy / name).write_bytes(change((copy / name).read_bytes()))
    shutil.rmtree(tmp_path / "packed", ignore_errors=True)
    with only_hotset_errors():
        pack(copy, tmp_path / "packed")
        open_store(tmp_path / "packed").verify()
