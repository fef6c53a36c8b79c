"""In which order a layer's neurons lie on the drive."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hotset.errors import FormatError, UsageError
from hotset.formats.neurons import ORDERS
from hotset.formats.profile import PROFILE_FILE, load_profile
from hotset.formats.store import Store
from hotset.models import Model
from hotset.planner.read_sizes import ReadSizes
from hotset.planner.use import Cold, NeuronUse, Reach
from hotset.tools.plan_profile import ordered

WORTH = 0.98  # of the requests; the trace of a profile tells them apart about as well
BANDS = 16  # of falling frequency, inside which neighbours may change places
Order = NDArray[np.int32]


def check_order(kind: str, folder: Path) -> None:
    """Raises UsageError if there is no such order, or no profile where it needs one."""
    if kind not in ORDERS:
        raise UsageError(f"unknown order {kind[:40]!r}; there are auto, {', '.join(ORDERS)}")
    if kind != "none" and not (folder / PROFILE_FILE).is_file():
        raise UsageError(
            f"order {kind} needs {folder / PROFILE_FILE}; make it with `hotset profile {folder}`, or use --order none"
        )


def neuron_orders(kind: str, store: Store, layers: int, ffn: int) -> list[Order]:
    """For each layer the model's own indices of the neurons [ffn] in the order in which to store them.

    Args:
        kind: "none" (as in the model), "frequency" (those active in most tokens of the profile first, ties by index)
            or "coactivation" (the same, but neurons of like frequency beside those they are active together with).
        store: with a profile where the order needs one.
    Raises: UsageError, InputError, FormatError (no profile, or one that does not serve).
    """
    if kind == "none":
        return [np.arange(ffn, dtype=np.int32)] * layers
    profile = load_profile(store)
    if (profile.layers, profile.ffn) != (layers, ffn):
        raise FormatError(
            f"{store.path / PROFILE_FILE} counts {profile.layers} layers of {profile.ffn} neurons; the store has "
            f"{layers} of {ffn}: profile it again"
        )
    by_frequency = [np.argsort(-counts, kind="stable").astype(np.int32) for counts in profile.counts[0]]
    if kind == "frequency":
        return by_frequency
    return [chained(order, near) for order, near in zip(by_frequency, profile.neighbours, strict=True)]


def fewest_requests(store: Store, model: Model, stride: int) -> dict[str, float]:
    """Requests of the drive for a token in each order, the best first, with half of all neurons in memory.

    By the store's profile: how often neurons are used, and whether those that would lie near each other are used by the
    same tokens of its trace. "coactivation" comes before "frequency" only where the difference is more than noise.
    Raises: UsageError, InputError, FormatError (no profile, or one that does not serve).
    """
    profile = load_profile(store)
    counts = {}
    for kind in ("frequency", "coactivation"):
        orders = neuron_orders(kind, store, profile.layers, profile.ffn)
        known = ordered(profile, orders, model, None, None)
        counts[kind] = half_cached(known.use("all"), ReadSizes().reach(stride)).requests
    better = counts["coactivation"] < WORTH * counts["frequency"]
    return {kind: counts[kind] for kind in (("coactivation", "frequency") if better else ("frequency", "coactivation"))}


def compared(requests: Mapping[str, float]) -> Iterator[str]:
    """What fewest_requests() found, in words."""
    if requests:
        (best, least), (other, more) = requests.items()
        yield (
            f"order {best}: with half of the neurons in memory a token takes {least:.0f} requests of the drive, by "
            f"{other} {more:.0f}"
        )


def half_cached(use: NeuronUse, reach: Reach) -> Cold:
    """With half of all neurons in memory, split between hot and cold as few misses want it."""
    half = int(use.hot[-1].sum()) // 2
    borders = range(use.border(half) + 1)
    found = [use.cold(border, half - int(use.hot[border].sum()), reach) for border in borders]
    return min(found, key=lambda cold: cold.missed)


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
