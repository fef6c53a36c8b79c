"""Neurons of which some are active together, and their profile, counted as `hotset profile` counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hotset.formats.profile import SAMPLE, Profile, fingerprint
from hotset.formats.store import Store
from hotset.tools.profile_counts import Counter
from hotset.tools.profile_neighbours import neighbours

Active = NDArray[np.bool_]
WINDOW = 500


def activity(tokens: int, layers: int, ffn: int, together: float, seed: int = 0) -> Active:
    """[tokens, layers, ffn], each token like the one before.

    together: correlation of the inputs of four neurons, anywhere in a layer, which are equally frequent, too.
    """
    rng = np.random.default_rng(seed)
    group = np.stack([rng.permutation(ffn) // 4 for _ in range(layers)])
    frequent = np.take_along_axis(rng.normal(-1.3, 0.7, (layers, ffn)), group, axis=1)
    shared, own = np.zeros((layers, ffn)), np.zeros((layers, ffn))
    found = np.empty((tokens, layers, ffn), np.bool_)
    for token in range(tokens):
        new = np.take_along_axis(rng.standard_normal((layers, ffn)), group, axis=1)
        shared = 0.6 * shared + 0.8 * new
        own = 0.6 * own + 0.8 * rng.standard_normal((layers, ffn))
        found[token] = np.sqrt(together) * shared + np.sqrt(1 - together) * own + frequent > 0
    return found


def profile_of_activity(store: Store | None, active: Active) -> Profile:
    tokens, layers, ffn = active.shape
    counter = Counter(layers, ffn, tokens, sample=SAMPLE, trace=512)
    bits = np.packbits(active, axis=2, bitorder="little")
    for first in range(0, tokens, WINDOW):
        counter.add(bits[first : first + WINDOW])
    sample = np.unpackbits(counter.sample, axis=2, count=ffn, bitorder="little").view(np.bool_)
    near = [neighbours(sample[:, layer], 8) for layer in range(layers)]
    return Profile(
        model=fingerprint(store) if store else "",
        tokens=counter.tokens,
        text="",
        hotset="0",
        counts=tuple(counter.counts[0]),
        independent=tuple(counter.counts[1]),
        steps=counter.steps,
        reused=counter.reused,
        reusable=counter.reusable,
        neighbours=np.stack([ids for ids, _ in near]),
        nearness=np.stack([values for _, values in near]),
        trace=counter.trace,
    )


def replayed(active: Active, hot: Sequence[int], slots: int, together: int, gap: int) -> tuple[float, float, float]:
    """(missed, requests, neurons read) of a token by brute force: LRU, neuron by neuron; the first quarter warms it up.

    active: in the order of a store.
    """
    recent: dict[tuple[int, int], None] = {}
    missed = requests = read = 0
    for token, layers in enumerate(active):
        for layer, row in enumerate(layers):
            wanted = [int(n) for n in np.flatnonzero(row) if n >= hot[layer]]
            missing = [n for n in wanted if (layer, n) not in recent]
            for n in wanted:
                recent.pop((layer, n), None)
                recent[layer, n] = None
            while len(recent) > slots:
                del recent[next(iter(recent))]
            if token < len(active) // 4:
                continue
            missed += len(missing)
            first = last = -(10**9)
            for n in missing:
                joins = n - last - 1 <= gap and n - first < together
                requests, read = (requests, read + n - last) if joins else (requests + 1, read + 1)
                first, last = first if joins else n, n
    counted = len(active) - len(active) // 4
    return missed / counted, requests / counted, read / counted
