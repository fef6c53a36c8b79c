"""Packed stores in tests: what their bundles hold by the twin, and profiles that order them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from golden_vectors import FOLDER
from numpy.typing import NDArray

from hotset.formats.neurons import NeuronInfo
from hotset.formats.profile import Profile, fingerprint, write_profile
from hotset.formats.store import Store
from hotset.models import resolve
from hotset.reference.bundle import decode_bundle
from hotset.reference.packed import decode
from hotset.tools.convert import convert

Rows = NDArray[np.float64]
DenseStore = Callable[[str, str], Path]


def dense_stores(root: Path) -> DenseStore:
    """Makes the store of a golden vector's checkpoint in a weight format, once, in `root`."""

    def store(name: str, fmt: str) -> Path:
        if not (root / f"{name}-{fmt}").exists():
            convert(FOLDER / name, root / f"{name}-{fmt}", quant=fmt)
        return root / f"{name}-{fmt}"

    return store


def neurons_of(store: Store) -> NeuronInfo:
    assert store.neurons is not None
    return store.neurons


def bundles_of(info: NeuronInfo, layer: int) -> NDArray[np.uint8]:
    """[ffn, stride], straight from the file."""
    data = np.fromfile(info.path, np.uint8, info.ffn * info.stride, offset=info.offsets[layer])
    return data.reshape(info.ffn, info.stride)


def vectors_of(store: Store, layer: int) -> dict[str, Rows]:
    """By role [ffn, hidden], in the model's own order, as the twin decodes the bundles."""
    info = neurons_of(store)
    decoded = [decode_bundle(info.layout, bundle) for bundle in bundles_of(info, layer)]
    back = np.argsort(info.read_order(layer))
    return {role: np.stack([d[role] for d in decoded])[back] for role in info.layout.roles}


def dense_vectors(store: Store, layer: int) -> dict[str, Rows]:
    """The same of a dense store, by the twin of its layout."""
    out = {}
    for spec in resolve(store.config).tensors:
        if spec.kind == "ffn" and spec.layer == layer:
            e = store.entries[spec.name]
            matrix = decode(e.fmt, np.fromfile(e.path, np.uint8, e.bytes, offset=e.offset), e.rows, e.cols)
            out[spec.role] = matrix.T if spec.role == "down" else matrix
    return out


def profile_of(store: Store, counts: NDArray[np.int64], **changes: Any) -> Profile:
    """A profile with these counts [layers, ffn] of 5000 tokens, in which nothing else happened."""
    layers, ffn = counts.shape
    none = np.zeros_like(counts)
    itself = np.arange(ffn, dtype=np.int32)[None, :, None].repeat(layers, axis=0)
    profile = Profile(
        model=fingerprint(store),
        tokens=5000,
        text="",
        hotset="0",
        counts=(counts, *[none] * 7),
        independent=(none,) * 8,
        steps=np.full((2, 8), 5000),
        reused=np.zeros((layers, 3), np.int64),
        reusable=np.zeros((layers, 3), np.int64),
        neighbours=itself,
        nearness=np.zeros((layers, ffn, 1), np.float32),
        trace=np.zeros((0, layers, -(-ffn // 8)), np.uint8),
    )
    return replace(profile, **changes)


def with_profile(folder: Path, profile: Profile, tmp_path: Path) -> Path:
    """The store again, of hard links, with a profile."""
    copy = tmp_path / "profiled"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).hardlink_to(path)
    write_profile(profile, copy / "profile.safetensors")
    return copy
