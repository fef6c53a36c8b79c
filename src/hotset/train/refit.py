"""The best output weights for neurons with a new activation, by least squares."""

from __future__ import annotations

import torch
from torch import Tensor

from hotset.train.ffn import SparseFfn
from hotset.train.streams import Lesson

_PART = 4096  # tokens at once
_RIDGE = 0.01  # of the mean of the diagonal: a pull to the old weights, for neurons that hardly ever fire


def turn_signs(ffn: SparseFfn, lesson: Lesson) -> None:
    """Turns up and down of the neurons whose output has more energy where up is negative, which dReLU drops.

    The old activation, linear in up, gives the same as before.
    """
    gate, up = ffn.gate_proj(lesson.inputs).float(), ffn.up_proj(lesson.inputs).float()  # [tokens, ffn]
    energy = (ffn.old_activation(gate) * up * lesson.weights[:, None]).square() * up.sign()
    sign = torch.where(energy.sum(0) < 0, -1.0, 1.0)  # [ffn]
    ffn.up_proj.weight.mul_(sign[:, None])
    ffn.down_proj.weight.mul_(sign)


def refit(ffn: SparseFfn, lesson: Lesson) -> None:
    """Puts the output weights in place that give what is wanted best.

    Tokens count by the inverse square of their stream's length, as the norm before the next layer sees them.
    """
    down = ffn.down_proj.weight
    left = torch.zeros(down.shape[1], down.shape[1], device=down.device)  # [ffn, ffn]
    right = torch.zeros(down.shape[1], down.shape[0], device=down.device)  # [ffn, hidden]
    for part in lesson.parts(_PART):
        neurons = ffn.activate(ffn.gate_proj(part.inputs), ffn.up_proj(part.inputs)).float()
        rows: Tensor = neurons * part.weights[:, None]
        with torch.autocast(down.device.type, enabled=False):
            left += rows.T @ rows
            right += rows.T @ (part.wanted * part.weights[:, None])
    ridge = _RIDGE * float(left.diagonal().mean()) + 1e-20
    with torch.autocast(down.device.type, enabled=False):
        whole = left + ridge * torch.eye(len(left), device=down.device)
        down.copy_(torch.linalg.solve(whole, right + ridge * down.T).T)
