"""What a profile says, in numbers a person can read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotset.formats.profile import BATCHES, LEAST_TOKENS, REUSE_WINDOWS, Profile
from hotset.planner.replay import replay, replay_belady, replay_static, replay_window
from hotset.planner.sizes import POLICIES
from hotset.planner.statistics import concentration

SHARES = (0.25, 0.5, 0.75)  # of all neurons that are in memory in a replay
WINDOW = 5  # tokens, as LLM in a Flash
WARM_UP = 0.25  # of the trace, which fills the cache before misses count
_LEAST_SPARSE = 0.5  # share of zeros below which reading neurons one by one cannot pay


@dataclass(frozen=True, slots=True)
class LayerFigures:
    """One layer, or the model as the mean over its layers (reuse: over activations)."""

    zeros: float  # share of neurons that a token leaves at zero
    concentration: float  # share of the neurons that 80 % of the activations come from
    never: float  # share of neurons that no token made active
    reuse: dict[int, float]  # by window: active neurons that one of so many tokens before had active, too
    active: dict[int, float]  # by batch size: share of neurons that any of so many consecutive tokens makes active
    independent: dict[int, float]  # the same for tokens from different places of the text


@dataclass(frozen=True, slots=True)
class Replayed:
    """Misses of a cache for all layers together, on the trace, after warming up; share of active neurons."""

    policy: (
        str  # of the engine, or: "static" (what the profile counts most), "belady" (the best there can be), "window"
    )
    share: float  # of all neurons that the cache has room for; of "window": that it holds, mean over tokens
    mean: float
    p99: float  # over tokens


@dataclass(frozen=True, slots=True)
class ProfileReport:
    tokens: int
    model: LayerFigures
    model_wide_concentration: float  # of the neurons of all layers taken together
    layers: list[LayerFigures]
    replayed: list[Replayed]
    notes: list[str]


def report(profile: Profile, *, with_replay: bool = True) -> ProfileReport:
    """All figures of a profile. Replays take seconds on a large model."""
    layers = [_figures(profile, slice(layer, layer + 1)) for layer in range(profile.layers)]
    model = _figures(profile, slice(None))
    return ProfileReport(
        tokens=profile.tokens,
        model=model,
        model_wide_concentration=concentration(profile.counts[0]),
        layers=layers,
        replayed=replays(profile.active(), profile.counts[0]) if with_replay else [],
        notes=notes(profile),
    )


def notes(profile: Profile) -> list[str]:
    """What the user should know before using this profile."""
    found = []
    if profile.tokens < LEAST_TOKENS:
        found.append(
            f"{profile.tokens} tokens are too few: packing and planning want at least {LEAST_TOKENS}; profile more text"
        )
    if (zeros := float(profile.zeros().mean())) < _LEAST_SPARSE:
        found.append(
            f"this model leaves only {zeros:.0%} of its neurons at zero: it was not made to be sparse, and reading "
            "only what is active saves little"
        )
    return found


def replays(active: NDArray[np.bool_], counts: NDArray[np.int64]) -> list[Replayed]:
    """Every policy at every share. active: [tokens, layers, neurons]; counts: [layers, neurons], of the whole text."""
    used = active.sum(axis=(1, 2))
    nothing_hot = [0] * active.shape[1]
    found = []
    for share in SHARES:
        slots = round(share * counts.size)
        for policy in POLICIES:
            misses = replay(active, nothing_hot, slots, policy).sum(axis=1)
            found.append(_replayed(policy, share, misses, used))
        found.append(_replayed("static", share, replay_static(active, counts, slots), used))
        found.append(_replayed("belady", share, replay_belady(active, nothing_hot, slots), used))
    misses, held = replay_window(active, WINDOW)
    warm = held[_warm_up(len(held)) :]
    return [
        *found,
        _replayed(f"window of {WINDOW}", float(warm.mean()) / counts.size if warm.size else 0.0, misses, used),
    ]


def _warm_up(tokens: int) -> int:
    return round(WARM_UP * tokens)


def _replayed(policy: str, share: float, misses: NDArray[np.int64], used: NDArray[np.int64]) -> Replayed:
    first = _warm_up(len(used))
    misses, used = misses[first:], used[first:]
    rates = misses / np.maximum(used, 1)
    mean = float(misses.sum() / max(int(used.sum()), 1))
    return Replayed(policy, share, mean, float(np.percentile(rates, 99)) if rates.size else 0.0)


def _figures(profile: Profile, layers: slice) -> LayerFigures:
    counts = profile.counts[0][layers]
    reuse = profile.reused[layers].sum(axis=0) / np.maximum(profile.reusable[layers].sum(axis=0), 1)
    return LayerFigures(
        zeros=float(profile.zeros()[layers].mean()),
        concentration=float(np.mean([concentration(row) for row in counts])),
        never=float((counts == 0).mean()),
        reuse={window: float(share) for window, share in zip(REUSE_WINDOWS, reuse, strict=True)},
        active={b: float(profile.rates(b)[layers].mean()) for b in BATCHES},
        independent={b: float(profile.rates(b, independent=True)[layers].mean()) for b in BATCHES},
    )


def lines(found: ProfileReport) -> list[str]:
    """A table: a row for each layer, then the model; then the replays."""
    head = f"{'layer':>7}  {'zeros':>6}  {'80 % from':>9}  {'never':>6}  " + "  ".join(
        [f"{f'reuse {w}':>8}" for w in REUSE_WINDOWS] + [f"{f'batch {b}':>7}" for b in (2, 4, 8)]
    )
    rows = [*((str(i), layer) for i, layer in enumerate(found.layers)), ("model", found.model)]
    shown = [head, *(_row(name, figures) for name, figures in rows)]
    shown.append(f"80 % of all activations come from {found.model_wide_concentration:.1%} of all neurons")
    for share in SHARES if found.replayed else ():
        missed = [_missed(r) for r in found.replayed if r.share == share]
        shown.append(f"missed with {share:.0%} of the neurons in memory: {', '.join(missed)}")
    return shown + [
        f"missed with what the last {WINDOW} tokens used in memory, {r.share:.1%}: {_missed(r)}"
        for r in found.replayed
        if r.policy == f"window of {WINDOW}"
    ]


def _missed(r: Replayed) -> str:
    return f"{r.policy} {r.mean:.1%} (P99 {r.p99:.1%})"


def _row(name: str, figures: LayerFigures) -> str:
    shares = [*figures.reuse.values()], [figures.independent[b] for b in (2, 4, 8)]
    return f"{name:>7}  {figures.zeros:>6.1%}  {figures.concentration:>9.1%}  {figures.never:>6.1%}  " + "  ".join(
        [f"{s:>8.1%}" for s in shares[0]] + [f"{s:>7.1%}" for s in shares[1]]
    )


def as_json(found: ProfileReport) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(found)
