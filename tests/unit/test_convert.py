"""Conversion: the values in the store against NumPy and the gguf library, whatever the source."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import gguf as reference
import numpy as np
import pytest
from builders import CONFIG, Arrays, gguf_arrays, llama_weights, names, write_folder, write_gguf
from numpy.typing import NDArray

from hotset import _core
from hotset.errors import FormatError, ModelError, StorageError, UsageError
from hotset.formats.store import NEURONS, Store, open_store
from hotset.formats.store_writer import JOURNAL
from hotset.tools.convert import NEAREST, convert
from hotset.tools.convert_encode import CHUNK_WEIGHTS

BITS = {"f16": 2.0**-11, "bf16": 2.0**-8, "f32": 0.0}


def stored(store: Store, name: str) -> NDArray[np.float32]:
    """A tensor of the store as float32."""
    entry = store.entries[name]
    data = np.fromfile(entry.path, np.uint8, entry.bytes, offset=entry.offset)
    if not entry.cols:
        return data.view(np.float32)
    return _core.decode(entry.fmt, data, entry.rows, entry.cols)


def decoded(arrays: Arrays, kind: str) -> Arrays:
    """Weights after a round trip through a GGUF type, by the reference library."""
    code = reference.GGMLQuantizationType[kind]
    quants = reference.quants
    return {
        name: quants.dequantize(quants.quantize(w, code), code) if w.ndim == 2 and kind != "F32" else w
        for name, w in arrays.items()
    }


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_gguf_in_our_formats_keeps_every_value(tmp_path: Path, kind: str) -> None:
    weights = llama_weights()
    path = write_gguf(tmp_path / "x.gguf", gguf_arrays(weights), kind)
    report = convert(path, tmp_path / "store")
    store = open_store(tmp_path / "store")
    store.verify()
    # Quantizing each row on its own commutes with the order of rows.
    for name, wanted in decoded(weights, kind).items():
        np.testing.assert_array_equal(stored(store, name), wanted, err_msg=name)
        assert store.entries[name].fmt == ("f32" if wanted.ndim == 1 else kind.lower())
    assert all(c.relative_rms_error == 0 and c.lossless == c.tensors for c in report.classes)
    assert report.weights == sum(w.size for w in weights.values())
    assert report.bytes == store.weight_bytes


@pytest.mark.parametrize("kind", ["Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "TQ2_0"])
def test_other_gguf_types_are_requantized_with_the_error_told(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    raw, wanted = {}, {}
    code = reference.GGMLQuantizationType[kind]
    elements, size = reference.GGML_QUANT_SIZES[code]
    ffn = 256  # K-quants come in blocks of 256
    arrays = gguf_arrays(llama_weights()) | {
        f"blk.{i}.ffn_{name}.weight": rng.standard_normal((64, ffn) if name == "down" else (ffn, 64)).astype(np.float32)
        for i in range(2)
        for name in ("gate", "up", "down")
    }
    for i in range(2):
        blocks = rng.integers(0, 256, (64, ffn // elements, size), np.uint8)
        for at in _scales_of(kind):
            blocks[:, :, at : at + 2] = np.array([0.01 * (i + 1)], np.float16).view(np.uint8)
        raw[f"blk.{i}.ffn_down.weight"] = (kind, blocks.reshape(64, -1))
        wanted[f"model.layers.{i}.mlp.down_proj.weight"] = reference.quants.dequantize(blocks.reshape(64, -1), code)
    path = write_gguf(tmp_path / "x.gguf", arrays, "F16", raw, ffn=ffn)
    report = convert(path, tmp_path / "store")
    store = open_store(tmp_path / "store")
    error = weight = 0.0
    for name, values in wanted.items():
        assert store.entries[name].fmt == NEAREST[kind]
        error += float(np.sum((stored(store, name) - values).astype(np.float64) ** 2))
        weight += float(np.sum(values.astype(np.float64) ** 2))
    ffn_report = next(c for c in report.classes if c.kind == "ffn")
    assert ffn_report.sources == "+".join(sorted((kind, "F16")))
    assert (ffn_report.tensors, ffn_report.lossless) == (6, 4)
    assert ffn_report.relative_rms_error == pytest.approx((error / weight) ** 0.5, rel=1e-3)
    assert 0 < ffn_report.relative_rms_error < (0.01 if NEAREST[kind] == "q8_0" else 0.15)


def _scales_of(kind: str) -> tuple[int, ...]:
    """Where a block has its f16 numbers, by the layouts of ggml-common.h."""
    return {
        "Q5_0": (0,),
        "Q5_1": (0, 2),
        "Q2_K": (80, 82),
        "Q3_K": (108,),
        "Q4_K": (0, 2),
        "Q5_K": (0, 2),
        "Q6_K": (208,),
        "IQ4_XS": (0,),
        "TQ2_0": (64,),
    }[kind]


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_safetensors_keep_every_value_in_their_own_format(tmp_path: Path, dtype: str, shards: int) -> None:
    weights = {name: w.astype(dtype) for name, w in llama_weights().items()}
    folder = write_folder(tmp_path / "model", weights, shards=shards)
    report = convert(folder, tmp_path / "store", quant="f32" if dtype == "float32" else "f16")
    store = open_store(tmp_path / "store")
    for name, wanted in weights.items():
        np.testing.assert_array_equal(stored(store, name), wanted.astype(np.float32), err_msg=name)
    assert sum(c.lossless for c in report.classes) >= len(weights) - 5
    assert {Path(e.path).name for n, e in store.entries.items() if ".mlp." in n} == {NEURONS}


def test_the_default_for_safetensors(tmp_path: Path) -> None:
    weights = llama_weights()
    report = convert(write_folder(tmp_path / "model", weights), tmp_path / "store")
    assert {c.kind: c.formats for c in report.classes} == {
        "embedding": "q8_0",
        "attention": "q4_0",
        "ffn": "q4_0",
        "head": "q8_0",
        "vector": "f32",
    }
    store = open_store(tmp_path / "store")
    for name, wanted in weights.items():
        # Normal weights in groups of 32: the largest is about 2.1 times the spread, so steps are that over 8 or 127.
        limit = {"f32": 0.0, "q8_0": 0.01, "q4_0": 0.1}[store.entries[name].fmt]
        error = np.linalg.norm(stored(store, name) - wanted) / np.linalg.norm(wanted)
        assert error <= limit, name
    assert store.info["quant"] == {"embedding": "q8_0", "attention": "q4_0", "ffn": "q4_0", "head": "q8_0"}


def test_quant_by_class(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", llama_weights())
    report = convert(folder, tmp_path / "store", quant="attention=bf16,ffn=q8_0,head=q4_1")
    chosen = {c.kind: c.formats for c in report.classes}
    assert chosen == {"embedding": "q8_0", "attention": "bf16", "ffn": "q8_0", "head": "q4_1", "vector": "f32"}


def test_both_sources_give_the_same_model(tmp_path: Path) -> None:
    weights = llama_weights()
    folder = write_folder(tmp_path / "model", weights)
    path = write_gguf(tmp_path / "x.gguf", gguf_arrays(weights), "F32")
    convert(folder, tmp_path / "a", quant="q8_0")
    convert(path, tmp_path / "b", quant="q8_0")
    a, b = open_store(tmp_path / "a"), open_store(tmp_path / "b")
    assert a.entries.keys() == b.entries.keys()
    for name in a.entries:
        np.testing.assert_array_equal(stored(a, name), stored(b, name), err_msg=name)
    assert {k: b.config[k] for k in CONFIG} == CONFIG | {"rms_norm_eps": pytest.approx(1e-5)}


def test_the_tokenizer_comes_along(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", gguf_arrays(llama_weights()), "F16")
    convert(path, tmp_path / "store")
    assert "tokenizer.json" in open_store(tmp_path / "store").files
    folder = write_folder(tmp_path / "model", llama_weights())
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).write_bytes((tmp_path / "store" / name).read_bytes())
    report = convert(folder, tmp_path / "second")
    assert not report.notes
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert json.loads((folder / name).read_text()) == json.loads((tmp_path / "second" / name).read_text())


def test_tensors_larger_than_a_piece(tmp_path: Path) -> None:
    vocab = CHUNK_WEIGHTS // 64 + 100
    rng = np.random.default_rng(0)
    big = {
        n: rng.standard_normal((vocab, 64)).astype(np.float16) for n in ("model.embed_tokens.weight", "lm_head.weight")
    }
    weights = {name: w.astype(np.float16) for name, w in llama_weights().items()} | big
    folder = write_folder(tmp_path / "model", weights, CONFIG | {"vocab_size": vocab})
    seen: list[int] = []
    convert(folder, tmp_path / "store", quant="f16", progress=lambda done, total, what: seen.append(done))
    store = open_store(tmp_path / "store")
    np.testing.assert_array_equal(stored(store, "lm_head.weight"), weights["lm_head.weight"].astype(np.float32))
    assert seen == sorted(seen)
    assert seen[-1] == sum(w.nbytes for w in weights.values())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("quant", ["auto", "f16", "f32"])
def test_a_weight_that_is_no_number_is_named(tmp_path: Path, bad: float, dtype: Any, quant: str) -> None:
    weights = {name: w.astype(dtype) for name, w in llama_weights().items()}
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name][83, 21] = bad
    with pytest.raises(FormatError, match=f"{name}' holds {bad} at row 83, column 21"):
        convert(write_folder(tmp_path / "model", weights), tmp_path / "store", quant=quant)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_a_scale_that_is_no_number_is_named(tmp_path: Path, kind: str) -> None:
    path = write_gguf(tmp_path / "x.gguf", gguf_arrays(llama_weights()), kind)
    tensor = next(t for t in reference.GGUFReader(path).tensors if t.name == "blk.1.ffn_up.weight")
    size = reference.GGML_QUANT_SIZES[tensor.tensor_type][1]
    with path.open("r+b") as file:
        file.seek(tensor.data_offset + (83 * 2 + 1) * size)
        file.write(np.float16(np.nan).tobytes())
    with pytest.raises(FormatError, match=r"layers\.1\.mlp\.up_proj\.weight' holds nan at row 83, column 32"):
        convert(path, tmp_path / "store")


def test_a_weight_too_large_for_its_format(tmp_path: Path) -> None:
    weights = llama_weights()
    weights["lm_head.weight"][3, 4] = 1e6
    with pytest.raises(FormatError, match=r"lm_head.*1000000.* at row 3, column 4 cannot be stored as f16"):
        convert(write_folder(tmp_path / "model", weights), tmp_path / "store", quant="f16")


def test_every_wrong_tensor_is_named(tmp_path: Path) -> None:
    weights = llama_weights()
    del weights["lm_head.weight"]
    weights["model.layers.2.mlp.up_proj.weight"] = np.zeros((96, 64), np.float32)
    weights["model.norm.weight"] = np.zeros(65, np.float32)
    with pytest.raises(ModelError) as caught:
        convert(write_folder(tmp_path / "model", weights), tmp_path / "store")
    for part in (
        "missing: lm_head.weight",
        "unknown: model.layers.2.mlp.up_proj.weight",
        "of the wrong shape: model.norm.weight [65] instead of [64]",
    ):
        assert part in str(caught.value)
    assert not list(tmp_path.glob("store*"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no config.json"),
        ({"config.json": "{}", "pytorch_model.bin": "x"}, r"only pytorch_model.bin, a pickle.*safetensors"),
        ({"config.json": "{}"}, "no weights"),
        ({"model.gguf": "x"}, r"for the GGUF in it give .*model.gguf"),
    ],
)
def test_folders_that_are_no_model(tmp_path: Path, files: dict[str, str], message: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    with pytest.raises(ModelError, match=message):
        convert(folder, tmp_path / "store")


def test_types_that_are_no_weights(tmp_path: Path) -> None:
    weights = llama_weights()
    weights["lm_head.weight"] = np.zeros((260, 64), np.int8)
    with pytest.raises(FormatError, match="type I8"):
        convert(write_folder(tmp_path / "model", weights), tmp_path / "store")


def test_a_part_of_a_split_gguf(tmp_path: Path) -> None:
    from hotset.formats.gguf_writer import header

    (tmp_path / "x.gguf").write_bytes(header({"general.architecture": "llama", "split.count": 3}, []))
    with pytest.raises(ModelError, match="--merge"):
        convert(tmp_path / "x.gguf", tmp_path / "store")


def test_the_same_again_does_nothing_and_anything_else_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", llama_weights())
    dest = tmp_path / "store"
    first = convert(folder, dest)
    before = {p.name: p.stat().st_mtime_ns for p in dest.iterdir()}
    again = convert(folder, dest)
    assert (first.unchanged, again.unchanged) == (False, True)
    assert {p.name: p.stat().st_mtime_ns for p in dest.iterdir()} == before
    (dest / JOURNAL).touch()  # as a kill in the last moment leaves it
    assert convert(folder, dest).unchanged and not (dest / JOURNAL).exists()
    with pytest.raises(UsageError, match="other options"):
        convert(folder, dest, quant="q8_0")
    assert not convert(folder, dest, quant="q8_0", force=True).unchanged
    assert open_store(dest).info["quant"]["ffn"] == "q8_0"
    with pytest.raises(UsageError, match="not a store"):
        convert(folder, folder)


def test_ctrl_c_and_on_again(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", llama_weights())
    convert(folder, tmp_path / "whole")

    def stop(done: int, total: int, what: str) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        convert(folder, tmp_path / "store", progress=stop)
    (partial,) = tmp_path.glob("store.partial-*")
    assert str(partial) in caught.value.__notes__[0]
    assert not (tmp_path / "store").exists()
    report = convert(folder, tmp_path / "store")
    assert report.resumed_bytes > 0
    assert not partial.exists()
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "store" / path.name).read_bytes()
    # What the report says must not depend on the stop.
    assert report.classes == convert(folder, tmp_path / "third").classes


def test_a_source_cut_while_it_is_read(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", llama_weights())

    def cut(done: int, total: int, what: str) -> None:
        os.truncate(folder / "model.safetensors", 20_000)

    with pytest.raises(StorageError, match="was cut while it was read"):
        convert(folder, tmp_path / "store", progress=cut)


def test_names_cover_the_tiny_model() -> None:
    assert len(names()) == 3 + 2 * 9
