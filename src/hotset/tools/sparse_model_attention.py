"""Attention of a synthetic model: each head averages over recent tokens, so that what changes changes slowly.

Queries and keys read the constant part of the residual stream, so their product depends, through RoPE, on the distance
alone; some noise on top makes it depend on the tokens, too. Values carry what changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotset.config import ModelConfig
from hotset.tools.sparse_model_math import Floats, Random, Stored, away_from, changing_rms

SHARPNESS = 12.0  # logits between the nearest token and far ones: e^-12 each, 2 % in all after 4096 tokens
QUERY_NOISE, KEY_NOISE = 0.4, 0.1  # together about half a logit


@dataclass(frozen=True, slots=True)
class Attention:
    """Weights as the store holds them; `o` may still be scaled."""

    config: ModelConfig
    q: Floats
    k: Floats
    v: Floats
    o: Floats
    output: Floats  # of the calibration tokens, [tokens, hidden]


def distance_weights(inv_freq: NDArray[np.float64], decay: float) -> NDArray[np.float64]:
    """c [pairs], sum 1, such that sum c cos(inv_freq * distance) is about exp(-distance / (SHARPNESS * decay)).

    Softmax of SHARPNESS times that falls by e every `decay` tokens. The Fourier transform of an exponential is a
    Lorentz curve; frequencies lie evenly on a logarithmic scale, hence the factor inv_freq.
    """
    weights = inv_freq / (1 + (inv_freq * SHARPNESS * decay) ** 2)
    result: NDArray[np.float64] = weights / weights.sum()
    return result


def make_attention(
    config: ModelConfig, x: Floats, decays: tuple[float, ...], random: Random, stored: Stored
) -> Attention:
    """Weights made for inputs x [tokens, hidden]; the output has about the size of x.

    random: a generator for each role; stored: rounds a matrix as the store will.
    """
    mean = x.mean(axis=0)
    reader = mean / np.square(mean).sum()  # reader @ x is about 1
    unit = 1 / (changing_rms(x) * np.sqrt(config.hidden))  # elements of a row whose product with x has variance 1

    def noise(role: str, heads: int, size: float) -> Floats:
        rows = random(role).standard_normal((heads * config.head_dim, config.hidden), np.float32)
        return away_from(rows * np.float32(unit * size), mean)

    query, key = _positions(config, decays, random("phase"))
    q = stored(noise("q", config.heads, QUERY_NOISE) + np.outer(query, reader))
    k = stored(noise("k", config.kv_heads, KEY_NOISE) + np.outer(key, reader))
    v = stored(noise("v", config.kv_heads, 1.0))
    seen = attend(config, x @ q.T, x @ k.T, x @ v.T)
    o = random("o").standard_normal((config.hidden, config.heads * config.head_dim), np.float32)
    # Long averages are small: every head is given the same share of the output.
    sizes = [changing_rms(head) for head in np.split(seen, config.heads, axis=1)]
    o /= np.repeat(np.array(sizes, np.float32) * np.sqrt(o.shape[1]), config.head_dim)
    o = stored(o)
    return Attention(config, q, k, v, o, seen @ o.T)


def _positions(config: ModelConfig, decays: tuple[float, ...], rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Queries [heads * head_dim] and keys [kv_heads * head_dim] whose product falls with the distance."""
    inv_freq = np.array(config.ropes[0].inv_freq)
    phases = np.exp(1j * rng.uniform(0, 2 * np.pi, (config.kv_heads, inv_freq.size)))
    sizes = np.array([distance_weights(inv_freq, decays[h % len(decays)]) for h in range(config.heads)])
    group = config.heads // config.kv_heads
    queries = np.repeat(phases, group, axis=0) * sizes * (SHARPNESS / config.attention_scale)
    return _halves(queries), _halves(phases)


def _halves(pairs: NDArray[np.complex128]) -> Floats:
    """Complex [heads, pairs] as Hugging Face lays pairs out: real parts of a head, then imaginary parts."""
    return np.concatenate([pairs.real, pairs.imag], axis=1).reshape(-1).astype(np.float32)


def attend(config: ModelConfig, q: Floats, k: Floats, v: Floats) -> Floats:
    """Causal attention of one sequence over itself: [tokens, heads * head_dim] -> the same."""
    tokens, size = len(q), config.head_dim
    q, k = (_rotate(m.reshape(tokens, -1, size), config) for m in (q, k))
    future = np.triu(np.full((tokens, tokens), -np.inf, np.float32), 1)
    out = np.empty((tokens, config.heads, size), np.float32)
    for head in range(config.heads):
        source = head * config.kv_heads // config.heads
        scores = q[:, head] @ k[:, source].T * np.float32(config.attention_scale) + future
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        out[:, head] = weights @ v[:, source * size : (source + 1) * size]
    return out.reshape(tokens, -1)


def _rotate(x: Floats, config: ModelConfig) -> Floats:
    angles = np.arange(len(x))[:, None] * np.array(config.ropes[0].inv_freq)
    cos, sin = (f(angles).astype(np.float32)[:, None, :] for f in (np.cos, np.sin))
    first, second = np.split(x, 2, axis=2)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=2)
