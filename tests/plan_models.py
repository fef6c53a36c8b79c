"""A model and a host to plan for: activations that follow themselves in time, sizes and rates in round numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from probed_hosts import RATES as PROBED

from hotset.planner.plan import Host
from hotset.planner.sizes import NeuronSizes
from hotset.planner.statistics import union_counts

TOKENS, NEURONS, ACTIVE = 2000, 1024, 0.1
RATES = replace(
    PROBED,
    weight_bytes_per_s={2: 16e9},
    neuron_bytes_per_s={2: 8e9},
    check_bytes_per_s={2: 10e9},
    cache_bytes=1 << 20,
)
SIZES = NeuronSizes(
    layers=4, ffn=1024, hidden=4096, gated=True, vector_bytes=2304, stride=7168, gate_bytes=4 * 1024 * 2304
)
ALL_BYTES = SIZES.neurons * SIZES.stride
HOST = Host(threads=2, resident_bytes=50_000_000, rates=RATES)


def latents(seed: int, correlation: float = 0.7, spread: float = 1.0) -> NDArray[np.float64]:
    """[tokens, neurons] of Gaussians that follow themselves in time; neurons with the largest means first."""
    rng = np.random.default_rng(seed)
    often = spread * rng.standard_normal(NEURONS)
    state = rng.standard_normal(NEURONS)
    values = np.empty((TOKENS, NEURONS))
    for token in range(TOKENS):
        state = correlation * state + np.sqrt(1 - correlation**2) * rng.standard_normal(NEURONS)
        values[token] = state + often
    return values[:, np.argsort(-(values > np.quantile(values, 1 - ACTIVE)).mean(axis=0), kind="stable")]


def trace(seed: int, correlation: float = 0.7, spread: float = 1.0) -> NDArray[np.bool_]:
    """Activations [tokens, neurons]; most frequent neurons first."""
    values = latents(seed, correlation, spread)
    return values > np.quantile(values, 1 - ACTIVE)


def shares_of(layers: list[NDArray[np.bool_]]) -> NDArray[np.float32]:
    runs = range(1, 9)
    return np.array([[union_counts(a, n) / (len(a) // n) for a in layers] for n in runs], np.float32)
