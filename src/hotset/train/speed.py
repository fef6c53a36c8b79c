"""How fast a run trains, in floating-point operations, and what share of the device's peak that is."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hotset.train.parallel import World

_PROBE_SECONDS = 1.0
_SIZES = {"cpu": 2048}  # of the probe's square matrices
_SIZE = 8192  # on a GPU


@dataclass(frozen=True, slots=True)
class Work:
    """What a token takes, and what the devices of all processes together can do."""

    flops_per_token: float
    peak_flops_per_s: float  # of matrix products in the dtype trained in, measured

    def speed(self, tokens_per_s: float) -> Speed:
        flops = tokens_per_s * self.flops_per_token
        return Speed(tokens_per_s, flops, flops / self.peak_flops_per_s)


@dataclass(frozen=True, slots=True)
class Speed:
    """Of all processes together."""

    tokens_per_s: float
    flops_per_s: float
    peak_share: float

    def __str__(self) -> str:
        return f"{self.tokens_per_s:.0f} tokens/s, {self.flops_per_s / 1e9:.3g} GFLOP/s ({self.peak_share:.0%} of peak)"


def flops_per_token(model: Any, sequence: int, teacher: Any | None = None) -> float:
    """6 N to train on a token and 2 N of the teacher for its answer to it; N counts the weights of matrix products.

    Beside N come the products of attention with half a sequence of keys and values on average. What --recompute
    computes again is not counted. Source: arXiv:2001.08361, section 2.1.
    """
    return 6.0 * _products(model, sequence) + (2.0 * _products(teacher, sequence) if teacher is not None else 0.0)


def _products(model: Any, sequence: int) -> int:
    """Multiplications of one pass of a token."""
    weights = sum(part.weight.numel() for part in model.modules() if isinstance(part, nn.Linear))
    c = model.config
    width = c.num_attention_heads * (getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads)
    return weights + c.num_hidden_layers * width * sequence  # keys and values, half a sequence of each


def peak_flops_per_s(world: World, dtype: torch.dtype) -> float:
    """Of products of large matrices, the best of a second's; of all processes, which have devices alike."""
    return world.ranks * _probe(world.device, dtype, torch.get_num_threads())


@functools.cache
def _probe(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    size = _SIZES.get(device.type, _SIZE)
    a, b = (torch.full((size, size), 0.5, dtype=dtype, device=device) for _ in range(2))
    best, end = float("inf"), time.monotonic() + _PROBE_SECONDS
    while time.monotonic() < end or best == float("inf"):
        started = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
