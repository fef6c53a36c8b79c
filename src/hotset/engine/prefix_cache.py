"""Keeps the KV pages of finished sequences, so that the next turn of a chat starts where the last one ended."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotset.engine.backend import Core

# Each entry costs a comparison per new request; conversations at once on one machine are few.
_MOST_ENTRIES = 32
# Shorter beginnings cost more to look after than to compute again.
_LEAST_TOKENS = 8


@dataclass(slots=True, eq=False)
class _Entry:
    handle: int
    tokens: NDArray[np.int32]


class PrefixCache:
    """Entries in order of use; the least recently used goes first when pages are short."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._entries: list[_Entry] = []  # least recently used first

    def __len__(self) -> int:
        return len(self._entries)

    def fork_longest(self, tokens: list[int]) -> tuple[int, int] | None:
        """A native sequence holding the longest known beginning of `tokens`, and its length; the caller owns it.

        Never all of `tokens`: the last one must be computed to get logits.
        """
        wanted = np.asarray(tokens[:-1], np.int32)
        best, length = max(
            ((entry, _common(entry.tokens, wanted)) for entry in self._entries),
            key=lambda found: found[1],
            default=(None, 0),
        )
        if best is None or length < _LEAST_TOKENS:
            return None
        self._entries.remove(best)
        self._entries.append(best)
        handle = self._core.sequence_fork(best.handle)
        self._core.sequence_truncate(handle, length)
        return handle, length

    def keep(self, handle: int, tokens: list[int]) -> None:
        """Takes over a native sequence that holds `tokens`; entries that are beginnings of it are dropped."""
        array = np.asarray(tokens, np.int32)
        if len(array) < _LEAST_TOKENS or any(_common(entry.tokens, array) == len(array) for entry in self._entries):
            self._core.sequence_free(handle)
            return
        for entry in [e for e in self._entries if _common(e.tokens, array) == len(e.tokens)]:
            self._drop(entry)
        self._entries.append(_Entry(handle, array))
        if len(self._entries) > _MOST_ENTRIES:
            self.evict()

    def evict(self) -> bool:
        """Frees the least recently used entry; False if there is none."""
        if not self._entries:
            return False
        self._drop(self._entries[0])
        return True

    def clear(self) -> None:
        while self.evict():
            pass

    def _drop(self, entry: _Entry) -> None:
        self._entries.remove(entry)
        self._core.sequence_free(entry.handle)


def _common(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    """Length of the common beginning."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n
