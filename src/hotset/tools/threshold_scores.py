"""Scores of a layer's neurons on calibration text: how many fall below a threshold, and what goes with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hotset import _core
from hotset.config import ModelConfig
from hotset.formats.files import read_at
from hotset.formats.sparsity import Method
from hotset.formats.store import Store, StoreEntry
from hotset.models import Model

Floats = NDArray[np.float32]
_LOW, _HIGH, _PER_OCTAVE = -48, 16, 64  # log2 of the scores told apart, in steps of 1 %
_BINS = (_HIGH - _LOW) * _PER_OCTAVE
EDGES = np.exp2(_LOW + np.arange(1, _BINS + 1) / _PER_OCTAVE)  # upper ends of the bins
_CHUNK = 512  # tokens scored at once: 22 MB for each matrix product of a layer of 11008


@dataclass(frozen=True, slots=True)
class Curve:
    """Of one layer, for thresholds EDGES: the share of scores below, and the energy that these carry."""

    share: NDArray[np.float64]  # [bins], rising to 1
    lost: NDArray[np.float64]  # [bins], sum of (product ‖down‖)^2 for a token

    def at(self, share: float) -> int:
        """Index of the largest threshold with no more than this share below; -1 if there is none."""
        return int(np.searchsorted(self.share, share + 1e-12, side="right")) - 1


class Histogram:
    """Collects a Curve from scores that need not be in memory together."""

    def __init__(self) -> None:
        self._counts, self._energy, self._tokens = np.zeros(_BINS), np.zeros(_BINS), 0

    def add(self, scores: Floats, energy: Floats) -> None:
        """scores, energy: [tokens, n], >= 0."""
        with np.errstate(divide="ignore"):
            place = (np.log2(scores.ravel()) - np.float32(_LOW)) * np.float32(_PER_OCTAVE)
        bins = np.clip(place, 0, _BINS - 1).astype(np.int64)
        self._counts += np.bincount(bins, minlength=_BINS)
        self._energy += np.bincount(bins, energy.ravel(), minlength=_BINS)
        self._tokens += len(scores)

    def curve(self) -> Curve:
        return Curve(np.cumsum(self._counts) / max(self._counts.sum(), 1), np.cumsum(self._energy) / self._tokens)


@dataclass(frozen=True, slots=True)
class LayerScores:
    curve: Curve
    norms: Floats  # [ffn]: ‖down‖ of each neuron
    inputs: Curve | None = None  # of the layer's inputs, for "teal"


def score_layer(store: Store, model: Model, layer: int, x: Floats, method: Method) -> LayerScores:
    """Scores of all neurons of a layer of a dense store on inputs x [tokens, hidden]."""
    weights = {role: _tensor(store, model, role, layer) for role in ("gate", "up", "down", "gate_bias", "up_bias")}
    down = weights.pop("down")
    assert down is not None
    norms = np.sqrt(np.einsum("ij,ij->j", down, down))
    scores, inputs = Histogram(), Histogram()
    for part in np.array_split(x, max(1, -(-len(x) // _CHUNK))):
        gate, products = ffn_products(model.config, part, **weights)
        contribution = np.abs(products) * norms
        by = {"contribution": contribution, "cats": np.abs(gate), "teal": np.abs(products)}[method]
        scores.add(by, np.square(contribution))
        if method == "teal":
            inputs.add(np.abs(part), np.square(part))
    return LayerScores(scores.curve(), norms.astype(np.float32), inputs.curve() if method == "teal" else None)


def ffn_products(
    config: ModelConfig,
    x: Floats,
    gate: Floats | None,
    up: Floats | None,
    gate_bias: Floats | None = None,
    up_bias: Floats | None = None,
) -> tuple[Floats, Floats]:
    """(activated gates, what goes into down) as the engine computes them, [tokens, ffn] each; the same in a plain FFN.

    x: [tokens, hidden]; gate, up: [ffn, hidden].
    """
    assert up is not None
    ups = x @ up.T if up_bias is None else x @ up.T + up_bias
    if gate is None:
        plain = _activated(config.act_gate, config.gate_threshold, ups)
        return plain, plain
    gates = x @ gate.T if gate_bias is None else x @ gate.T + gate_bias
    gates = _activated(config.act_gate, config.gate_threshold, gates)
    return gates, gates * _activated(config.act_up, config.up_threshold, ups)


def _activated(name: str, threshold: float, x: Floats) -> Floats:
    flat = np.ascontiguousarray(x, np.float32).ravel()
    return _core.activate(_core.select_isa(), name, threshold, flat).reshape(x.shape)


def _tensor(store: Store, model: Model, role: str, layer: int) -> Floats | None:
    """A matrix [rows, cols] or vector [rows] of a dense store; None where the model has none."""
    for entry in _entries(store, model, role, layer):
        data = np.frombuffer(read_at(Path(entry.path), entry.offset, entry.bytes), np.uint8)
        return _core.decode(entry.fmt, data, entry.rows, entry.cols) if entry.cols else data.view("<f4")
    return None


def _entries(store: Store, model: Model, role: str, layer: int) -> Iterator[StoreEntry]:
    for spec in model.tensors:
        if (spec.role, spec.layer) == (role, layer) and spec.name in store.entries:
            yield store.entries[spec.name]
