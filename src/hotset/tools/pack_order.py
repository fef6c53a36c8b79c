"""In which order a layer's neurons lie on the drive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotset.errors import FormatError, UsageError
from hotset.formats.files import quoted, read_at
from hotset.formats.neurons import ORDERS
from hotset.formats.safetensors import read_header

PROFILE = "profile.safetensors"
COUNTS, NEIGHBOURS = "counts.1", "neighbours"
BANDS = 16  # of falling frequency, inside which neighbours may change places
_DTYPES = {"I64": "<i8", "I32": "<i4"}
Order = NDArray[np.int32]


def check_order(kind: str, folder: Path) -> None:
    """Raises UsageError if there is no such order, or no profile where it needs one."""
    if kind not in ORDERS:
        raise UsageError(f"unknown order {kind[:40]!r}; there are auto, {', '.join(ORDERS)}")
    if kind != "none" and not (folder / PROFILE).is_file():
        raise UsageError(
            f"order {kind} needs {folder / PROFILE}; make it with `hotset profile {folder}`, or use --order none"
        )


def neuron_orders(kind: str, folder: Path, layers: int, ffn: int) -> list[Order]:
    """For each layer the model's own indices of the neurons [ffn] in the order in which to store them.

    Args:
        kind: "none" (as in the model), "frequency" (most often active first, by the profile's counts.1, ties by index)
            or "coactivation" (the same, but neurons of like frequency beside those they are active together with).
        folder: the store, with profile.safetensors where the order needs it.
    Raises: UsageError (see check_order; a profile without what the order needs), FormatError.
    """
    check_order(kind, folder)
    if kind == "none":
        return [np.arange(ffn, dtype=np.int32)] * layers
    path = folder / PROFILE
    counts = _read(path, COUNTS, (layers, ffn))
    if counts.min() < 0:
        raise FormatError(f"{path}: {COUNTS} holds {counts.min()}, which is no count; profile the model again")
    by_frequency = [np.argsort(-row, kind="stable").astype(np.int32) for row in counts]
    if kind == "frequency":
        return by_frequency
    neighbours = _read(path, NEIGHBOURS, (layers, ffn, None))
    if neighbours.size and not (neighbours.min() >= 0 and neighbours.max() < ffn):
        raise FormatError(f"{path}: {NEIGHBOURS} names neurons beyond the {ffn} of a layer; profile the model again")
    return [chained(order, near) for order, near in zip(by_frequency, neighbours, strict=True)]


def chained(order: Order, neighbours: NDArray[np.integer]) -> Order:
    """Chains each band of the order: after a neuron comes its nearest neighbour of the band that is not placed yet.

    Args:
        order: neurons, most frequent first, [ffn].
        neighbours: [ffn, k], of each neuron those most often active together with it, nearest first.
    Returns: [ffn]; each band holds the neurons it held, so the first n are still the most frequent n, but for a band.
    """
    return np.concatenate([_chain(band, neighbours) for band in np.array_split(order, min(BANDS, len(order)))])


def _chain(band: Order, neighbours: NDArray[np.integer]) -> Order:
    left = dict.fromkeys(band.tolist())  # in order of frequency
    chain: list[int] = []
    while left:
        near = (n for n in neighbours[chain[-1]].tolist() if n in left) if chain else iter(())
        chain.append(next(near, next(iter(left))))
        del left[chain[-1]]
    return np.array(chain, np.int32)


def _read(path: Path, name: str, shape: tuple[int | None, ...]) -> NDArray[Any]:
    """A tensor of the profile. Raises UsageError if it is not there, FormatError if its shape is another model's."""
    entry = read_header(path).entries.get(name)
    if entry is None:
        raise UsageError(f"{path} has no tensor {quoted(name)}, which this order needs; profile the model again")
    fits = len(entry.shape) == len(shape) and all(n in (None, m) for n, m in zip(shape, entry.shape, strict=True))
    if entry.dtype not in _DTYPES or not fits:
        wanted = ["k" if n is None else n for n in shape]
        raise FormatError(
            f"{path}: {quoted(name)} is {entry.dtype} {list(entry.shape)}, wanted whole numbers {wanted}; it is the "
            "profile of another model: profile this one"
        )
    return np.frombuffer(read_at(path, entry.offset, entry.bytes), _DTYPES[entry.dtype]).reshape(entry.shape)
