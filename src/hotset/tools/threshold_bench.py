"""A dense model run with thresholds, against itself without: what they cost and how many neurons they leave at zero."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotset import _core
from hotset.config import ModelConfig
from hotset.tools.profile_text import Window

Floors = Sequence[Mapping[str, Any]]  # by layer, arguments of set_ffn_floor
_ONES = np.array([byte.bit_count() for byte in range(256)], np.uint8)
_ROWS = 128  # of logits at once: 64 MB for 128k tokens of vocabulary


@dataclass(frozen=True, slots=True)
class Cost:
    """Perplexity against the same model without thresholds, on the same text."""

    zeros: float  # share of products at 0
    layer_zeros: tuple[float, ...]
    exact_perplexity: float
    perplexity: float
    error: float  # standard error of log(perplexity / exact_perplexity), over tokens
    tokens: int
    divergence: float  # mean, nats, of the next token's distribution from the exact one, on the sample

    @property
    def change(self) -> float:
        """Relative, of perplexity."""
        return self.perplexity / self.exact_perplexity - 1


class Bench:
    """One engine and the held-out text it is tried on. sample: tokens whose whole distributions are compared."""

    def __init__(self, core: _core.Engine, config: ModelConfig, held_out: Sequence[Window], sample: int) -> None:
        self._core, self._config, self._held_out = core, config, held_out
        self._sample = list(_cut(held_out, sample))
        self._none: Floors = [{}] * len(config.layers)
        self._apply(self._none)
        self._exact = [_log_softmax(core.logits()) for window in self._sample for _ in self._steps(window)]
        self._exact_surprise = self._surprise()

    def divergence(self, floors: Floors) -> float:
        """Mean Kullback-Leibler divergence, nats, of the next token's distribution on the sample."""
        self._apply(floors)
        steps = (self._core.logits() for window in self._sample for _ in self._steps(window))
        found = [_divergence(exact, logits) for exact, logits in zip(self._exact, steps, strict=True)]
        return float(np.concatenate(found).mean())

    def cost(self, floors: Floors) -> Cost:
        """What all layers together cost on the held-out text."""
        self._apply(floors)
        self._core.record(activations=True)
        counts, tokens = np.zeros(len(floors)), 0
        got = []
        for window in self._held_out:
            got.append(self._surprise_of(window))
            active = self._core.take_record()[0]
            counts += count_active(active)
            tokens += len(active)
        self._core.record(activations=False)
        difference = np.concatenate(got) - self._exact_surprise
        zeros = 1 - counts / (tokens * self._config.ffn)
        exact = float(self._exact_surprise.mean())
        return Cost(
            zeros=float(zeros.mean()),
            layer_zeros=tuple(zeros.tolist()),
            exact_perplexity=math.exp(exact),
            perplexity=math.exp(exact + difference.mean()),
            error=float(difference.std() / math.sqrt(max(len(difference) - 1, 1))),
            tokens=len(difference),
            divergence=self.divergence(floors),
        )

    def _surprise(self) -> NDArray[np.float64]:
        return np.concatenate([self._surprise_of(window) for window in self._held_out])

    def _surprise_of(self, window: Window) -> NDArray[np.float64]:
        """-log p of each token of a window but the first."""
        found = [-self._core.token_logprobs(window[at + 1 : at + 1 + n]) for at, n in self._steps(window[:-1])]
        return np.concatenate(found).astype(np.float64)

    def _steps(self, window: Window) -> Iterator[tuple[int, int]]:
        """Runs a window; after each step its logits are the core's last. Yields where its tokens began and how many."""
        seq = self._core.sequence_new()
        one, length, every = np.array([seq], np.int32), np.array([len(window)], np.int64), np.full(1, 2, np.uint8)
        for at in range(0, len(window), _ROWS):
            part = np.ascontiguousarray(window[at : at + _ROWS])
            self._core.step(one, np.array([len(part)], np.int32), part, every, length)
            yield at, len(part)
        self._core.sequence_free(seq)

    def _apply(self, floors: Floors) -> None:
        for layer, floor in enumerate(floors):
            self._core.set_ffn_floor(layer, **floor)


def count_active(record: NDArray[np.uint8]) -> NDArray[np.int64]:
    """[layers]: neurons other than zero in what `_core.Engine.take_record` gives, all tokens together."""
    return np.asarray(_ONES[record].sum(axis=(0, 2), dtype=np.int64))


def _cut(windows: Sequence[Window], tokens: int) -> Iterator[Window]:
    """Beginnings of all windows, together about as many tokens."""
    each = max(1, -(-tokens // len(windows)))
    return (window[:each] for window in windows)


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64)
    return np.asarray(shifted - np.log(total).astype(np.float32))


def _divergence(exact: NDArray[np.float32], logits: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.asarray((np.exp(exact) * (exact - _log_softmax(logits))).sum(axis=1, dtype=np.float64))
