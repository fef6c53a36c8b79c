"""What changes from step to step: learning rate, weight of the L1 term, share of the new activation."""

from __future__ import annotations

import math

from hotset.train.settings import Settings


def learning_rate(step: int, s: Settings) -> float:
    """Of step 0, 1, …: linear warm-up to `lr`, then half a cosine down to `final_lr * lr` at the last step."""
    if step < s.warmup:
        return s.lr * (step + 1) / s.warmup
    left = _falling((step - s.warmup) / max(s.steps - 1 - s.warmup, 1))
    return s.lr * (s.final_lr + (1 - s.final_lr) * left)


def l1_weight(step: int, s: Settings) -> float:
    """Rises from 0 along half a cosine, so that neurons have time to move before the pull is strong.

    Source: ProSparse, arXiv:2402.13516, section 3.2.
    """
    return s.l1 * (1 - _falling(step / (s.l1_steps or s.steps)))


def swap_share(step: int, s: Settings) -> float:
    """Share of the new activation in the FFN, the rest being the old one; 1 from step `swap_steps` on."""
    return min(step / s.swap_steps, 1.0) if s.swap_steps else 1.0


def _falling(x: float) -> float:
    """1 at 0, 0 from 1 on."""
    return (1 + math.cos(math.pi * min(max(x, 0.0), 1.0))) / 2
