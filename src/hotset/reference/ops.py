"""Norms, activations, rotations and attention, one line of mathematics each where that is possible."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hotset.config import Activation, RopeConfig
from hotset.reference.arithmetic import Arithmetic, Array

_erf = np.frompyfunc(math.erf, 1, 1)


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """x [..., n] / sqrt(mean of squares + eps) * weight [n]."""
    y: Array = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight
    return y


def layer_norm(x: Array, weight: Array, bias: Array | None, eps: float) -> Array:
    """(x - mean) / sqrt(variance + eps) * weight + bias, over the last axis."""
    centred = x - x.mean(axis=-1, keepdims=True)
    y: Array = centred / np.sqrt(np.mean(centred * centred, axis=-1, keepdims=True) + eps) * weight
    return y if bias is None else y + bias


def activate(name: Activation, x: Array, threshold: float = 0.0) -> Array:
    """f(x), elementwise. shifted_relu: x where x > threshold, else 0 (FATReLU)."""
    if name == "none":
        return x
    if name == "silu":
        return x * sigmoid(x)
    if name == "gelu":
        return 0.5 * x * (1.0 + np.asarray(_erf(x / math.sqrt(2.0)), dtype=np.float64))
    if name == "gelu_tanh":
        return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    if name == "shifted_relu":
        return np.where(x > threshold, x, 0.0)
    positive = np.maximum(x, 0.0)
    return positive if name == "relu" else positive * positive


def expected(name: Activation, x: Array, noise: Array, threshold: float = 0.0) -> Array:
    """Mean of |f(x + noise e)| over normal e of variance 1, for activations of straight lines.

    relu2: the square of the mean of relu. shifted_relu: the threshold counts as far as what is above it is likely.
    """
    x, noise = np.asarray(x, np.float64), np.maximum(noise, 1e-18)
    z = (x - threshold if name == "shifted_relu" else x) / noise
    phi, below = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi), 0.5 * (1 + np.asarray(_erf(z / math.sqrt(2.0))))
    mean = noise * (phi + z * below)
    if name == "none":
        return 2 * mean - x
    if name == "shifted_relu":
        return mean + threshold * mean / (mean + noise)
    return mean * mean if name == "relu2" else mean


def drop_below(x: Array, floor: Any) -> Array:
    """x, but 0 where its magnitude is below the floor: one for all, or one for each of the last axis."""
    return np.where(np.abs(x) < floor, 0.0, x)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)) without overflow."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


def rope_frequencies(rope: RopeConfig, length: int) -> Array:
    """Frequencies [rotary_dim / 2] for a sequence of `length` tokens; only dynamic NTK depends on it."""
    inv_freq = np.asarray(rope.inv_freq, dtype=np.float64)
    if not rope.dynamic_factor or length <= rope.original_context:
        return inv_freq
    dim = 2 * inv_freq.size
    growth = rope.dynamic_factor * length / rope.original_context - (rope.dynamic_factor - 1)
    base = rope.dynamic_base * growth ** (dim / (dim - 2))
    frequencies: Array = base ** (-np.arange(0, dim, 2) / dim)
    return frequencies


def rotate(x: Array, angles: Array, factor: float) -> Array:
    """Rotates pairs (i, i + d/2) of x [n, heads, head_dim] by angles [n, d/2]; dimensions beyond d stay.

    factor multiplies cos and sin (YaRN's mscale).
    """
    half = angles.shape[-1]
    cos, sin = np.cos(angles)[:, None, :] * factor, np.sin(angles)[:, None, :] * factor
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def softmax(scores: Array) -> Array:
    shifted = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights: Array = shifted / shifted.sum(axis=-1, keepdims=True)
    return weights


def words(x: Array) -> Array:
    """x [..., n] rounded to int16 codes with one scale (absmax / 32767) per row, and back."""
    scale = np.abs(x).max(axis=-1, keepdims=True) / 32767
    back: Array = np.rint(x / np.where(scale > 0, scale, 1.0)) * scale
    return back


def attend(
    q: Array,
    k: Array,
    v: Array,
    first: int,
    window: int,
    arithmetic: Arithmetic | None = None,
    scales: Array | None = None,
) -> Array:
    """Causal attention of queries at positions first, first + 1, ... over keys at 0, 1, ...

    q [n, heads, hd], already scaled; k and v [tokens, kv_heads, hd] -> [n, heads, hd]. Query head h reads KV head
    h / (heads / kv_heads). window: tokens a query may look back, itself included; 0 = all.
    scales [tokens, kv_heads]: of values in int8; weights (a page of 64 tokens at a time) and queries are then in int16.
    """
    arithmetic = arithmetic or Arithmetic()
    q = q if scales is None else words(q)
    groups = q.shape[1] // k.shape[1]
    query = first + np.arange(len(q))[:, None]
    key = np.arange(len(k))[None, :]
    visible = (key <= query) & ((key > query - window) if window else True)
    out = np.empty_like(q)
    for head in range(q.shape[1]):
        keys, values = k[:, head // groups], v[:, head // groups]
        scores = np.where(visible, arithmetic.product(keys, q[:, head]), -np.inf)
        weights = arithmetic.rounded(softmax(scores), len(k))
        if scales is not None:
            weights = _weights_in_words(weights, scales[:, head // groups])
        out[:, head] = arithmetic.product(values.T, weights)
    return out


def _weights_in_words(weights: Array, scales: Array) -> Array:
    """weights [n, tokens], rounded as those that int8 values with these scales are multiplied with."""
    safe = np.where(scales > 0, scales, 1.0)
    pages = [slice(begin, begin + 64) for begin in range(0, len(scales), 64)]
    return np.concatenate([words(weights[:, page] * safe[page]) / safe[page] for page in pages], axis=1)
