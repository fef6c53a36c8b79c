"""Thresholds that make a store's model sparse without training: section `hotset.sparsity` of its config.json.

Where a neuron's score is what it contributes, |product| times the length of its column of `down`, those lengths lie
beside it in `norms.safetensors`: F32 [layers, ffn], neurons in the model's own order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hotset.errors import FormatError
from hotset.formats.files import Json, quoted, read_at
from hotset.formats.safetensors import read_header
from hotset.formats.store import Store

NORMS_FILE = "norms.safetensors"
_NORMS = "hotset.down_norms"
Method = Literal["contribution", "cats", "teal"]
METHODS: tuple[Method, ...] = get_args(Method)
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sparsity:
    """What is left out of every FFN, by layer, and what that costs.

    method: "contribution": products whose magnitude times ‖down‖ is below the threshold; "cats": gates, after their
    activation, below it (arXiv:2404.08763); "teal": products, and inputs, below theirs (arXiv:2408.14690).
    """

    method: Method
    thresholds: tuple[float, ...]  # [layers]
    input_thresholds: tuple[float, ...]  # [layers] of "teal", else empty
    zeros: float  # share of products that are 0, measured on held-out text
    perplexity_change: float  # relative, measured there

    def as_json(self) -> Json:
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


def read_sparsity(store: Store) -> Sparsity | None:
    """What the store's config says; None where it says nothing. Raises FormatError."""
    section, path = store.info.get("sparsity"), store.path / "config.json"
    if section is None:
        return None
    names = Sparsity.__dataclass_fields__.keys()
    if not isinstance(section, dict) or section.keys() != names:
        raise FormatError(f"{path}: hotset.sparsity must have exactly {', '.join(names)}; make the store again")
    numbers = [section["zeros"], section["perplexity_change"]]
    lists = [section["thresholds"], section["input_thresholds"]]
    if section["method"] not in METHODS or not all(map(_is_number, numbers)) or not all(map(_are_limits, lists)):
        raise FormatError(f"{path}: hotset.sparsity is {quoted(json.dumps(section), 200)}, which cannot be")
    return Sparsity(section["method"], *map(tuple, lists), *map(float, numbers))  # type: ignore[arg-type]


def ffn_floors(store: Store, sparsity: Sparsity, layers: int, ffn: int) -> list[Mapping[str, Any]]:
    """By layer what `_core.Engine.set_ffn_floor` takes, neurons in the store's order. Raises FormatError."""
    counts = {len(sparsity.thresholds), len(sparsity.input_thresholds) or len(sparsity.thresholds)}
    if counts != {layers} or (sparsity.method == "teal") != bool(sparsity.input_thresholds):
        raise FormatError(f"{store.path / 'config.json'}: hotset.sparsity has no threshold for each of {layers} layers")
    norms = read_norms(store, layers, ffn) if sparsity.method == "contribution" else np.ones((layers, ffn), np.float32)
    return [layer_floor(sparsity, layer, norms[layer, _order(store, layer)]) for layer in range(layers)]


def layer_floor(sparsity: Sparsity, layer: int, norms: Floats) -> Mapping[str, Any]:
    """The same of one layer. norms: [ffn] of `down`."""
    threshold = sparsity.thresholds[layer]
    if sparsity.method == "cats":
        return {"gate": threshold}
    if sparsity.method == "teal":
        return {"input": sparsity.input_thresholds[layer], "product": np.full_like(norms, threshold)}
    real = np.finfo(np.float32)
    return {"product": np.minimum(np.float32(threshold) / np.maximum(norms, real.tiny), real.max)}


def read_norms(store: Store, layers: int, ffn: int) -> Floats:
    """[layers, ffn], in the model's own order of neurons. Raises FormatError, StorageError."""
    path = store.path / NORMS_FILE
    entry = read_header(path).entries.get(_NORMS)
    if entry is None or (entry.dtype, entry.shape) != ("F32", (layers, ffn)):
        raise FormatError(f"{path} does not hold the lengths of {layers} layers of {ffn} neurons; make the store again")
    norms = np.frombuffer(read_at(path, entry.offset, entry.bytes), "<f4").reshape(layers, ffn)
    if not (np.isfinite(norms).all() and (norms >= 0).all()):
        raise FormatError(f"{path} holds a length that is no number from 0; copy the store again or make it again")
    return norms


def norms_bytes(norms: Floats) -> bytes:
    """The contents of norms.safetensors."""
    data = norms.astype("<f4").tobytes()
    header = json.dumps({_NORMS: {"dtype": "F32", "shape": norms.shape, "data_offsets": [0, len(data)]}}).encode()
    header = header.ljust(-(-len(header) // 8) * 8)
    return len(header).to_bytes(8, "little") + header + data


def _order(store: Store, layer: int) -> NDArray[np.int32] | slice:
    return slice(None) if store.neurons is None else store.neurons.read_order(layer)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(float(str(value)))


def _are_limits(values: object) -> bool:
    return isinstance(values, Sequence) and all(_is_number(v) and v >= 0 for v in values)
