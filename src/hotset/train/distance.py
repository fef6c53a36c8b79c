"""Next-token loss and distance to the original's distribution, a few rows of the vocabulary at a time.

Both are linear in the target, so together they are one cross entropy with (1 - share) of the token that follows and
share of the original's distribution as target. Its gradient is made with it, in pieces that stay in the cache: the
same from whole matrices of logits takes as long as half of the network's passes on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_PIECE = 1 << 22  # logits at once, 16 MiB in f32


class _Mixed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, wanted: Tensor, right: Tensor, share: float) -> tuple[Tensor, Tensor, Tensor]:
        """Means over rows, each []: (1 - share) * next token + share * distance, next token, distance."""
        gradient = torch.empty_like(logits)
        sums = torch.zeros(2, device=logits.device)
        rows = max(_PIECE // logits.shape[-1], 1)
        pieces = (each.split(rows) for each in (logits, wanted, right, gradient))
        for ours, token, theirs, out in zip(*pieces, strict=True):
            likely = ours.float().log_softmax(-1)
            target = theirs.float().log_softmax(-1)
            sums[0] -= likely.gather(-1, token[:, None]).sum()
            goal = target.exp()
            sums[1] += torch.linalg.vecdot(goal, target.sub_(likely)).sum()
            slope = likely.exp_().sub_(goal, alpha=share)
            slope.scatter_add_(-1, token[:, None], slope.new_full((len(token), 1), share - 1))
            out.copy_(slope.div_(len(logits)))
        ctx.save_for_backward(gradient)
        next_token, distance = sums / len(logits)
        ctx.mark_non_differentiable(next_token, distance)
        return (1 - share) * next_token + share * distance, next_token, distance

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.saved_tensors[0] * outer[0], None, None, None


def mixed_loss(logits: Tensor, wanted: Tensor, right: Tensor, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """(1 - share) * cross entropy + share * KL(original || model), with graph; cross entropy; KL.

    logits: [tokens, vocab] of the model; wanted: [tokens], the tokens that follow; right: [tokens, vocab] of the
    original, without graph; share: 0 to 1. Means over the tokens, each [].
    """
    found: tuple[Tensor, Tensor, Tensor] = _Mixed.apply(logits, wanted, right, share)
    return found
