"""Speed of a model on this host: load, prefill and decode, and the share of the memory bandwidth reached."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from hotset.tools.result import Series

if TYPE_CHECKING:
    from hotset import _core
    from hotset.config import ModelConfig


class Loaded(Protocol):
    """A model in memory; `hotset.LLM`."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def context(self) -> int: ...
    @property
    def max_step_tokens(self) -> int: ...
    @property
    def core(self) -> _core.Engine: ...
    def close(self) -> None: ...


Loader = Callable[[int], Loaded]  # by number of threads
_NOTHING: Callable[[], None] = lambda: None  # noqa: E731


@dataclass(frozen=True, slots=True)
class Tests:
    """What to measure. All rates are tokens/s of one sequence of random tokens."""

    prefills: Sequence[int] = (128, 512, 2048)
    decode: int = 128  # 0: none
    repeats: int = 3


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
class Measured:
    series: list[Series]
    stats: dict[str, float]  # of the core, at the end

    def bounds(self, bandwidths: Mapping[int, float]) -> list[Bound]:
        """One for each decode test whose number of threads has its memory bandwidth measured, in bytes/s."""
        moved = self.stats["bytes_per_token"]
        return [
            Bound(s.threads, moved, bandwidths[s.threads], s.median)
            for s in self.series
            if s.test.startswith("decode") and s.threads in bandwidths
        ]


def measure(load: Loader, tests: Tests, threads: Sequence[int], after_step: Callable[[], None] = _NOTHING) -> Measured:
    """Loads the model once for each number of threads; every test runs once to warm up, then `repeats` times.

    Tests longer than the model's context are left out.
    """
    series: list[Series] = []
    stats: dict[str, float] = {}
    for count in threads:
        model = load(count)
        series += _measure_loaded(model, tests, count, after_step)
        stats = dict(model.core.stats)
        model.close()
    return Measured(series, stats)


def _measure_loaded(model: Loaded, tests: Tests, threads: int, after_step: Callable[[], None]) -> Iterator[Series]:
    yield Series("load", "s", (model.core.stats["load_seconds"],), threads)
    timed = [(f"prefill{n}", n, model.max_step_tokens) for n in tests.prefills]
    if tests.decode:
        timed.append((f"decode{tests.decode}", tests.decode, 1))
    for name, tokens, at_once in timed:
        if tokens > model.context:
            continue
        ids = np.random.default_rng(tokens).integers(0, model.config.vocab, tokens, dtype=np.int32)
        rate(model.core, ids, at_once, after_step)
        samples = tuple(rate(model.core, ids, at_once, after_step) for _ in range(tests.repeats))
        yield Series(name, "tokens/s", samples, threads)


def rate(core: _core.Engine, ids: NDArray[np.int32], at_once: int, after_step: Callable[[], None] = _NOTHING) -> float:
    """Tokens/s of `ids` from an empty context, `at_once` a step; logits after the last of each step or of all.

    One at a time is decode without a sampler: logits after every token.
    """
    seq = core.sequence_new()
    started = time.perf_counter()
    for start in range(0, len(ids), at_once):
        chunk = ids[start : start + at_once]
        want = at_once == 1 or start + at_once >= len(ids)
        core.step(np.array([seq], np.int32), np.array([len(chunk)], np.int32), chunk, np.array([want], np.uint8))
        after_step()
    elapsed = time.perf_counter() - started
    core.sequence_free(seq)
    return len(ids) / elapsed
