"""The FFN with a sparse activation, put in the place of a gated FFN of transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from hotset.errors import ModelError
from hotset.train.settings import Settings

PARTS = ("gate_proj", "up_proj", "down_proj", "act_fn")  # what transformers calls them in all gated families


class SparseFfn(nn.Module):
    """down(f(gate(x), up(x))) with the weights of the FFN it replaces, under their names.

    swap: share of f that is the new activation; the rest is the old one, act(gate) * up.
    After a pass `size` holds the mean |f| with its graph, or with `relative` what the neurons add, each by itself, as
    a multiple of what they add together; and `zeros` the share of exact zeros of f. Both only if wanted.
    Source of dReLU: TurboSparse, arXiv:2406.05955, equation 2; of the shifted ReLU: ProSparse, arXiv:2402.13516.
    """

    def __init__(self, old: Any, kind: str, threshold: float) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = old.gate_proj, old.up_proj, old.down_proj
        self.old_activation = old.act_fn
        self.kind = kind
        self.threshold = threshold
        self.swap = 1.0
        self.relative = False
        self.wants_size = False
        self.wants_zeros = False
        self.size: Tensor | None = None  # []
        self.zeros: Tensor | None = None  # []

    def forward(self, x: Tensor) -> Tensor:
        neurons = self.activate(self.gate_proj(x), self.up_proj(x))  # [..., ffn]
        out = self.down_proj(neurons)
        if self.wants_size:
            added = (self.contributions(neurons) / lengths(out)).mean() if self.relative else None
            self.size = neurons.abs().float().mean() if added is None else added
        if self.wants_zeros:
            self.zeros = (neurons.detach() == 0).float().mean()
        return out

    def contributions(self, neurons: Tensor) -> Tensor:
        """Sum of the lengths of what each neuron adds to the output, of neurons [..., ffn]; [...]."""
        each = self.down_proj.weight.detach().float().norm(dim=0)  # [ffn]
        return neurons.abs().float() @ each

    def activate(self, gate: Tensor, up: Tensor) -> Tensor:
        """What the neurons give, of gate and up [..., ffn]."""
        if self.kind == "keep":
            return self._old(gate, up)
        new = self._new(gate, up)
        return new if self.swap >= 1 else self.swap * new + (1 - self.swap) * self._old(gate, up)

    def _new(self, gate: Tensor, up: Tensor) -> Tensor:
        if self.kind == "drelu":
            return relu(gate) * relu(up)
        if self.kind == "relu":
            return relu(gate) * up
        return torch.where(gate > self.threshold, gate, 0) * up

    def _old(self, gate: Tensor, up: Tensor) -> Tensor:
        return self.old_activation(gate) * up


def lengths(vectors: Tensor) -> Tensor:
    """Of vectors [..., size], without graph, above 0; [...]."""
    return vectors.detach().float().norm(dim=-1).clamp_min(1e-6)


def swap_ffns(model: Any, settings: Settings) -> list[SparseFfn]:
    """Replaces the FFN of every layer of a transformers model; returns the new ones in order.

    Raises: ModelError if a layer has an FFN of another build.
    """
    found = []
    for number, layer in enumerate(model.model.layers):
        old = layer.mlp
        lacking = [name for name in PARTS if not hasattr(old, name)]
        if lacking:
            raise ModelError(
                f"layer {number} has an FFN {type(old).__name__} without {', '.join(lacking)}; only gated FFNs can be "
                "made sparse: those of Llama, Mistral, SmolLM and models built like them"
            )
        layer.mlp = SparseFfn(old, settings.activation, settings.threshold)
        layer.mlp.relative = settings.zeros > 0
        found.append(layer.mlp)
    return found
