"""Speed of a model on this host: load, prefill and decode, and the share of the memory bandwidth that decode reaches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hotset.tools.result import Series

if TYPE_CHECKING:
    from hotset import _core

PREFILLS = (128, 512, 2048)
DECODE = 128
STEP_TOKENS = 512


class Loader(Protocol):
    """Loads the model for a number of threads, with room for so many tokens."""

    def __call__(self, threads: int, kv_tokens: int) -> _core.Engine: ...


@dataclass(frozen=True, slots=True)
class Bound:
    """What decode could reach if reading the weights were all there is to do."""

    threads: int
    bytes_per_token: float
    bandwidth_bytes_per_s: float
    tokens_per_s: float  # measured

    @property
    def share(self) -> float:
        return self.tokens_per_s * self.bytes_per_token / self.bandwidth_bytes_per_s


@dataclass(frozen=True, slots=True)
class BenchResult:
    series: list[Series]
    bounds: list[Bound]
    stats: dict[str, float]  # of the last engine: weight_bytes, kv_bytes_used, …


def measure(
    load: Loader,
    vocab: int,
    *,
    threads: Sequence[int],
    prefills: Sequence[int] = PREFILLS,
    decode: int = DECODE,
    repeats: int = 3,
    bandwidths: dict[int, float] | None = None,
) -> BenchResult:
    """Measures every test `repeats` times after one warm-up; rates in tokens/s, load in s.

    bandwidths: bytes/s by number of threads; bounds are given for those.
    """
    series, bounds, stats = [], [], {}
    for count in threads:
        engine = load(count, max([*prefills, decode]) + 1)
        stats = dict(engine.stats)
        series.append(Series("load", "s", (stats["load_seconds"],), count))
        for tokens in prefills:
            series.append(_repeat(f"prefill{tokens}", count, repeats, lambda n=tokens: prefill(engine, n, vocab)))
        if decode:
            series.append(_repeat(f"decode{decode}", count, repeats, lambda: decode_rate(engine, decode, vocab)))
            if bandwidths and count in bandwidths:
                rate = series[-1].median
                bounds.append(Bound(count, stats["bytes_per_token"], bandwidths[count], rate))
        stats = dict(engine.stats)
        del engine
    return BenchResult(series, bounds, stats)


def _repeat(test: str, threads: int, repeats: int, once: Any) -> Series:
    once()
    return Series(test, "tokens/s", tuple(once() for _ in range(repeats)), threads)


def prefill(engine: _core.Engine, tokens: int, vocab: int) -> float:
    """Tokens/s of a prompt of random tokens, logits of its last one included."""
    ids = np.random.default_rng(tokens).integers(0, vocab, tokens, dtype=np.int32)
    seq = engine.sequence_new()
    started = time.perf_counter()
    for start in range(0, tokens, STEP_TOKENS):
        chunk = ids[start : start + STEP_TOKENS]
        _step(engine, seq, chunk, want=start + len(chunk) == tokens)
    elapsed = time.perf_counter() - started
    engine.sequence_free(seq)
    return tokens / elapsed


def decode_rate(engine: _core.Engine, tokens: int, vocab: int) -> float:
    """Tokens/s of single steps from an empty context; random tokens, so that no sampler is measured."""
    ids = np.random.default_rng(tokens).integers(0, vocab, tokens, dtype=np.int32)
    seq = engine.sequence_new()
    started = time.perf_counter()
    for i in range(tokens):
        _step(engine, seq, ids[i : i + 1], want=True)
    elapsed = time.perf_counter() - started
    engine.sequence_free(seq)
    return tokens / elapsed


def _step(engine: _core.Engine, seq: int, ids: np.typing.NDArray[np.int32], *, want: bool) -> None:
    seqs, counts = np.array([seq], np.int32), np.array([len(ids)], np.int32)
    engine.step(seqs, counts, ids, np.array([want], np.uint8))
