"""A copy of the gates of a packed store's neurons, side by side: what reads them in order for every token needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hotset import _core
from hotset.errors import StorageError, UsageError
from hotset.formats.files import read_at
from hotset.formats.gates import CHECKED, GATES_FILE, PIECE, GateLayer, read_gates, write_gates
from hotset.formats.neurons import NeuronInfo
from hotset.formats.progress import Progress, silent
from hotset.formats.store import Store
from hotset.models import least_gate, resolve


def check_gates(store: Store) -> None:
    """Raises UsageError if the gates of a store's model do not tell which neurons are zero."""
    if least_gate(resolve(store.config), store.entries) is None:
        raise UsageError(
            f"{store.path}: this model's gate does not tell which neurons are zero, so a copy of it saves nothing"
        )


def copy_gates(store: Store, progress: Progress = silent, force: bool = False) -> int:
    """Writes `gates.safetensors` beside a packed store, unless there is one; returns its bytes.

    force: write it in any case.
    Raises: UsageError (see check_gates; a copy for another order of neurons), StorageError (bundles that do not match
        their checksums among others), FormatError.
    """
    assert store.neurons is not None
    check_gates(store)
    if force or read_gates(store.path, store.neurons) is None:
        write_gates(store.path, store.neurons, _layers(store.neurons, progress))
    return (store.path / GATES_FILE).stat().st_size


def _layers(info: NeuronInfo, progress: Progress) -> Iterator[GateLayer]:
    size = info.layout.vector_bytes
    first, last = info.layout.roles.index("gate") * size, info.layout.bytes
    for layer in range(info.layers):
        progress(layer * info.ffn * size, info.layers * info.ffn * size, "gates")
        vectors, rest = np.empty((info.ffn, size), np.uint8), np.empty(info.ffn, np.uint32)
        wanted = info.read_crc32c(layer)
        for begin in range(0, info.ffn, PIECE):
            count = min(PIECE, info.ffn - begin)
            data = read_at(Path(info.path), info.offsets[layer] + begin * info.stride, count * info.stride)
            bundles = np.frombuffer(data, np.uint8).reshape(count, info.stride)
            for i, bundle in enumerate(bundles, begin):
                if (got := _core.crc32c(bundle[:last])) != wanted[i]:
                    raise StorageError(
                        f"{info.path}: neuron {i} of layer {layer} has checksum {got}, wanted {wanted[i]}; the file is "
                        "damaged: copy it again or pack again"
                    )
                rest[i] = _core.crc32c(bundle[:first])
            vectors[begin : begin + count] = bundles[:, first:last]
        sums = [_core.crc32c(vectors[i : i + CHECKED].reshape(-1)) for i in range(0, info.ffn, CHECKED)]
        yield GateLayer(vectors, np.array(sums, np.uint32), rest)
    progress(info.layers * info.ffn * size, info.layers * info.ffn * size, "gates")
