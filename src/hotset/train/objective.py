"""What is minimized: next token, distance to the teacher's distribution, size of the neurons' outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hotset.train.distance import mixed_loss
from hotset.train.ffn import SparseFfn


@dataclass(frozen=True, slots=True)
class Loss:
    """Means over the tokens of a pass, each []; `total` has the graph."""

    total: Tensor
    next_token: Tensor
    distance: Tensor  # KL(teacher || model), 0 without distillation
    size: Tensor  # of the neurons' outputs, mean over layers


class Objective:
    """(1 - distill) * cross entropy + distill * KL(teacher || model) + mean over layers of l1 * mean |neuron|."""

    def __init__(self, model: Any, ffns: Sequence[SparseFfn], teacher: Any | None, distill: float) -> None:
        self.model, self.ffns, self.teacher, self.distill = model, ffns, teacher, distill

    def __call__(self, windows: Tensor, l1: Sequence[float]) -> Loss:
        """windows: [sequences, length + 1]; l1: of each layer, [layers]."""
        pulled = any(l1)
        for ffn in self.ffns:
            ffn.wants_size = pulled
        inputs, wanted = windows[:, :-1], windows[:, 1:].reshape(-1)
        logits = self.model(input_ids=inputs, use_cache=False).logits.flatten(0, 1)  # [tokens, vocab]
        distance = size = torch.zeros((), device=logits.device)
        if self.teacher is None:
            total = next_token = functional.cross_entropy(logits.float(), wanted)
        else:
            total, next_token, distance = mixed_loss(logits, wanted, self._right(inputs), self.distill)
        if pulled:
            sizes = torch.stack([ffn.size for ffn in self.ffns if ffn.size is not None])
            total = total + (sizes * sizes.new_tensor(l1)).mean()
            size = sizes.mean()
        return Loss(total, next_token.detach(), distance, size.detach())

    def next_token(self, windows: Tensor) -> Tensor:
        """Mean cross entropy of windows [sequences, length + 1], []."""
        logits = self.model(input_ids=windows[:, :-1], use_cache=False).logits.float().flatten(0, 1)
        return functional.cross_entropy(logits, windows[:, 1:].reshape(-1))

    def _right(self, inputs: Tensor) -> Tensor:
        """Logits of the teacher, [tokens, vocab]."""
        assert self.teacher is not None
        with torch.no_grad():
            logits: Tensor = self.teacher(input_ids=inputs, use_cache=False).logits.flatten(0, 1)
        return logits
