"""AdamW, or Muon for the matrices of the layers with AdamW for the rest."""

from __future__ import annotations

from typing import Any

import torch

from hotset.errors import UsageError
from hotset.train.settings import Settings

_BETAS = (0.9, 0.95)  # as TurboSparse and most pretraining of language models


def make_optimizers(model: Any, s: Settings, ranks: int) -> list[torch.optim.Optimizer]:
    """Norms are not decayed. Raises UsageError for Muon in several processes.

    Muon: https://kellerjordan.github.io/posts/muon; scaled as in arXiv:2502.16982, so that both share one rate.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    muon = {name for name, p in named if s.optimizer == "muon" and p.ndim == 2 and ".layers." in name}
    if muon and ranks > 1:
        raise UsageError("--optimizer muon needs whole matrices in one process; use adamw under torchrun")
    rest = [(name, p) for name, p in named if name not in muon]
    groups = [
        {"params": [p for _, p in rest if p.ndim >= 2], "weight_decay": s.weight_decay},
        {"params": [p for _, p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=s.lr, betas=_BETAS, fused=True)]
    if muon:
        matrices = [p for name, p in named if name in muon]
        found.append(torch.optim.Muon(matrices, lr=s.lr, weight_decay=s.weight_decay, adjust_lr_fn="match_rms_adamw"))
    return found


def set_decay(optimizers: list[torch.optim.Optimizer], decay: float) -> None:
    """Of whatever is decayed at all, in the place of what a checkpoint brought."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if any(p.ndim >= 2 for p in group["params"]):
                group["weight_decay"] = decay


def set_rate(optimizers: list[torch.optim.Optimizer], rate: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
