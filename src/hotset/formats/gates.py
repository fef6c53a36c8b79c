"""`gates.safetensors` of a packed store: a copy of all gates, side by side, to be read in order for every token.

Tensors of layer i: `hotset.layers.{i}.gates`, the gate vectors of its neurons in the store's order, in pieces of 512
that begin at multiples of `stride`; `….gates.crc32c`, u32 [ceil(ffn / 16)], checksums of 16 vectors each; and
`….rest.crc32c`, u32 [ffn], those of the bundles as far as their gates. Each starts at a multiple of 4 KiB. The
metadata's `gates` says what they were made for, and `crc32c` has the checksums (hotset.formats.checksums).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hotset.errors import FormatError, UsageError
from hotset.formats.checksums import SUMS, reserved, sealed, verify
from hotset.formats.files import Json, parse_json, read_at
from hotset.formats.neurons import NeuronInfo
from hotset.formats.predictors import order_crc32c
from hotset.formats.safetensors import Header, read_header
from hotset.formats.store import ALIGNMENT

GATES_FILE = "gates.safetensors"
PIECE, CHECKED = 512, 16  # neurons in a piece, and under one checksum: native/pipeline/gate_stream.h
AGAIN = "make it again with `hotset pack STORE --gates copy`"
_PARTS = ("gates", "gates.crc32c", "rest.crc32c")
Bytes = NDArray[np.uint8]
Sums = NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class GateLayer:
    """vectors: [ffn, vector_bytes]; sums: [ceil(ffn / 16)]; rest: [ffn]."""

    vectors: Bytes
    sums: Sums
    rest: Sums


@dataclass(frozen=True, slots=True)
class Gates:
    path: Path
    stride: int  # bytes from one piece to the next
    offsets: tuple[int, ...]  # by layer, of the vectors
    bytes: int  # of the vectors with their padding, all layers: what a token reads
    _sums: tuple[tuple[int, int], ...]  # by layer: offsets of both kinds of checksums
    _ffn: int

    def read_sums(self, layer: int) -> tuple[Sums, Sums]:
        """[ceil(ffn / 16)] of the vectors, and [ffn] of the bundles without their gates."""
        gates, rest = self._sums[layer]
        return self._read(gates, -(-self._ffn // CHECKED)), self._read(rest, self._ffn)

    def _read(self, offset: int, count: int) -> Sums:
        return np.frombuffer(read_at(self.path, offset, 4 * count), "<u4")


def piece_stride(neurons: NeuronInfo) -> int:
    """Bytes of a piece of a layer's gates, with its padding."""
    return _padded(min(PIECE, neurons.ffn) * neurons.layout.vector_bytes)


def gates_bytes(neurons: NeuronInfo) -> int:
    """Of all gates with their padding."""
    return neurons.layers * -(-neurons.ffn // PIECE) * piece_stride(neurons)


def read_gates(folder: Path, neurons: NeuronInfo) -> Gates | None:
    """The gates beside a packed store; None if it has no copy of them. The vectors are not read.

    Raises: UsageError if they are of another order of neurons; FormatError, StorageError.
    """
    path = folder / GATES_FILE
    if not path.exists():
        return None
    header = read_header(path)
    verify(path, header, AGAIN, lambda name: not name.endswith(".gates"))
    wanted, got = _about(neurons), parse_json(header.metadata.get("gates", "").encode(errors="replace"), f"{path}")
    if got != wanted:
        if got.keys() == wanted.keys() and got["order_crc32c"] != wanted["order_crc32c"]:
            raise UsageError(f"{path} was made for another order of neurons; {AGAIN}, or remove it")
        raise FormatError(f"{path}: metadata 'gates' is {got!s:.200}, wanted {wanted}; {AGAIN}")
    offsets = [[_offset(path, header, neurons, layer, part) for part in _PARTS] for layer in range(neurons.layers)]
    return Gates(
        path,
        piece_stride(neurons),
        tuple(gates for gates, _, _ in offsets),
        gates_bytes(neurons),
        tuple((sums, rest) for _, sums, rest in offsets),
        neurons.ffn,
    )


def verify_gates(folder: Path) -> None:
    """Reads all of the gates beside a store, if there are any. Raises StorageError where a checksum is not met."""
    if (path := folder / GATES_FILE).exists():
        verify(path, read_header(path), AGAIN)


def write_gates(folder: Path, neurons: NeuronInfo, layers: Iterable[GateLayer]) -> Path:
    """Writes them beside a packed store, whole or not at all. Raises StorageError."""
    path = folder / GATES_FILE
    with sealed(path) as file:
        file.write(_header(neurons))
        for layer in layers:
            for first in range(0, neurons.ffn, PIECE):
                file.write(_filled(layer.vectors[first : first + PIECE].tobytes(), piece_stride(neurons)))
            for sums in (layer.sums, layer.rest):
                file.write(_filled(sums.astype("<u4").tobytes(), _padded(sums.nbytes)))
    return path


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _filled(data: bytes, size: int) -> bytes:
    return data + bytes(size - len(data))


def _about(neurons: NeuronInfo) -> Json:
    return {
        "format": neurons.fmt,
        "hidden": neurons.hidden,
        "ffn": neurons.ffn,
        "piece": PIECE,
        "checked": CHECKED,
        "stride": piece_stride(neurons),
        "order_crc32c": order_crc32c(neurons),
    }


def _bytes(neurons: NeuronInfo, part: str) -> int:
    if part == "gates":
        return gates_bytes(neurons) // neurons.layers
    return _padded(4 * (neurons.ffn if part == "rest.crc32c" else -(-neurons.ffn // CHECKED)))


def _name(layer: int, part: str) -> str:
    return f"hotset.layers.{layer}.{part}"


def _header(neurons: NeuronInfo) -> bytes:
    described: Json = {"__metadata__": {}}
    at = 0
    for layer in range(neurons.layers):
        for part in _PARTS:
            size = _bytes(neurons, part)
            described[_name(layer, part)] = {"dtype": "U8", "shape": [size], "data_offsets": [at, at + size]}
            at += size
    names = ["gates", *(name for name in described if name != "__metadata__")]
    described["__metadata__"] = {"gates": json.dumps(_about(neurons)), SUMS: reserved(names)}
    text = json.dumps(described, separators=(",", ":")).encode()
    padded = _padded(8 + len(text))
    return (padded - 8).to_bytes(8, "little") + text.ljust(padded - 8)


def _offset(path: Path, header: Header, neurons: NeuronInfo, layer: int, part: str) -> int:
    entry = header.entries.get(_name(layer, part))
    if entry is None or entry.bytes != _bytes(neurons, part):
        raise FormatError(f"{path} lacks the {part} of layer {layer}, or has too little of it; {AGAIN}")
    return entry.offset
