"""Packing: bundles against the dense weights by the twin, checksums by the book, order, stops and repetition."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_vectors import load
from packed_stores import (
    DenseStore,
    Rows,
    bundles_of,
    dense_stores,
    dense_vectors,
    neurons_of,
    profile_of,
    vectors_of,
    with_profile,
)
from safetensors import safe_open

from hotset import _core
from hotset.errors import UsageError
from hotset.formats.store import ALIGNMENT, NEURONS, RESIDENT, open_store
from hotset.models import resolve
from hotset.quant import NeuronLayout
from hotset.reference.bundle import decode_bundle
from hotset.tools import pack_plan
from hotset.tools.pack import pack
from hotset.tools.pack_layers import CHUNK_WEIGHTS, transposed
from hotset.tools.pack_order import chained

# Gated and plain; sizes that fill neither blocks nor groups; biases that stay.
CASES = [("llama", "f32"), ("llama", "q4_1"), ("bamboo", "q8_0"), ("opt", "bf16"), ("arcee", "f16")]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> DenseStore:
    return dense_stores(tmp_path_factory.mktemp("dense"))


def plain_rounding_error(rows: Rows, fmt: str) -> float:
    """Squared error of rounding each group of 32 to steps of its largest weight / 7 or 127."""
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 32))).reshape(len(rows), -1, 32)
    step = np.float16(np.abs(padded).max(axis=-1, keepdims=True) / (7 if fmt == "q4_0" else 127)).astype(np.float64)
    rounded = np.round(np.divide(padded, step, out=np.zeros_like(padded), where=step > 0)) * step
    return float(np.sum((rounded - padded) ** 2))


# --- contents ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", ["q4_0", "q8_0"])
@pytest.mark.parametrize(("name", "source"), CASES)
def test_bundles_hold_the_dense_weights(name: str, source: str, fmt: str, dense: DenseStore, tmp_path: Path) -> None:
    folder = dense(name, source)
    report = pack(folder, tmp_path / "packed", fmt=fmt)
    before, after = open_store(folder), open_store(tmp_path / "packed")
    after.verify()
    errors = dict.fromkeys(report.errors, 0.0)
    weights = dict.fromkeys(report.errors, 0.0)
    for layer in range(report.layers):
        wanted, got = dense_vectors(before, layer), vectors_of(after, layer)
        assert wanted.keys() == got.keys() == report.errors.keys()
        for role in got:
            error = float(np.sum((got[role] - wanted[role]) ** 2))
            assert error <= plain_rounding_error(wanted[role], fmt) * (1 + 1e-6)
            errors[role] += error
            weights[role] += float(np.sum(wanted[role] ** 2))
    for role, error in report.errors.items():
        assert error == pytest.approx(np.sqrt(errors[role] / weights[role]), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("fmt", ["q4_0", "q8_0"])
@pytest.mark.parametrize("name", ["llama", "bamboo", "opt"])
def test_gate_and_up_keep_every_value_in_their_own_format(
    name: str, fmt: str, dense: DenseStore, tmp_path: Path
) -> None:
    """They are in groups of 32 along the row before and after; only down's groups run the other way."""
    folder = dense(name, fmt)
    report = pack(folder, tmp_path / "packed", fmt=fmt)
    for layer in range(report.layers):
        wanted, got = dense_vectors(open_store(folder), layer), vectors_of(open_store(report.dest), layer)
        for role in wanted.keys() - {"down"}:
            np.testing.assert_array_equal(got[role], wanted[role])
            assert report.errors[role] == 0.0
    assert report.errors["down"] > 0.0


@pytest.mark.parametrize("cols", [5, 32, 63, 64, 500, 512, 530, 1500])
@pytest.mark.parametrize("fmt", ["q4_0", "q8_0"])
def test_rows_become_vectors_whatever_their_length(fmt: str, cols: int) -> None:
    weights = np.random.default_rng(cols).standard_normal((37, cols)).astype(np.float32)
    packed = np.empty(_core.packed_bytes(fmt, 37, cols), np.uint8)
    _core.encode(fmt, weights, packed)
    vectors = transposed(packed, fmt, 37, cols)
    np.testing.assert_array_equal(_core.decode_vectors(fmt, vectors, cols), _core.decode(fmt, packed, 37, cols))


@pytest.mark.parametrize("fmt", ["q4_0", "q8_0"])
@pytest.mark.parametrize("cols", [1, 31, 32, 33, 72, 512, 513, 1100])
def test_twin_and_core_read_a_vector_alike(fmt: str, cols: int) -> None:
    layout = NeuronLayout(fmt, cols, gated=True)
    assert layout.vector_bytes == _core.vector_bytes(fmt, cols)
    weights = np.random.default_rng(cols).standard_normal((3, cols)).astype(np.float32)
    vectors = np.zeros((3, layout.vector_bytes), np.uint8)
    _core.encode_vectors(fmt, weights, vectors)
    decoded = decode_bundle(layout, vectors.reshape(-1))
    twin = np.stack([decoded[role] for role in layout.roles])
    np.testing.assert_array_equal(twin.astype(np.float32), _core.decode_vectors(fmt, vectors, cols))


def crc32c(data: bytes) -> int:
    """Bit by bit, polynomial 0x1EDC6F41 reflected (RFC 3720)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_every_bundle_has_its_checksum_and_zero_padding(dense: DenseStore, tmp_path: Path) -> None:
    pack(dense("bamboo", "q8_0"), tmp_path / "packed", stride=4096)
    info = neurons_of(open_store(tmp_path / "packed"))
    used = info.layout.bytes
    assert used == 3 * 2 * 18 < info.stride == 4096
    for layer in range(info.layers):
        bundles, sums = bundles_of(info, layer), info.read_crc32c(layer)
        assert not bundles[:, used:].any()
        for k in (0, 1, info.ffn - 1):
            assert crc32c(bundles[k, :used].tobytes()) == sums[k]


def test_any_safetensors_reader_opens_it(dense: DenseStore, tmp_path: Path) -> None:
    pack(dense("llama", "f32"), tmp_path / "packed")
    info = neurons_of(open_store(tmp_path / "packed"))
    with safe_open(tmp_path / "packed" / NEURONS, "numpy") as file:
        assert set(file.keys()) == {
            f"hotset.layers.{i}.{part}" for i in range(2) for part in ("neurons", "order", "crc32c")
        }
        for layer in range(2):
            data = file.get_tensor(f"hotset.layers.{layer}.neurons")
            assert data.nbytes % ALIGNMENT == info.offsets[layer] % ALIGNMENT == 0
            np.testing.assert_array_equal(data[: info.ffn * info.stride], bundles_of(info, layer).reshape(-1))
            order = file.get_tensor(f"hotset.layers.{layer}.order")[: 4 * info.ffn].view("<i4")
            np.testing.assert_array_equal(order, np.arange(info.ffn))


def test_what_the_store_says_of_its_neurons(dense: DenseStore, tmp_path: Path) -> None:
    folder = dense("opt", "bf16")
    assert open_store(folder).neurons is None
    report = pack(folder, tmp_path / "packed", fmt="q8_0")
    store = open_store(tmp_path / "packed")
    info, config = neurons_of(store), load("opt").model.config
    assert (info.hidden, info.ffn, info.layers) == (config.hidden, config.ffn, len(config.layers))
    assert (info.fmt, info.gated, info.order, info.stride) == ("q8_0", False, "none", report.stride)
    assert info.stride % pack_plan.direct_alignment(tmp_path / "packed") == 0
    assert 0 <= info.stride - report.bundle_bytes < pack_plan.direct_alignment(tmp_path / "packed")
    assert store.info["quant"]["ffn"] == "q8_0"
    # Biases are no part of a neuron's bundle, and the model is still the same.
    assert {"model.decoder.layers.0.fc1.bias", "model.decoder.layers.0.fc2.bias"} < store.entries.keys()
    assert resolve(store.config) == resolve(open_store(folder).config)


def test_other_files_are_those_of_the_dense_store(dense: DenseStore, tmp_path: Path) -> None:
    folder = dense("llama", "f32")
    pack(folder, tmp_path / "packed")
    before, after = open_store(folder), open_store(tmp_path / "packed")
    assert before.files.keys() == after.files.keys()
    same = (tmp_path / "packed" / RESIDENT).stat()
    assert (same.st_ino, same.st_nlink >= 2) == ((folder / RESIDENT).stat().st_ino, True)
    assert after.config | {"hotset": before.info} == before.config


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM])
def test_resident_weights_are_copied_where_they_cannot_be_linked(
    code: int, dense: DenseStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    folder = dense("llama", "f32")
    pack(folder, tmp_path / "packed")
    assert (tmp_path / "packed" / RESIDENT).stat().st_nlink == 1
    assert (tmp_path / "packed" / RESIDENT).read_bytes() == (folder / RESIDENT).read_bytes()
    open_store(tmp_path / "packed").verify()


# --- order ------------------------------------------------------------------------------------------


def test_most_frequent_first(dense: DenseStore, tmp_path: Path) -> None:
    counts = np.random.default_rng(0).integers(0, 30, (2, 100))  # with ties
    source = dense("llama", "f32")
    folder = with_profile(source, profile_of(open_store(source), counts), tmp_path)
    report = pack(folder, tmp_path / "packed")
    assert report.order == "frequency"
    plain = pack(folder, tmp_path / "plain", order="none")
    packed, unordered = open_store(report.dest), open_store(plain.dest)
    for layer in range(2):
        order = neurons_of(packed).read_order(layer)
        assert sorted(range(100), key=lambda k: (-counts[layer, k], k)) == order.tolist()
        bundles = bundles_of(neurons_of(unordered), layer)
        np.testing.assert_array_equal(bundles_of(neurons_of(packed), layer), bundles[order])
    assert (report.dest / "profile.safetensors").read_bytes() == (folder / "profile.safetensors").read_bytes()


def test_neurons_active_together_lie_together_if_they_are_as_frequent() -> None:
    pairs = (np.arange(64) ^ 1)[:, None]  # 2i and 2i + 1 are always active together
    order = np.array([0, 2, 1, 3, *range(4, 64)], np.int32)
    assert chained(order, pairs).tolist() == list(range(64))
    apart = np.array([*range(0, 64, 2), *range(1, 64, 2)], np.int32)  # no band of four holds a pair
    assert chained(apart, pairs).tolist() == apart.tolist()


def test_coactivation_orders_within_bands_of_frequency(dense: DenseStore, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    counts = random.integers(0, 1000, (2, 100))
    neighbours = np.stack([np.argsort(random.random((100, 100)), axis=1)[:, :8] for _ in range(2)]).astype(np.int32)
    source = dense("llama", "f32")
    near = {"neighbours": neighbours, "nearness": np.zeros(neighbours.shape, np.float32)}
    folder = with_profile(source, profile_of(open_store(source), counts, **near), tmp_path)
    report = pack(folder, tmp_path / "packed", order="coactivation")
    info = neurons_of(open_store(report.dest))
    for layer in range(2):
        frequent = np.argsort(-counts[layer], kind="stable")
        for got, band in zip(np.array_split(info.read_order(layer), 16), np.array_split(frequent, 16), strict=True):
            assert set(got.tolist()) == set(band.tolist())


# --- stops and repetition ---------------------------------------------------------------------------


def test_a_stopped_run_goes_on_and_ends_alike(dense: DenseStore, tmp_path: Path) -> None:
    folder = dense("llama", "f32")

    def stop(done: int, total: int, what: str, /) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        pack(folder, tmp_path / "packed", progress=stop)
    assert "goes on from there" in caught.value.__notes__[0]
    assert not (tmp_path / "packed").exists()
    report = pack(folder, tmp_path / "packed")
    assert (report.resumed_layers, report.layers) == (1, 2)
    whole = pack(folder, tmp_path / "whole")
    assert whole.resumed_layers == 0
    assert report.errors == whole.errors
    for path in whole.dest.iterdir():
        assert (report.dest / path.name).read_bytes() == path.read_bytes()
    assert not list(tmp_path.glob("*partial*"))


def test_the_same_again_is_done_already_and_anything_else_is_refused(dense: DenseStore, tmp_path: Path) -> None:
    folder = dense("llama", "f32")
    pack(folder, tmp_path / "packed")
    assert pack(folder, tmp_path / "packed").unchanged
    with pytest.raises(UsageError, match=r"other contents or options.*--force"):
        pack(folder, tmp_path / "packed", fmt="q8_0")
    assert neurons_of(open_store(pack(folder, tmp_path / "packed", fmt="q8_0", force=True).dest)).fmt == "q8_0"
    (tmp_path / "text").write_text("mine")
    with pytest.raises(UsageError, match="is not a store"):
        pack(folder, tmp_path / "text")
    assert pack(folder).dest == folder.with_name(f"{folder.name}-packed")


def test_a_store_can_be_replaced_by_itself_packed(dense: DenseStore, tmp_path: Path) -> None:
    source = dense("llama", "f32")
    folder = with_profile(source, profile_of(open_store(source), np.zeros((2, 100), np.int64)), tmp_path)
    with pytest.raises(UsageError, match="--force"):
        pack(folder, folder)
    pack(folder, folder, force=True)
    open_store(folder).verify()
    assert neurons_of(open_store(folder)).ffn == 100
    with pytest.raises(UsageError, match="packed already"):
        pack(folder, tmp_path / "twice")


def test_pieces_and_threads_change_nothing(dense: DenseStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = dense("bamboo", "q8_0")
    one = pack(folder, tmp_path / "one", threads=1)
    monkeypatch.setattr("hotset.tools.pack_layers.CHUNK_WEIGHTS", 64 * 64)  # 160 neurons in three pieces
    assert CHUNK_WEIGHTS > 160 * 64
    many = pack(folder, tmp_path / "many", threads=5)
    assert (one.dest / NEURONS).read_bytes() == (many.dest / NEURONS).read_bytes()


@pytest.mark.full
def test_memory_is_that_of_one_layer_of_bundles(tmp_path: Path) -> None:
    """Four layers of 113 MB in q8_0, 402 MB each as float32: the peak is one of them, and pieces of 8 MiB."""
    code = f"""
import resource
from pathlib import Path
from hotset.tools.pack import pack
from hotset.tools.random_model import ModelShape, random_model
shape = ModelShape(hidden=3072, ffn=10912, layers=4, heads=8, kv_heads=8, vocab=1000)
folder = Path({str(tmp_path)!r})
random_model(shape, store=folder / "dense", quant="q8_0")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
report = pack(folder / "dense", folder / "packed", fmt="q8_0", threads=2)
print(before, report.bytes // report.layers, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before_kib, layer_bytes, peak_kib = map(int, done.stdout.split())
    assert layer_bytes > 100e6
    assert peak_kib * 1024 < before_kib * 1024 + layer_bytes + (80 << 20)
