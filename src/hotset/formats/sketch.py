"""`sketch.safetensors` of a packed store: low-bit copies of gate and up that tell what neurons contribute.

Tensors of layer i: `hotset.layers.{i}.sketch.gate` (not in a plain FFN) and `….up`, as native/quant/sketch.h has them,
and `….vectors`, f32 [6, ffn]: what is to be added to gate and up, the length of each neuron's column of `down`, the
standard deviations of what gate and up are wrong by, and what up's activation is taken to be at most; all in the
store's order of neurons. Each tensor starts at a multiple of 4 KiB. The metadata's `sketch` has the rest, and `crc32c`
the checksums (hotset.formats.checksums).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotset.errors import FormatError, UsageError
from hotset.formats.checksums import SUMS, reserved, sealed, verify
from hotset.formats.files import Json, is_count, parse_json
from hotset.formats.neurons import NeuronInfo
from hotset.formats.predictors import order_crc32c
from hotset.formats.safetensors import Header, read_header
from hotset.formats.store import ALIGNMENT

SKETCH_FILE = "sketch.safetensors"
BITS = (2, 3)
_AGAIN = "make it again with `hotset sketch`"
SHARES = tuple(i / 20 for i in range(1, 20))
Part = tuple[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class SketchFacts:
    """What is said of a sketch besides its tensors."""

    bits: int
    keep: tuple[float, ...]  # [layers] least score of a neuron in memory to be computed
    fetch: tuple[float, ...]  # [layers], >= keep: the same of a missing one
    quantiles: tuple[tuple[float, ...], ...]  # [layers][19] scores below which 5, 10, … 95 % of the neurons are
    candidates: float  # share of neurons computed
    wanted: float  # share that would be read if none were in memory
    perplexity_change: float  # relative, expected on text like that held out
    up_share: float  # share of the neurons whose gate leaves it open whether they are computed, so that up is looked at

    def limits(self, zeros: float) -> tuple[float, ...]:
        """[layers]: least scores that leave out about this share of every layer's neurons."""
        return tuple(float(np.interp(zeros, SHARES, scores)) for scores in self.quantiles)


@dataclass(frozen=True, slots=True)
class Sketch:
    path: Path
    facts: SketchFacts
    offsets: tuple[tuple[int, int, int], ...]  # by layer: gate (0: none), up, vectors
    bytes: int  # of all tensors
    bytes_read: int  # of these for a token, on average


def read_sketch(folder: Path, neurons: NeuronInfo) -> Sketch | None:
    """The sketch beside a packed store; None if it has none. Its tensors are not read; verify_sketch does.

    Raises: UsageError if it was made for another order of neurons; FormatError, StorageError.
    """
    path = folder / SKETCH_FILE
    if not path.exists():
        return None
    header = read_header(path)
    verify(path, header, _AGAIN, lambda name: name in header.metadata)
    facts = _facts(path, header, neurons)
    parts = ("gate", "up", "vectors") if neurons.gated else ("up", "vectors")
    offsets = []
    for layer in range(neurons.layers):
        at = {part: _offset(path, header, facts.bits, neurons, layer, part) for part in parts}
        offsets.append((at.get("gate", 0), at["up"], at["vectors"]))
    size = sum(entry.bytes for entry in header.entries.values())
    ups = sum(header.entries[_name(layer, "up")].bytes for layer in range(neurons.layers))
    return Sketch(path, facts, tuple(offsets), size, size - int((1 - facts.up_share) * ups))


def verify_sketch(folder: Path) -> None:
    """Reads all of the sketch beside a store, if there is one. Raises StorageError where a checksum is not met."""
    if (path := folder / SKETCH_FILE).exists():
        verify(path, read_header(path), _AGAIN)


def write_sketch(folder: Path, neurons: NeuronInfo, layers: Iterable[Sequence[Part]], facts: SketchFacts) -> Path:
    """Writes a sketch beside a packed store, whole or not at all.

    layers: of each its parts "gate", "up" (sketches) and "vectors" [6, ffn], made when they are asked for.
    """
    path = folder / SKETCH_FILE
    about = asdict(facts) | {"order_crc32c": order_crc32c(neurons)}
    with sealed(path) as file:
        file.write(_header(neurons, facts.bits, about))
        for parts in layers:
            for _, data in parts:
                file.write(data.tobytes())
                file.write(bytes(-data.nbytes % ALIGNMENT))
    return path


def _bytes(neurons: NeuronInfo, bits: int, part: str) -> int:
    from hotset import _core

    return 24 * neurons.ffn if part == "vectors" else _core.sketch_bytes(bits, neurons.ffn, neurons.hidden)


def _header(neurons: NeuronInfo, bits: int, about: Json) -> bytes:
    described: Json = {"__metadata__": {}}
    at = 0
    for layer in range(neurons.layers):
        for part in ("gate", "up", "vectors") if neurons.gated else ("up", "vectors"):
            size = -(-_bytes(neurons, bits, part) // ALIGNMENT) * ALIGNMENT
            described[_name(layer, part)] = {"dtype": "U8", "shape": [size], "data_offsets": [at, at + size]}
            at += size
    names = ["sketch", *(name for name in described if name != "__metadata__")]
    described["__metadata__"] = {"sketch": json.dumps(about), SUMS: reserved(names)}
    text = json.dumps(described, separators=(",", ":")).encode()
    padded = -(-(8 + len(text)) // ALIGNMENT) * ALIGNMENT
    return (padded - 8).to_bytes(8, "little") + text.ljust(padded - 8)


def _name(layer: int, part: str) -> str:
    return f"hotset.layers.{layer}.sketch.{part}"


def _facts(path: Path, header: Header, neurons: NeuronInfo) -> SketchFacts:
    about = parse_json(header.metadata.get("sketch", "").encode(errors="replace"), f"{path}: metadata 'sketch'")
    names = {*SketchFacts.__dataclass_fields__, "order_crc32c"}
    if about.keys() != names or about["bits"] not in BITS or not is_count(about["order_crc32c"]):
        raise FormatError(f"{path}: metadata 'sketch' must have exactly {', '.join(sorted(names))}; make it again")
    limits, quantiles = [about["keep"], about["fetch"]], about["quantiles"]
    fine = all(_are_numbers(v, neurons.layers) for v in limits) and isinstance(quantiles, list)
    if not fine or len(quantiles) != neurons.layers or not all(_are_numbers(q, len(SHARES)) for q in quantiles):
        raise FormatError(f"{path} must have limits for each of {neurons.layers} layers; make it again")
    if not all(_is_number(about[name]) for name in ("candidates", "wanted", "perplexity_change", "up_share")):
        raise FormatError(f"{path}: what it says of its quality is no number; make it again")
    if not 0 <= about["up_share"] <= 1:
        raise FormatError(f"{path}: up_share is {about['up_share']}, wanted 0 to 1; make it again")
    if about.pop("order_crc32c") != order_crc32c(neurons):
        raise UsageError(f"{path} was made for another order of neurons; make it again, or remove it")
    return SketchFacts(
        about["bits"],
        tuple(about["keep"]),
        tuple(about["fetch"]),
        tuple(map(tuple, quantiles)),
        float(about["candidates"]),
        float(about["wanted"]),
        float(about["perplexity_change"]),
        float(about["up_share"]),
    )


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(float(str(value)))


def _are_numbers(values: object, count: int) -> bool:
    return isinstance(values, list) and len(values) == count and all(map(_is_number, values))


def _offset(path: Path, header: Header, bits: int, neurons: NeuronInfo, layer: int, part: str) -> int:
    entry = header.entries.get(_name(layer, part))
    if entry is None or entry.bytes < _bytes(neurons, bits, part):
        raise FormatError(f"{path} lacks the {part} of layer {layer}, or has too little of it; make it again")
    return entry.offset
