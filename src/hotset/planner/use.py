"""How often neurons are used, from a profile: which are hottest, and what a cache of the others lacks.

Pure functions. Neurons are in the order of the store, whose first ones are the only ones that can be hot.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from hotset.planner.together import Pairs

Floats = NDArray[np.float64]

_BLOCK = 64  # neurons whose mean stands for them where the order is not strictly by frequency
_GROUPS = 256  # of neurons of like frequency: borders between hot and cold are tried where they meet
_LONGEST = 1 << 16  # tokens; no cache holds what so many use unless it holds everything
_LEAST = 1e-6  # of a frequency that is taken as possible
_HALVINGS = 40  # of an interval of 12 standard deviations


@dataclass(frozen=True, slots=True)
class Finds:
    """What a predictor makes of the active neurons; shares of all neurons.

    repeats: misses of a cache to those that sets of this size with the reuse of active neurons would have.
    by_layer: the first two of each layer, where that is known; else a layer has as many as it has active ones.
    """

    computed: float  # if all are in memory
    wanted: float  # read if none is in memory
    repeats: float = 1.0
    by_layer: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Reach:
    """Which missing neurons are one request of the drive; counts of neurons in store order."""

    together: int = 1  # most from the first to the last
    gap: int = 0  # most between two, which are read, too

    def requests(self, missed: Floats, lifts: Floats | None = None) -> tuple[Floats, Floats]:
        """(requests, neurons read) for each missed one, where so large a share is missed.

        missed: [groups]. lifts: [distances, groups] how much likelier a neuron is missed that lies 1, 2, … after a
        missed one, as those further on, too; None: independently.
        """
        between = np.arange(self.gap + 1)[:, None]
        also = missed + 0.0 * between
        if lifts is not None:
            also = np.minimum(also * lifts[np.minimum(between[:, 0], len(lifts) - 1)], 1.0)
        none_before = np.cumprod(np.concatenate([np.ones_like(also[:1]), 1 - also[:-1]]), axis=0)
        next_after = also * none_before  # chance that so many lie between this one and the next
        joins, gaps = next_after.sum(axis=0), (between * next_after).sum(axis=0)
        # Runs of a geometric number of neurons, cut into pieces of at most `together`; what lies at a cut is not read.
        cut = np.maximum(self.together / (1 + gaps), 1.0)
        pieces = np.divide(1 - joins, 1 - joins**cut, out=1 / cut, where=joins < 1 - _LEAST)
        span = 1 + gaps * np.divide(1 - pieces, joins, out=np.zeros_like(joins), where=joins > 0)
        return pieces, span


_ALONE = Reach()


@dataclass(frozen=True, slots=True)
class Cold:
    """Neurons of a step beyond a border that are not in memory, all layers together."""

    missed: float = 0.0  # wanted and read
    skipped: float = 0.0  # neither read nor computed, though they would be computed if they were in memory
    requests: float = 0.0  # of the drive
    read: float = 0.0  # neurons that these read, with what lies between


@dataclass(frozen=True, slots=True)
class NeuronUse:
    """What a plan needs to know of a model's activations. A step is one token, or one of each sequence."""

    hot: NDArray[np.int64]  # [borders, layers]: the hottest neurons of each layer, border by border more
    sizes: NDArray[np.int64]  # [borders - 1] neurons between two borders
    computed: Floats  # [borders - 1] share of them that a step computes if all are in memory
    held: Floats  # [n, borders]: cold slots that LRU fills beyond a border, ascending from 0
    missed: Floats  # [n, borders - 1]: share of the neurons between two borders that a step then misses
    skipped: Floats  # [n, borders - 1]: and that it leaves out
    repeats: float
    lifts: Floats | None  # [distances, borders - 1]: see Pairs.lifts
    layers: Floats  # [2, layers]: neurons computed, and wanted, to those that the shares above give

    @property
    def borders(self) -> int:
        return len(self.hot)

    def border(self, neurons: int) -> int:
        """The last border with at most so many hot neurons."""
        return int(np.searchsorted(self.hot.sum(axis=1), neurons, side="right")) - 1

    def wanted(self, border: int) -> float:
        """Neurons of a step beyond a border that would be read if none were in memory."""
        return float(self.missed[0, border:] @ self.sizes[border:])

    def least_slots(self, border: int) -> float:
        """Fewer are overwritten by one step before they are used again, so that they never hit."""
        return float(self.held[1, border])

    def cold(self, border: int, slots: int, reach: Reach = _ALONE) -> Cold:
        """Under LRU with `slots` for all neurons beyond a border."""
        missed, skipped = (shares[border:] for shares in self._at(border, slots))
        sizes = self.sizes[border:]
        requests, span = reach.requests(missed, None if self.lifts is None else self.lifts[:, border:])
        counts = missed * sizes
        return Cold(float(counts.sum()), float(skipped @ sizes), float(requests @ counts), float(span @ counts))

    def in_use(self, hot: NDArray[np.int64], slots: int) -> Floats:
        """[layers]: neurons of a step beyond the hot ones [layers] that are read or in cold slots."""
        beyond = np.diff(np.maximum(self.hot, hot), axis=0)
        border = self.border(int(hot.sum()))
        if slots < self.least_slots(border):
            found = self.layers[1] * (self.missed[0] @ beyond)
        else:
            found = self.layers[0] * ((self.computed - self._at(border, slots)[1]) @ beyond)
        used: Floats = np.minimum(found, self.hot[-1] - hot)
        return used

    def _at(self, border: int, slots: int) -> tuple[Floats, Floats]:
        """(missed, skipped) shares of the neurons between any two borders, where those beyond one share the slots."""
        held, missed, skipped = self.held[:, border], self.missed, self.skipped
        if slots < self.least_slots(border):
            return missed[0], skipped[0]
        if slots >= held[-1]:
            return np.zeros_like(missed[0]), np.zeros_like(skipped[0])
        at = float(np.interp(slots, held, np.arange(len(held))))
        low, share = int(at), at - int(at)
        between = (1 - share) * missed[low] + share * missed[low + 1]
        return self.repeats * between, (1 - share) * skipped[low] + share * skipped[low + 1]


def neuron_use(
    shares: NDArray[np.float32], finds: Finds | None = None, near: Pairs | None = None, parallel: int = 1
) -> NeuronUse:
    """Digests a profile.

    shares: [n, layers, ffn]; shares[i]: in which share of the runs of i + 1 consecutive tokens a neuron is active at
        least once, n >= 2.
    finds: what is computed and read; None: exactly the active neurons.
    near: which neurons are active together with those after them; None: that is chance.
    parallel: sequences that a step computes a token of each of. They are taken to be of unrelated texts.
    """
    _, layers, ffn = shares.shape
    order = _hottest_first(shares[0])
    edges = np.unique(np.linspace(0, order.size, _GROUPS + 1).astype(np.int64))
    layer_of = order // ffn
    hot = np.zeros((len(edges), layers), np.int64)
    for i in range(1, len(edges)):
        hot[i] = hot[i - 1] + np.bincount(layer_of[edges[i - 1] : edges[i]], minlength=layers)
    sums = np.array([np.add.reduceat(s.ravel()[order], edges[:-1], dtype=np.float64) for s in shares])
    sizes = np.diff(edges)
    windows, grown = _longer(sums, sizes)
    active = grown / sizes
    computed, wanted = (active if finds is None else _shifted(active, sizes, s) for s in _both(finds))
    of_layers = _of_layers(finds, ffn, np.array([computed[0], wanted[0]]) @ np.diff(hot, axis=0))
    computed, wanted = (used_by_any(share, parallel) for share in (computed, wanted))
    held, missed, skipped = _cached(windows, computed, wanted)
    beyond = np.concatenate([np.cumsum((held * sizes)[:, ::-1], axis=1)[:, ::-1], np.zeros((len(held), 1))], axis=1)
    lifts = None if near is None else near.lifts(order, edges[:-1])
    held = np.maximum.accumulate(beyond)
    repeats = finds.repeats if finds else 1.0
    return NeuronUse(hot, sizes, computed[0], held, missed, skipped, repeats, lifts, of_layers)


def used_by_any(shares: Floats, sequences: int) -> Floats:
    """In which share of the steps at least one of so many independent sequences uses what one uses in `shares`."""
    return shares if sequences == 1 else 1 - (1 - shares) ** sequences


def _of_layers(finds: Finds | None, ffn: int, expected: Floats) -> Floats:
    """[2, layers]: neurons that a predictor has computed and read, to those expected."""
    if finds is None or not finds.by_layer:
        return np.ones_like(expected)
    known: Floats = ffn * np.array(finds.by_layer).T
    return known / np.maximum(expected, 1e-3 * ffn)


def _both(finds: Finds | None) -> tuple[float, float]:
    return (0.0, 0.0) if finds is None else (finds.computed, finds.wanted)


def _cached(windows: Floats, computed: Floats, wanted: Floats) -> tuple[Floats, Floats, Floats]:
    """(held, missed, skipped) [n + 1, groups]: shares of neurons that LRU holds, that a step reads and leaves out.

    computed, wanted: [n, groups] shares used in any of `windows` [n] steps. Row 0: nothing is kept; row i: LRU keeps
    what the last windows[i - 1] steps computed.
    A neuron leaves the cache when it was not computed for so many steps, and comes when it is wanted: a chain of two
    states. Where both are the same it gives what Denning and Schwartz found (CACM 15(3), 1972): LRU holds the working
    set of the window, and misses what one more step adds to it.
    """
    more, wanted_more = _slopes(windows, computed), _slopes(windows, wanted)
    leaves = more / np.maximum(computed, _LEAST)
    comes = wanted_more / np.maximum(1 - wanted, _LEAST)
    moves = leaves + comes > _LEAST**2
    held = np.divide(comes, leaves + comes, out=computed.copy(), where=moves)
    missed = (1 - held) * comes
    skipped = (1 - held) * np.maximum(computed[0] - wanted[0], 0)
    return (
        np.concatenate([np.zeros_like(held[:1]), held]),
        np.concatenate([wanted[:1], missed]),
        np.concatenate([np.maximum(computed[:1] - wanted[:1], 0), skipped]),
    )


def _slopes(windows: Floats, unions: Floats) -> Floats:
    """What one more step adds to the union of so many; [n, groups]. Nothing after the last."""
    between = np.diff(unions, axis=0) / np.diff(windows)[:, None]
    slopes: Floats = np.maximum(np.concatenate([between, np.zeros_like(between[:1])]), 0)
    return slopes


def _shifted(active: Floats, sizes: NDArray[np.int64], share: float) -> Floats:
    """The same [n, groups] for neurons chosen by another threshold, so that `share` of all is.

    A neuron's input is taken as normally distributed over tokens, so that another threshold moves all frequencies
    alike on the scale of the normal distribution; and neurons used equally often as being used again equally soon.
    """
    normal = NormalDist()
    scores = np.array([normal.inv_cdf(min(max(p, _LEAST), 1 - _LEAST)) for p in active[0]])
    low, high = -6.0, 6.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        often = np.array([normal.cdf(score + middle) for score in scores])
        low, high = (middle, high) if often @ sizes < share * sizes.sum() else (low, middle)
    rising = np.argsort(active[0], kind="stable")
    known = np.maximum(active[0][rising], _LEAST)
    growth = np.array([np.interp(often, known, union[rising] / known) for union in active])
    unions: Floats = np.maximum.accumulate(np.minimum(growth * often, 1))
    return unions


def _hottest_first(share: NDArray[np.float32]) -> NDArray[np.int64]:
    """Flat indices of all neurons so that any beginning of them is a beginning of each layer, hottest first.

    share: [layers, ffn]. In a store that is not in order of frequency the beginning of a layer may not be its hottest.
    """
    layers, ffn = share.shape
    padded = np.pad(share, ((0, 0), (0, -ffn % _BLOCK)), mode="edge")
    means = padded.reshape(layers, -1, _BLOCK).mean(axis=2)
    falling = np.minimum.accumulate(means, axis=1).repeat(_BLOCK, axis=1)[:, :ffn]
    sorted_already = (np.diff(share, axis=1) <= 0).all(axis=1)
    falling[sorted_already] = share[sorted_already]
    return np.argsort(-falling, axis=None, kind="stable")


def _longer(sums: Floats, sizes: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Unions of more tokens than were counted: (windows [m], neurons used in each group [m, groups]).

    sums: [n, groups] neurons used by 1 to n tokens; sizes: neurons of each group. What is idle after n tokens stays
    idle for another one as often as it did for the last: correlation between tokens has faded by then, and neurons
    that differ in frequency are in different groups.
    """
    n = len(sums)
    idle = np.maximum(1 - sums / sizes, 0.0)
    stays = np.divide(idle[-1], idle[-2], out=np.zeros_like(idle[-1]), where=idle[-2] > 0).clip(0, 1)
    further = np.unique(np.geomspace(n + 1, _LONGEST, 64).astype(np.int64))
    tail = sizes * (1 - idle[-1] * stays ** (further[:, None] - n))
    return np.concatenate([np.arange(1.0, n + 1), further]), np.concatenate([sums, tail])
