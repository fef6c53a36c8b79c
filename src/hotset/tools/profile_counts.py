"""Counts what neurons do, window of text after window, in bounded memory. Pure functions of recorded bits.

Bits are U8 [rows, layers, ceil(ffn / 8)] as `_core.Engine.take_record` gives them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotset.formats.profile import BATCHES, REUSE_WINDOWS

Bits = NDArray[np.uint8]
Counts = NDArray[np.int64]
CONSECUTIVE, INDEPENDENT = 0, 1
_ONES = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)


class Counter:
    """Everything a profile needs of the windows counted so far.

    Args:
        tokens: that will be counted in all; they say which ones go into the sample.
        sample: tokens kept for neighbours, spread over the text.
        trace: consecutive tokens kept for replays, from the first window on.
    """

    def __init__(self, layers: int, ffn: int, tokens: int, sample: int, trace: int) -> None:
        self.layers, self.ffn = layers, ffn
        self.tokens = 0  # counted
        self.whole = True  # False while a window is counted: Ctrl-C may come in the middle of it
        self.counts = np.zeros((2, len(BATCHES), layers, ffn), np.int64)
        self.steps = np.zeros((2, len(BATCHES)), np.int64)
        self.reused = np.zeros((layers, len(REUSE_WINDOWS)), np.int64)
        self.reusable = np.zeros((layers, len(REUSE_WINDOWS)), np.int64)
        row = (layers, -(-ffn // 8))
        self._apart = max(1, tokens // max(sample, 1))  # tokens between two of the sample
        self.sample = np.zeros((min(sample, -(-tokens // self._apart)), *row), np.uint8)
        self.trace = np.zeros((min(trace, tokens), *row), np.uint8)

    def add(self, bits: Bits) -> None:
        """Counts the rows of one window, which are consecutive tokens."""
        self.whole = False
        self._keep(bits)
        for layer in range(self.layers):
            of_layer = np.ascontiguousarray(bits[:, layer])
            self._count(of_layer, layer)
            self._count_reuse(of_layer, layer)
        for place, batch in enumerate(BATCHES):
            self.steps[:, place] += len(bits) // batch
        self.tokens += len(bits)
        self.whole = True

    def state(self) -> dict[str, Any]:
        """Arrays to go on from, see `restore`."""
        arrays = {name: getattr(self, name) for name in _STATE}
        return arrays | {"tokens": np.array(self.tokens)}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Takes over what an equal counter had counted. Raises ValueError or KeyError if it was another."""
        for name in _STATE:
            mine, saved = getattr(self, name), state[name]
            if (saved.shape, saved.dtype) != (mine.shape, mine.dtype):
                raise ValueError(name)
        for name in _STATE:
            setattr(self, name, state[name])
        self.tokens = int(state["tokens"])

    def _keep(self, bits: Bits) -> None:
        room = self.trace[self.tokens : self.tokens + len(bits)]
        room[:] = bits[: len(room)]
        first = -self.tokens % self._apart
        chosen = bits[first :: self._apart]
        at = (self.tokens + first) // self._apart
        kept = self.sample[at : at + len(chosen)]
        kept[:] = chosen[: len(kept)]

    def _count(self, bits: Bits, layer: int) -> None:
        width = bits.shape[1]
        for place, batch in enumerate(BATCHES):
            steps = len(bits) // batch
            used = bits[: steps * batch]
            consecutive = np.bitwise_or.reduce(used.reshape(steps, batch, width), axis=1)
            self.counts[CONSECUTIVE, place, layer] += column_sums(consecutive, self.ffn)
            apart = np.bitwise_or.reduce(used.reshape(batch, steps, width), axis=0)  # tokens `steps` apart
            self.counts[INDEPENDENT, place, layer] += column_sums(apart, self.ffn)

    def _count_reuse(self, bits: Bits, layer: int) -> None:
        for place, (window, seen) in enumerate(zip(REUSE_WINDOWS, recent(bits), strict=True)):
            later = bits[window:]
            self.reusable[layer, place] += ones(later)
            self.reused[layer, place] += ones(later & seen)


_STATE = ("counts", "steps", "reused", "reusable", "sample", "trace")


def column_sums(bits: Bits, ffn: int) -> Counts:
    """[rows, ceil(ffn / 8)] -> in how many rows each bit is set, [ffn]."""
    total = np.zeros(ffn, np.int64)
    for start in range(0, len(bits), 255):  # what a byte can count
        rows = np.unpackbits(bits[start : start + 255], axis=1, count=ffn, bitorder="little")
        total += rows.sum(axis=0, dtype=np.uint8)
    return total


def ones(bits: Bits) -> int:
    """How many bits are set."""
    return int(_ONES[bits].sum(dtype=np.int64))


def recent(bits: Bits) -> Iterator[Bits]:
    """For each window w of REUSE_WINDOWS, what any of the w rows before was: rows w, w + 1, … -> [rows - w, bytes]."""
    for window in REUSE_WINDOWS:
        rows = max(len(bits) - window, 0)
        seen = np.zeros((rows, bits.shape[1]), np.uint8)
        for back in range(window):
            seen |= bits[back : back + rows]
        yield seen
