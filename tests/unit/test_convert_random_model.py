"""Random models: store and GGUF hold the same weights, and both are sound models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gguf as reference
import numpy as np
import pytest

from hotset import _core
from hotset.errors import UsageError
from hotset.formats.store import open_store
from hotset.tokenizer import Tokenizer
from hotset.tools.convert import convert
from hotset.tools.random_model import ModelShape, random_model, random_rows, random_vocabulary

SHAPE = ModelShape(hidden=128, ffn=192, layers=2, heads=4, kv_heads=2, vocab=1000, context=256)


@pytest.mark.parametrize("quant", ["q4_0", "q4_1", "q8_0", "f16", "bf16", "attention=q8_0,head=f32"])
def test_both_files_hold_the_same_weights(tmp_path: Path, quant: str) -> None:
    random_model(SHAPE, store=tmp_path / "store", gguf=tmp_path / "x.gguf", quant=quant)
    convert(tmp_path / "x.gguf", tmp_path / "converted")
    ours, converted = open_store(tmp_path / "store"), open_store(tmp_path / "converted")
    ours.verify()
    for name in ("resident.safetensors", "neurons.safetensors", "tokenizer.json"):
        assert (tmp_path / "store" / name).read_bytes() == (tmp_path / "converted" / name).read_bytes()
    assert ours.config | {"hotset": 0} == converted.config | {"hotset": 0}


def test_the_reference_library_reads_the_gguf(tmp_path: Path) -> None:
    random_model(SHAPE, gguf=tmp_path / "x.gguf", store=tmp_path / "store")
    theirs = {t.name: t for t in reference.GGUFReader(tmp_path / "x.gguf").tensors}
    entry = open_store(tmp_path / "store").entries["model.layers.1.mlp.down_proj.weight"]
    tensor = theirs["blk.1.ffn_down.weight"]
    wanted = reference.quants.dequantize(tensor.data, tensor.tensor_type)
    data = np.fromfile(entry.path, np.uint8, entry.bytes, offset=entry.offset)
    np.testing.assert_array_equal(_core.decode(entry.fmt, data, entry.rows, entry.cols), wanted)


def test_seeds(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        random_model(SHAPE, gguf=tmp_path / name, seed=seed)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_weights_have_mean_0_and_variance_1_over_cols(kind: str) -> None:
    raw = random_rows(np.random.default_rng(0), kind, 500, 256)
    weights = reference.quants.dequantize(raw, reference.GGMLQuantizationType[kind])
    assert np.isfinite(weights).all()
    assert abs(weights.mean()) * 16 < 0.02  # in standard deviations; 128,000 weights in 4,000 groups
    assert weights.std() * 16 == pytest.approx(1, abs=0.05)


def test_the_vocabulary_is_a_sound_byte_level_bpe(tmp_path: Path) -> None:
    tokens, merges = random_vocabulary(32000)
    assert len(tokens) == len(set(tokens)) == 32000
    known = set(tokens[:256])
    for merge, token in zip(merges, tokens[256:-1], strict=True):
        left, right = merge.split(" ")
        assert left in known
        assert right in known
        known.add(token)
    random_model(SHAPE, store=tmp_path / "store")
    tokenizer = Tokenizer.load(tmp_path / "store")
    text = "The rain in Spain: 日本語 🙂\n\tx"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(ids) < len(text.encode())


@pytest.mark.parametrize(
    "change", [{"hidden": 100}, {"heads": 3}, {"kv_heads": 3}, {"vocab": 256}, {"layers": 0}, {"ffn": -32}]
)
def test_shapes_that_make_no_model(change: dict[str, int]) -> None:
    from dataclasses import replace

    with pytest.raises(UsageError):
        random_model(replace(SHAPE, **change))


def test_a_vocabulary_beyond_the_generator() -> None:
    with pytest.raises(UsageError, match="at most"):
        random_vocabulary(1 << 24)


@pytest.mark.full
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """260 MB of f16 and more: the peak is that of the libraries and a few pieces of 16 MiB.

    VmHWM, as ru_maxrss of a child starts with what its parent, which may have tested large models, had at the fork.
    """
    code = f"""
from pathlib import Path
from hotset.tools.convert import convert
from hotset.tools.random_model import ModelShape, random_model
shape = ModelShape(hidden=1024, ffn=4096, layers=4, heads=8, kv_heads=8, vocab=32000)
folder = Path({str(tmp_path)!r})
random_model(shape, gguf=folder / "x.gguf", store=folder / "same", quant="f16")
convert(folder / "x.gguf", folder / "store", quant="q8_0")
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 250 * 1024  # KiB
    assert (tmp_path / "x.gguf").stat().st_size > 250e6
