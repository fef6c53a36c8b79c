"""Packed stores that were damaged or made to deceive, and packing of dense ones: nothing but hotset's own errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import llama_weights, write_folder
from hypothesis import example, given
from hypothesis import strategies as st
from test_hostile_files import SETTINGS, damage, fresh, lie, only_hotset_errors

from hotset import _core
from hotset.errors import HotsetError, StorageError
from hotset.formats.gates import GATES_FILE, GateLayer, read_gates, verify_gates, write_gates
from hotset.formats.neurons import NeuronInfo
from hotset.formats.predictors import PREDICTORS_FILE, read_predictors, verify_predictors
from hotset.formats.predictors_file import write_predictors
from hotset.formats.safetensors import read_header
from hotset.formats.sketch import SHARES, SKETCH_FILE, SketchFacts, read_sketch, verify_sketch, write_sketch
from hotset.formats.store import CONFIG, MANIFEST, NEURONS, RESIDENT, open_store
from hotset.formats.thresholds import Thresholds
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


# --- what chooses neurons: a wrong bit would change the text of predicted mode and nothing else ----------------------
def with_predictors(info: NeuronInfo, folder: Path) -> None:
    rng = np.random.default_rng(1)
    maps = [(rng.normal(size=(4, info.hidden)), rng.normal(size=(info.ffn, 4))) for _ in range(info.layers)]
    table = np.full((info.layers, 2), 0.5, np.float32)
    facts = {"relu": False, "ahead": True, "active": 0.5, "energy": 0.01, "perplexity_change": 0.001}
    tables = Thresholds(np.array([0.01, 0.1], np.float32), table, table, table)
    write_predictors(folder, info, maps, tables, [(0.01, 0.001)], facts, drafts=[(0.01, 0.9)])


def with_sketch(info: NeuronInfo, folder: Path) -> None:
    rng, size = np.random.default_rng(2), _core.sketch_bytes(2, info.ffn, info.hidden)
    limits, scores = (0.5,) * info.layers, (tuple(float(share) for share in SHARES),) * info.layers
    layers = [
        [(part, rng.integers(0, 256, size, np.uint8)) for part in ("gate", "up")]
        + [("vectors", rng.normal(size=(6, info.ffn)).astype("<f4"))]
        for _ in range(info.layers)
    ]
    write_sketch(folder, info, layers, SketchFacts(2, limits, limits, scores, 0.5, 0.5, 0.01, 0.5))


def with_gates(info: NeuronInfo, folder: Path) -> None:
    rng = np.random.default_rng(3)
    vectors = rng.integers(0, 256, (info.layers, info.ffn, info.layout.vector_bytes), np.uint8)
    sums = [np.arange(n, dtype=np.uint32) for n in (-(-info.ffn // 16), info.ffn)]
    write_gates(folder, info, (GateLayer(layer, *sums) for layer in vectors))


CHOOSERS = {
    GATES_FILE: (with_gates, read_gates, verify_gates, "hotset pack STORE --gates copy"),
    PREDICTORS_FILE: (with_predictors, read_predictors, verify_predictors, "hotset train-predictor"),
    SKETCH_FILE: (with_sketch, read_sketch, verify_sketch, "hotset sketch"),
}


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory, packed: Path) -> Path:
    """Packed, with predictors, a sketch and a copy of the gates."""
    copy = shutil.copytree(packed, tmp_path_factory.mktemp("chosen") / "store")
    info = open_store(copy).neurons
    assert info is not None
    for write, *_ in CHOOSERS.values():
        write(info, copy)
    return copy


def load(store: Path, name: str) -> tuple[str, dict[str, bytes]]:
    """What is said in the file, and its data."""
    _, read, verify, _ = CHOOSERS[name]
    info = open_store(store).neurons
    assert info is not None
    found = read(store, info)
    verify(store)
    entries = read_header(store / name).entries
    data = (store / name).read_bytes()
    return str(found), {key: data[e.offset : e.offset + e.bytes] for key, e in entries.items()}


@SETTINGS
@given(at=st.integers(0, 1 << 20), bit=st.integers(0, 7))
@example(at=0, bit=0)
@pytest.mark.parametrize("name", CHOOSERS)
def test_no_flipped_bit_is_silent(chosen: Path, tmp_path: Path, name: str, at: int, bit: int) -> None:
    copy = fresh(chosen, tmp_path)
    want, data = load(copy, name), bytearray((copy / name).read_bytes())
    begins = read_header(copy / name).data_offset
    data[at % len(data)] ^= 1 << bit
    (copy / name).write_bytes(data)
    if at % len(data) >= begins:
        with pytest.raises(StorageError) as told:
            load(copy, name)
        for text in (str(copy / name), "tensor hotset.", "at offset", "wanted", CHOOSERS[name][3]):
            assert text in str(told.value)
        return
    try:
        found = load(copy, name)
    except HotsetError as error:
        assert str(copy / name) in str(error)
    else:
        assert found == want, "a bit of the header changed what is read"


@pytest.mark.parametrize("name", CHOOSERS)
def test_checksums_are_those_of_the_bytes_and_old_files_have_none(chosen: Path, tmp_path: Path, name: str) -> None:
    header, data = read_header(chosen / name), (chosen / name).read_bytes()
    sums = json.loads(header.metadata["crc32c"])
    assert sums.keys() == {*header.entries, *header.metadata} - {"crc32c"}
    for key, entry in header.entries.items():
        assert int(sums[key], 16) == crc32c_by_hand(data[entry.offset : entry.offset + entry.bytes])
    old = fresh(chosen, tmp_path)
    want = load(old, name)
    (old / name).write_bytes(data.replace(b'"crc32c"', b'"crc32x"'))
    assert load(old, name) == want


def crc32c_by_hand(data: bytes) -> int:
    """Bit by bit, reflected polynomial 0x82F63B78 (RFC 3720)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    return crc ^ 0xFFFFFFFF
