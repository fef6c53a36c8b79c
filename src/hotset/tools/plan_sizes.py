"""Sizes of a packed store that a plan needs."""

from __future__ import annotations

from hotset import _core
from hotset.formats.gates import gates_bytes, piece_stride
from hotset.formats.predictors import Predictors
from hotset.formats.sketch import Sketch
from hotset.formats.store import Store
from hotset.models import Model, least_gate
from hotset.planner.sizes import NeuronSizes
from hotset.quant import packed_bytes

_ROW_BLOCK = 16  # rows that lie together, native/quant/format.h
_READS = 64  # in flight, EmbeddingFile::kBatch


def neuron_sizes(
    store: Store, model: Model, trained: Predictors | None, sketch: Sketch | None = None, gates: bool = False
) -> NeuronSizes:
    """trained, sketch: predictors that may be used; None: none. gates: whether there is a copy of the gates."""
    info = store.neurons
    assert info is not None
    predicts = least_gate(model, store.entries) is not None
    alignment = _core.direct_alignment(info.path)
    before_gate = info.layout.vector_bytes * info.layout.roles.index("gate") if info.gated else info.stride
    return NeuronSizes(
        layers=info.layers,
        ffn=info.ffn,
        hidden=info.hidden,
        gated=info.gated,
        vector_bytes=info.layout.vector_bytes,
        stride=info.stride,
        gate_bytes=info.layers * packed_bytes(info.fmt, info.ffn, info.hidden) if predicts else 0,
        read_gate_bytes=gates_bytes(info) if predicts and gates else 0,
        gate_piece=piece_stride(info) if predicts and gates else 0,
        low_rank_bytes=trained.bytes if trained else 0,
        sketch_bytes=sketch.bytes if sketch else 0,
        sketch_read=sketch.bytes_read if sketch else 0,
        low_rank_ahead=trained.ahead if trained else False,
        stride_without_gate=min(info.stride, -(-before_gate // max(alignment, 64)) * max(alignment, 64)),
    )


def resident_bytes(store: Store) -> int:
    """Of all weights but the neurons; they stay in memory."""
    return sum(e.bytes for e in store.entries.values() if store.neurons is None or e.path != store.neurons.path)


def embedding_bytes(store: Store, model: Model) -> int:
    """Of an embedding of which a token reads one row; 0 where it is the head, too."""
    entries = [
        store.entries[spec.name] for spec in model.tensors if spec.role == "embed" and spec.name in store.entries
    ]
    return sum(entry.bytes for entry in entries) if _has_head(store, model) else 0


def embedding_buffers(store: Store, model: Model) -> int:
    """What reading its rows from the drive takes: native/model/embedding_file.cc."""
    entry = next(store.entries[spec.name] for spec in model.tensors if spec.role == "embed")
    block = entry.bytes // -(-entry.rows // _ROW_BLOCK)
    return _READS * (block + 2 * max(_core.direct_alignment(str(entry.path)), 1)) if _has_head(store, model) else 0


def _has_head(store: Store, model: Model) -> bool:
    return any(spec.role == "head" and spec.name in store.entries for spec in model.tensors)


def read_per_token(store: Store, model: Model) -> int:
    """Bytes of weights outside the FFNs that a token reads: all but the embeddings, unless they are the head."""
    unread = {
        spec.name
        for spec in model.tensors
        if spec.role == "position" or (spec.role == "embed" and _has_head(store, model))
    }
    return resident_bytes(store) - sum(store.entries[name].bytes for name in unread if name in store.entries)
