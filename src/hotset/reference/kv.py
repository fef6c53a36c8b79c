"""A KV cache that keeps every key and value, rounded as the native cache rounds them."""

from __future__ import annotations

from typing import Literal

import numpy as np

from hotset.config import ModelConfig
from hotset.reference.arithmetic import Array

KvKind = Literal["exact", "f16", "int8"]


def store(x: Array, kind: KvKind) -> Array:
    """What reading back gives for keys or values x [tokens, kv_heads, head_dim]."""
    if kind == "exact":
        return x
    if kind == "f16":
        return x.astype(np.float16).astype(x.dtype)
    scale = np.abs(x).max(axis=-1, keepdims=True) / 127.0
    back: Array = np.rint(x / np.where(scale > 0, scale, 1.0)) * scale
    return back


class Cache:
    """Keys and values of one sequence, a list entry per layer: [tokens, kv_heads, head_dim]."""

    def __init__(self, config: ModelConfig, kind: KvKind) -> None:
        empty = np.empty((0, config.kv_heads, config.head_dim))
        self.kind = kind
        self.keys = [empty for _ in config.layers]
        self.values = [empty for _ in config.layers]

    @property
    def length(self) -> int:
        """Tokens that every layer has seen."""
        return len(self.keys[-1])

    def append(self, layer: int, k: Array, v: Array) -> None:
        self.keys[layer] = np.concatenate([self.keys[layer], store(k, self.kind)])
        self.values[layer] = np.concatenate([self.values[layer], store(v, self.kind)])
