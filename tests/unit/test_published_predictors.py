"""Predictors that a checkpoint brings: kept by convert and pack."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from builders import Arrays
from golden_vectors import FOLDER, read_tensors
from numpy.typing import NDArray
from packed_stores import profile_of, with_profile
from safetensors.numpy import save_file

from hotset import _core
from hotset.errors import ModelError
from hotset.formats.store import Store, open_store
from hotset.tools.convert import convert
from hotset.tools.pack import pack

RANKS = (24, 40)  # neither fills groups of 32


def names(layer: int) -> tuple[str, str]:
    """In the checkpoint: [rank, hidden] and [ffn, rank]."""
    return tuple(f"model.layers.{layer}.mlp.predictor.fc{i}.weight" for i in (1, 2))  # type: ignore[return-value]


def random_predictors(hidden: int, ffn: int) -> Arrays:
    rng = np.random.default_rng(0)
    found: Arrays = {}
    for layer, rank in enumerate(RANKS):
        for name, shape in zip(names(layer), ((rank, hidden), (ffn, rank)), strict=True):
            found[name] = rng.standard_normal(shape).astype(np.float32)
    return found


def write_source(folder: Path, source: Path, predictors: Arrays, **config: object) -> Path:
    """A checkpoint again, with predictors."""
    folder.mkdir()
    for path in source.iterdir():
        if path.suffix == ".json":
            (folder / path.name).write_bytes(path.read_bytes())
    found = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(found | config))
    weights = read_tensors(source / "model.safetensors") | predictors
    save_file({name: np.ascontiguousarray(w) for name, w in weights.items()}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Bamboo with random predictors, every value kept."""
    folder = tmp_path_factory.mktemp("bamboo")
    write_source(folder / "source", FOLDER / "bamboo", random_predictors(64, 160))
    convert(folder / "source", folder / "dense", quant="f32")
    return folder / "dense"


@pytest.fixture(scope="module")
def packed(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed by frequency, so that the neurons' order is not the model's."""
    folder = tmp_path_factory.mktemp("packed")
    counts = np.random.default_rng(1).integers(1, 5000, (2, 160))
    profiled = with_profile(dense, profile_of(open_store(dense), counts), folder)
    return pack(profiled, folder / "packed", fmt="q8_0").dest


def kept(store: Store, name: str) -> NDArray[np.float32]:
    entry = store.published[name]
    data = np.fromfile(entry.path, np.uint8, entry.bytes, offset=entry.offset)
    return _core.decode(entry.fmt, data, entry.rows, entry.cols)


def test_convert_and_pack_keep_them(dense: Path, packed: Path, tmp_path: Path) -> None:
    without = open_store(convert(FOLDER / "bamboo", tmp_path / "without", quant="f32").dest)
    wanted = random_predictors(64, 160)
    for folder in (dense, packed):
        store = open_store(folder)
        store.verify()
        assert len(store.published) == 2 * len(RANKS)
        for layer in range(2):
            for role, name in zip(("in", "out"), names(layer), strict=True):
                np.testing.assert_array_equal(kept(store, f"hotset.layers.{layer}.predictor_{role}"), wanted[name])
    assert (open_store(dense).entries.keys(), without.published) == (without.entries.keys(), {})
    assert open_store(dense).weight_bytes == without.weight_bytes  # a run reads none of them


def test_format_of_their_own_class(dense: Path, tmp_path: Path) -> None:
    source = dense.parent / "source"
    for quant, fmt in (("auto", "q8_0"), ("ffn=q4_0,predictor=f16", "f16"), ("q4_0", "q4_0")):
        report = convert(source, tmp_path / fmt, quant=quant)
        assert {e.fmt for e in open_store(tmp_path / fmt).published.values()} == {fmt}
        assert [(c.tensors, c.formats) for c in report.classes if c.kind == "predictor"] == [(4, fmt)]


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (names(1)[1], None, r"fc2.weight' is missing"),
        (names(0)[0], None, r"fc1.weight' is missing"),
        (names(0)[1], (160, 25), r"has shape \[160, 25\], wanted \[160, 24\]"),
        (names(1)[0], (40, 65), r"has shape \[40, 65\], wanted \[40, 64\]"),
    ],
)
def test_damaged_ones_are_refused(name: str, shape: tuple[int, int] | None, message: str, tmp_path: Path) -> None:
    predictors = random_predictors(64, 160)
    del predictors[name]
    if shape:
        predictors[name] = np.zeros(shape, np.float32)
    source = write_source(tmp_path / "source", FOLDER / "bamboo", predictors)
    with pytest.raises(ModelError, match=message):
        convert(source, tmp_path / "store")
