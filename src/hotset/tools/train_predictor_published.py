"""A checkpoint's own predictors, as the engine takes them.

They are fc2 relu(fc1 s) without biases, s the hidden state *before* the FFN's norm, trained so that what is above 0 is
active (modeling_bamboo.py; PowerInfer's llm_build_ffn_sparse). The engine gives predictors what comes out of the norm,
w s / |s| with the root mean square for |s|. So columns of fc1 are divided by w: all scores of a token then are those of
the checkpoint divided by |s|, which keeps their signs and their order, and there is no second input to carry along.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from hotset import _core
from hotset.errors import FormatError, UsageError
from hotset.formats.files import read_at
from hotset.formats.neurons import tensor_name
from hotset.formats.store import Store
from hotset.models import Model
from hotset.tools.train_predictor_fit import ROWS, LayerFit, bytes_of, rounded, time_us, try_scores
from hotset.tools.train_predictor_inputs import Floats, Neurons

_ROLES = ("predictor_in", "predictor_out")


def check_published(store: Store, model: Model) -> None:
    """Raises: UsageError (the store has none of its checkpoint), FormatError (maps that cannot be)."""
    if not store.published:
        raise UsageError(
            f"{store.path} has no predictors of its checkpoint; leave out --published to train some, or convert a "
            "checkpoint that brings them"
        )
    c = model.config
    assert c.norm == "rms"  # of every family whose checkpoints may bring some
    for layer in range(len(c.layers)):
        down, up = (store.published.get(tensor_name(layer, role)) for role in _ROLES)
        if down is None or up is None or (down.cols, up.rows, up.cols) != (c.hidden, c.ffn, down.rows):
            raise FormatError(
                f"{store.path}: published predictor of layer {layer} is not [rank, {c.hidden}] and [{c.ffn}, rank]: "
                "convert again"
            )


def published_maps(store: Store, model: Model, layer: int) -> tuple[Floats, Floats]:
    """down [rank, hidden] and up [ffn, rank], its rows in the model's own order; the rank is filled up with zeros.

    Raises: StorageError (the store is damaged).
    """
    down, up = (_matrix(store, tensor_name(layer, role)) for role in _ROLES)
    norm = _norm(store, model, layer)
    down = np.divide(down, norm, out=np.zeros_like(down), where=norm != 0)  # the engine's input is 0 there
    missing = -len(down) % ROWS
    return np.pad(down, ((0, missing), (0, 0))), np.pad(up, ((0, 0), (0, missing)))


def try_published(neurons: Neurons, down: Floats, up: Floats, held_out: Floats) -> LayerFit:
    """How well maps find neurons. up: rows in the store's order; held_out: inputs of the FFN [tokens, hidden]."""
    start = time.monotonic()
    middle = np.maximum(held_out @ rounded(down).T, 0)
    tried = try_scores(middle @ rounded(up).T, np.square(neurons.contributions(held_out)))
    took = time_us(down, up, held_out[:1])
    return LayerFit(len(down), bytes_of(down, up), tried, took, time.monotonic() - start)


def _matrix(store: Store, name: str) -> Floats:
    store.verify_tensor(name)
    entry = store.published[name]
    data = np.frombuffer(read_at(Path(entry.path), entry.offset, entry.bytes), np.uint8)
    return _core.decode(entry.fmt, data, entry.rows, entry.cols)


def _norm(store: Store, model: Model, layer: int) -> Floats:
    """[hidden]: what the FFN's norm multiplies by."""
    name = next(spec.name for spec in model.tensors if (spec.role, spec.layer) == ("ffn_norm", layer))
    entry = store.entries[name]
    return np.frombuffer(read_at(Path(entry.path), entry.offset, entry.bytes), "<f4") + np.float32(
        model.config.norm_offset
    )
