"""Misses of the neuron cache on a recorded trace, for every policy of the engine and for the best there can be.

`active` is bool [tokens, layers, neurons] throughout, neurons in the order of the store, so the hot ones of a layer are
its first. Hot neurons always hit; cold slots are shared by all layers. Mirrors native/cache, in which a layer looks up
all its neurons before it admits those that are missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hotset.errors import UsageError
from hotset.planner.sizes import POLICIES
from hotset.planner.statistics import belady_misses

Active = NDArray[np.bool_]
Counts = NDArray[np.int64]
Slots = NDArray[np.intp]
_MOST_USES = {"clock": 1, "lfu": 15}
_HAND_ROUNDS = 8  # as native/cache/policy.cc: counters of 4 bits are 0 by then
_CHUNK = 256


class Policy(Protocol):
    """Which cold slots make room. Time advances once per layer of a token; slots touched now are in use."""

    def insert(self, slots: Slots, now: int) -> None: ...
    def touch(self, slots: Slots, now: int) -> None: ...
    def victims(self, count: int, now: int) -> Slots:
        """Slots not in use now that are given up: `count` if there are so many; more where a whole token's go."""


def replay(active: Active, hot: Sequence[int], slots: int, policy: str) -> Counts:
    """Misses of each token in each layer, from an empty cold cache: [tokens, layers].

    Args:
        hot: neurons of each layer that stay in memory, [layers].
        slots: of the cold cache, all layers together.
        policy: "lru", "clock" (one reference bit), "lfu" (4-bit counters, halved as the hand passes) or "window"
            (what the last tokens used, as many tokens as fit).
    Raises: UsageError for an unknown policy.
    """
    tokens, layers, neurons = active.shape
    evict = _make(policy, slots, layers)
    place = np.full(layers * neurons, -1, np.intp)  # slot of each neuron; -1: not in memory
    owner = np.full(slots, -1, np.intp)
    misses = np.zeros((tokens, layers), np.int64)
    used = now = 0  # slots ever given out; fresh ones first
    spare = np.empty(0, np.intp)  # slots given up since
    for token in range(tokens):
        for layer in range(layers):
            now += 1
            wanted = np.flatnonzero(active[token, layer, hot[layer] :]) + (layer * neurons + hot[layer])
            at = place[wanted]
            evict.touch(at[at >= 0], now)
            missing = wanted[at < 0]
            misses[token, layer] = missing.size
            fresh = np.arange(used, min(used + missing.size, slots))
            used += fresh.size
            # Fresh slots are in use before the first victim is looked for.
            evict.insert(fresh, now)
            gone = evict.victims(missing.size - fresh.size - spare.size, now)
            place[owner[gone]] = -1
            spare = np.concatenate([spare, gone])
            taken, spare = np.split(spare, [min(missing.size - fresh.size, spare.size)])
            evict.insert(taken, now)
            given = np.concatenate([fresh, taken])
            owner[given] = missing[: given.size]
            place[owner[given]] = given
    return misses


def replay_belady(active: Active, hot: Sequence[int], slots: int) -> Counts:
    """Fewest misses of each token that any policy can have with these slots, layers together: [tokens].

    Between two tokens every layer is asked once, so what counts is what the cache holds when a token begins.
    """
    cold = np.concatenate([active[:, layer, first:] for layer, first in enumerate(hot)], axis=1)
    return belady_misses(cold, slots)


def replay_window(active: Active, window: int) -> tuple[Counts, Counts]:
    """The policy of LLM in a Flash (arXiv:2312.11514): memory holds what the last `window` tokens used, and no more.

    Returns: misses of each token and neurons held when it begins, [tokens] each; from an empty cache.
    """
    held = np.zeros(len(active), np.int64)
    misses = np.empty(len(active), np.int64)
    for token, wanted in enumerate(active):
        kept = active[max(token - window, 0) : token].any(axis=0)
        held[token] = np.count_nonzero(kept)
        misses[token] = np.count_nonzero(wanted & ~kept)
    return misses, held


def replay_static(active: Active, counts: Counts, slots: int) -> Counts:
    """Misses of each token where the `slots` neurons with the largest counts [layers, neurons] stay: [tokens].

    The placement of PowerInfer (arXiv:2312.12456) for neurons of equal size; ties keep the lower index.
    """
    cold = np.ones(counts.size, bool)
    cold[np.argsort(-counts, axis=None, kind="stable")[:slots]] = False
    misses: Counts = np.count_nonzero(active & cold.reshape(counts.shape), axis=(1, 2))
    return misses


def _make(policy: str, slots: int, layers: int) -> Policy:
    if policy == "lru":
        return _Lru(slots)
    if policy in _MOST_USES:
        return _Clock(slots, _MOST_USES[policy])
    if policy == "window":
        return _Window(slots, layers)
    raise UsageError(f"no cache policy {policy[:40]!r}; there are {', '.join(POLICIES)}")


class _Lru:
    """A log of all touches; an entry that a later one of the same slot has overtaken is skipped."""

    def __init__(self, slots: int) -> None:
        self._log = np.empty(1024, np.intp)
        self._begin = self._end = 0
        self._last = np.full(slots, -1, np.int64)  # where in the log each slot was touched last
        self._time = np.full(slots, -1, np.int64)

    def insert(self, slots: Slots, now: int) -> None:
        end = self._end + slots.size
        if end > self._log.size:
            self._log = np.concatenate([self._log, np.empty(end, np.intp)])
        self._log[self._end : end] = slots
        self._last[slots] = np.arange(self._end, end)
        self._time[slots] = now
        self._end = end

    touch = insert

    def victims(self, count: int, now: int) -> Slots:
        found: list[Slots] = []
        while count > 0 and self._begin < self._end:
            end = min(self._begin + max(count, _CHUNK), self._end)
            slots = self._log[self._begin : end]
            live = np.flatnonzero(self._last[slots] == np.arange(self._begin, end))
            in_use = self._time[slots[live]] == now
            # Entries are in order of time: behind the first slot in use all are.
            free = live[: int(in_use.argmax())] if in_use.any() else live
            chosen = free[:count]
            found.append(slots[chosen])
            count -= chosen.size
            if count == 0:
                self._begin += int(chosen[-1]) + 1
            elif free.size < live.size:
                self._begin += int(live[free.size])
                break
            else:
                self._begin = end
        return np.concatenate([np.empty(0, np.intp), *found])


class _Window:
    """What the oldest token used, and no later one did, goes together."""

    def __init__(self, slots: int, layers: int) -> None:
        self._time = np.zeros(slots, np.int64)  # 0: given up, or not yet used
        self._layers = layers

    def insert(self, slots: Slots, now: int) -> None:
        self._time[slots] = now

    touch = insert

    def victims(self, count: int, now: int) -> Slots:
        found = [np.empty(0, np.intp)]
        while count > 0 and (held := np.flatnonzero((self._time > 0) & (self._time < now))).size:
            tokens = (self._time[held] - 1) // self._layers
            gone = held[tokens == tokens.min()]
            self._time[gone] = 0
            found.append(gone)
            count -= gone.size
        return np.concatenate(found)


class _Clock:
    """A hand that sweeps the slots in a circle and halves their counters until one is 0."""

    def __init__(self, slots: int, most: int) -> None:
        self._uses = np.zeros(slots, np.int64)
        self._time = np.full(slots, -1, np.int64)
        self._most, self._hand = most, 0

    def insert(self, slots: Slots, now: int) -> None:
        self._uses[slots] = 1
        self._time[slots] = now

    def touch(self, slots: Slots, now: int) -> None:
        self._uses[slots] = np.minimum(self._uses[slots] + 1, self._most)
        self._time[slots] = now

    def victims(self, count: int, now: int) -> Slots:
        found: list[Slots] = []
        patience = left = self._uses.size * _HAND_ROUNDS  # slots that the hand passes in vain before it gives up
        while count > 0 and left > 0:
            end = min(self._hand + min(max(count, _CHUNK), left), self._uses.size)
            idle = self._hand + np.flatnonzero(self._time[self._hand : end] != now)
            chosen = idle[self._uses[idle] == 0][:count]
            stop = int(chosen[-1]) + 1 if chosen.size == count else end
            passed = idle[idle < stop]
            self._uses[passed] //= 2
            self._time[chosen] = now  # in use from here on, should the hand come round
            left = patience - (stop - int(chosen[-1]) - 1) if chosen.size else left - (stop - self._hand)
            self._hand = 0 if stop == self._uses.size else stop
            found.append(chosen)
            count -= chosen.size
        return np.concatenate([np.empty(0, np.intp), *found])
