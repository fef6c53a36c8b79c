"""What changes from step to step: learning rate, weight of the L1 term, share of the new activation."""

from __future__ import annotations

import math

from hotset.train.settings import Settings

_FFN_WARMUP = 0.1  # share of a layer's updates
_ZEROS_RISE = 0.6  # share of the steps after which the wanted zeros have risen from what the new activation gives
_FREE = 0.15  # share of the steps that random weights have to find zeros of their own, which differ between layers


def learning_rate(step: int, s: Settings) -> float:
    """Of step 0, 1, …: linear warm-up to `lr`, then half a cosine down to `final_lr * lr` at the last step."""
    return s.lr * _warm_then_falling(step, s.steps, s.warmup, s.final_lr)


def ffn_learning_rate(done: float, s: Settings) -> float:
    """When the share `done` of a layer's updates is over."""
    return s.ffn_lr * _warm_then_falling(round(done * 1000), 1000, round(_FFN_WARMUP * 1000), s.final_lr)


def free_share(s: Settings) -> float:
    """Of the steps, those before the zeros are counted from which the wanted ones rise.

    The old activation gives none: while some of it is left, a pull would grow without end.
    """
    swapped = (s.swap_steps + 1) / s.steps if s.swap_steps else 0.0
    return max(_FREE if s.from_scratch else 0.0, swapped)


def wanted_zeros(done: float, start: float, goal: float, free: float = 0.0) -> float:
    """When the share `done` of the steps from `start` zeros to `goal` is over, of which `free` pass without a pull."""
    end = max(_ZEROS_RISE, (1 + free) / 2)
    return start + (goal - start) * min(max(done - free, 0.0) / max(end - free, 1e-9), 1.0)


def _warm_then_falling(step: int, steps: int, warmup: int, final: float) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return final + (1 - final) * _falling((step - warmup) / max(steps - 1 - warmup, 1))


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
