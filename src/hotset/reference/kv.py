"""A KV cache that keeps every key and value, rounded as the native cache rounds them."""

from __future__ import annotations

from typing import Literal

import numpy as np

from hotset.config import ModelConfig
from hotset.reference.arithmetic import Array

KvKind = Literal["exact", "f16", "int8"]


KEY_GROUP = 32  # columns of a key that share a scale


def store(x: Array, kind: KvKind, group: int | None = None) -> Array:
    """What reading back gives for keys or values x [tokens, kv_heads, head_dim]; int8 has a scale for `group` columns,
    by default for all: absmax / 127, rounded up to bf16."""
    if kind == "exact":
        return x
    if kind == "f16":
        return x.astype(np.float16).astype(x.dtype)
    back = np.empty_like(x)
    for begin in range(0, x.shape[-1], group or x.shape[-1]):
        part = x[..., begin : begin + (group or x.shape[-1])]
        scale = int8_scale(part)[..., None]
        back[..., begin : begin + part.shape[-1]] = np.rint(part / np.where(scale > 0, scale, 1.0)) * scale
    return back


def int8_scale(x: Array) -> Array:
    """Scale of rows x [..., n]: absmax / 127, rounded up to bf16."""
    bits = (np.abs(x).max(axis=-1) / 127.0).astype(np.float32).view(np.uint32) + np.uint32(0xFFFF)
    scale: Array = (bits & np.uint32(0xFFFF0000)).view(np.float32).astype(x.dtype)
    return scale


class Cache:
    """Keys and values of one sequence, a list entry per layer: [tokens, kv_heads, head_dim]."""

    def __init__(self, config: ModelConfig, kind: KvKind) -> None:
        empty = np.empty((0, config.kv_heads, config.head_dim))
        self.kind = kind
        self.keys = [empty for _ in config.layers]
        self.values = [empty for _ in config.layers]
        self.scales = [np.empty((0, config.kv_heads)) for _ in config.layers]  # of int8 values

    @property
    def length(self) -> int:
        """Tokens that every layer has seen."""
        return len(self.keys[-1])

    def append(self, layer: int, k: Array, v: Array) -> None:
        self.keys[layer] = np.concatenate([self.keys[layer], store(k, self.kind, KEY_GROUP)])
        self.values[layer] = np.concatenate([self.values[layer], store(v, self.kind)])
        self.scales[layer] = np.concatenate([self.scales[layer], int8_scale(v)])
