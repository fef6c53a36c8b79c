"""The forward pass of every family, driven by ModelConfig alone: the twin of native/model/forward.cc."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotset.config import ModelConfig
from hotset.reference import ops
from hotset.reference.arithmetic import Arithmetic, Array
from hotset.reference.kv import Cache, KvKind

Weights = Mapping[
    tuple[str, int], NDArray[Any]
]  # (role, layer), layer -1 = whole model; roles of docs/reference/store.md


class Forward:
    """Computes logits from tokens, in float64.

    weights: matrices [rows, cols] and vectors [n] as Hugging Face stores them.
    arithmetic: how results are rounded; kv: how keys and values are kept.
    floors: by layer, magnitudes below which values in the FFN count as 0: input, gate, product (see _core.Engine).
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        *,
        arithmetic: Arithmetic | None = None,
        kv: KvKind = "exact",
        floors: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.config = config
        self.arithmetic = arithmetic or Arithmetic()
        self.kv = kv
        self.floors = floors
        self.weights = {key: np.asarray(value, dtype=np.float64) for key, value in weights.items()}
        for key in self.weights:
            if key[0].endswith("_norm"):
                self.weights[key] = self.weights[key] + config.norm_offset

    def cache(self) -> Cache:
        return Cache(self.config, self.kv)

    def step(self, cache: Cache, tokens: Sequence[int], rope_length: int | None = None) -> Array:
        """Appends tokens to the sequence and returns the logits after each, [n, vocab].

        rope_length: final length of the sequence, for dynamic RoPE; default: its length after this step.
        """
        first = cache.length
        positions = np.arange(first, first + len(tokens))
        x = self._embed(tokens, positions)
        angles = self._angles(positions, rope_length or first + len(tokens))
        for layer in range(len(self.config.layers)):
            attended = x + self._after(self._attention(x, layer, cache, first, angles), "attn_post_norm", layer)
            seen = x if self.config.parallel else attended
            x = attended + self._after(self._ffn(seen, layer), "ffn_post_norm", layer)
        return self._head(x)

    def _embed(self, tokens: Sequence[int], positions: NDArray[np.int64]) -> Array:
        x: Array = self.weights["embed", -1][np.asarray(tokens)] * self.config.embedding_scale
        if self.config.position_offset >= 0:
            x = x + self.weights["position", -1][positions + self.config.position_offset]
        return x

    def _angles(self, positions: NDArray[np.int64], length: int) -> list[Array]:
        """position * frequency of every rotation, [n, rotary_dim / 2] each."""
        return [
            self.arithmetic.rounded(positions[:, None] * ops.rope_frequencies(rope, length))
            for rope in self.config.ropes
        ]

    def _attention(self, x: Array, layer: int, cache: Cache, first: int, angles: list[Array]) -> Array:
        c, here = self.config, self.config.layers[layer]
        y = self._norm(x, "attn_norm", layer)
        q, k, v = (self._linear(y, role, layer) for role in "qkv")
        q, k = self._qk_norm(q, "q_norm", layer), self._qk_norm(k, "k_norm", layer)
        q, k, v = (m.reshape(len(x), -1, c.head_dim) for m in (q, k, v))
        if here.rope >= 0:
            factor = c.ropes[here.rope].attention_factor
            q, k = (self._rounded(ops.rotate(m, angles[here.rope], factor)) for m in (q, k))
        cache.append(layer, k, v)
        scaled = q * c.attention_scale
        scales = cache.scales[layer] if cache.kind == "int8" else None
        out = ops.attend(scaled, cache.keys[layer], cache.values[layer], first, here.window, self.arithmetic, scales)
        return self._linear(out.reshape(len(x), -1), "o", layer)

    def _qk_norm(self, x: Array, role: str, layer: int) -> Array:
        """Per head over head_dim, or over all heads together."""
        if self.config.qk_norm == "none":
            return x
        split = x.reshape(len(x), -1, self.config.head_dim) if self.config.qk_norm == "per_head" else x
        return self._rounded(ops.rms_norm(split, self.weights[role, layer], self.config.norm_eps)).reshape(x.shape)

    def _ffn(self, x: Array, layer: int) -> Array:
        c = self.config
        floor = self.floors[layer] if self.floors else {}
        y = ops.drop_below(self._norm(x, self._ffn_norm(layer), layer), floor.get("input", 0))
        up = self._linear(y, "up", layer)
        if c.gated:
            gate = ops.activate(c.act_gate, self._linear(y, "gate", layer), c.gate_threshold)
            hidden = ops.drop_below(gate, floor.get("gate", 0)) * ops.activate(c.act_up, up, c.up_threshold)
        else:
            hidden = ops.activate(c.act_gate, up, c.gate_threshold)
        return self._linear(self._rounded(ops.drop_below(hidden, floor.get("product", 0))), "down", layer)

    def _ffn_norm(self, layer: int) -> str:
        """The norm that the FFN reads: in a parallel block without one of its own, attention's."""
        return "attn_norm" if self.config.parallel and ("ffn_norm", layer) not in self.weights else "ffn_norm"

    def _head(self, x: Array) -> Array:
        c = self.config
        weight = self.weights.get(("head", -1), self.weights["embed", -1])
        logits = self.arithmetic.linear(weight, self._norm(x, "final_norm", -1))
        if ("head_bias", -1) in self.weights:
            logits = logits + self.weights["head_bias", -1]
        logits = logits * c.logit_scale
        return logits if not c.logit_softcap else c.logit_softcap * np.tanh(logits / c.logit_softcap)

    def _linear(self, x: Array, role: str, layer: int) -> Array:
        y = self.arithmetic.linear(self.weights[role, layer], x)
        bias = self.weights.get((f"{role}_bias", layer))
        return y if bias is None else y + bias

    def _norm(self, x: Array, role: str, layer: int) -> Array:
        """The norm before a block; a block that has none takes x as it is."""
        weight = self.weights.get((role, layer))
        if weight is None:
            return x
        if self.config.norm == "rms":
            return self._rounded(ops.rms_norm(x, weight, self.config.norm_eps))
        return self._rounded(ops.layer_norm(x, weight, self.weights.get((f"{role}_bias", layer)), self.config.norm_eps))

    def _after(self, y: Array, role: str, layer: int) -> Array:
        """A block's output as it is added to the stream."""
        scaled: Array = self._norm(y, role, layer) * self.config.residual_scale
        return scaled

    def _rounded(self, y: Array) -> Array:
        return self.arithmetic.rounded(y)
