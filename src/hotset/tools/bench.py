"""Speed of a model on this host: load, prefill and decode, and the share reached of what bounds it.

A dense model reads all weights for every token, so random tokens do and the memory bounds it. What a packed one reads
depends on the text: there decode is that of answers, as `hotset run` gives them, and the bound is of what was counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hotset.tools.result import Series

if TYPE_CHECKING:
    from hotset import _core
    from hotset.llm import LLM
    from hotset.tools.run_stats import RunStats

Loader = Callable[[int | None], "LLM"]  # by number of threads; None: as planned, or all cores
_NOTHING: Callable[[], None] = lambda: None  # noqa: E731
# Answers to one and the same would find in memory what it left there; the last one warms up.
BEGINNINGS = (
    "Once upon a time",
    "The history of the town begins",
    "In the morning the two of them",
    "A good way to learn a language is",
    "The most important parts of a machine are",
    "Last year scientists found",
    "When the rain stopped, she",
    "There are three reasons why",
)


@dataclass(frozen=True, slots=True)
class Tests:
    """What to measure. All rates are tokens/s of one sequence."""

    prefills: Sequence[int] = (128, 512, 2048)
    decode: int = 128  # 0: none
    repeats: int = 3


@dataclass(frozen=True, slots=True)
class Bound:
    """What decode of a dense model could reach if reading the weights were all there is to do."""

    threads: int
    bytes_per_token: float
    bandwidth_bytes_per_s: float
    tokens_per_s: float  # measured

    @property
    def share(self) -> float:
        return self.tokens_per_s * self.bytes_per_token / self.bandwidth_bytes_per_s


@dataclass(frozen=True, slots=True)
class Answers:
    """Decode of a packed model under one plan."""

    plan: dict[str, Any]  # Plan.as_json
    samples: list[RunStats]

    @property
    def median(self) -> RunStats:
        """The sample of median speed; of an even number the slower one."""
        return sorted(self.samples, key=lambda stats: stats.tokens_per_s)[(len(self.samples) - 1) // 2]

    def as_json(self) -> dict[str, Any]:
        return {"plan": self.plan, "samples": [stats.as_json() for stats in self.samples]}


@dataclass(slots=True)
class Measured:
    series: list[Series] = field(default_factory=list)
    stats: dict[str, float] = field(default_factory=dict)  # of the core, at the end
    packed: bool = False
    answers: dict[int, Answers] = field(default_factory=dict)  # of a packed model, by threads
    notes: list[str] = field(default_factory=list)  # of its plans

    def bounds(self, bandwidths: Mapping[int, float]) -> list[Bound]:
        """One for each decode test whose number of threads has its memory bandwidth measured, in bytes/s."""
        moved = self.stats["bytes_per_token"]
        return [
            Bound(s.threads, moved, bandwidths[s.threads], s.median)
            for s in self.series
            if s.test.startswith("decode") and s.threads in bandwidths
        ]


def measure(
    load: Loader, tests: Tests, threads: Sequence[int | None], after_step: Callable[[], None] = _NOTHING
) -> Measured:
    """Loads the model once for each number of threads; every test runs once to warm up, then `repeats` times.

    Tests longer than the model's context are left out.
    """
    found = Measured()
    for count in threads:
        with load(count) as llm:
            found.series += [Series("load", "s", (llm.core.stats["load_seconds"],), llm.threads)]
            found.series += _prefills(llm, tests, after_step)
            if tests.decode:
                _decode(llm, tests, found, after_step)
            found.stats, found.packed = dict(llm.core.stats), llm.plan is not None
            found.notes += [note for note in (llm.plan.notes if llm.plan else ()) if note not in found.notes]
    return found


def _prefills(llm: LLM, tests: Tests, after_step: Callable[[], None]) -> Iterator[Series]:
    for tokens in tests.prefills:
        if tokens <= llm.context:
            yield _rates(llm, f"prefill{tokens}", tokens, llm.max_step_tokens, tests.repeats, after_step)


def _decode(llm: LLM, tests: Tests, found: Measured, after_step: Callable[[], None]) -> None:
    name, tokens = f"decode{tests.decode}", tests.decode
    if llm.plan is None:
        if tokens <= llm.context:
            found.series.append(_rates(llm, name, tokens, 1, tests.repeats, after_step))
        return
    prompts = [llm.tokenize(text) for text in BEGINNINGS]
    if max(map(len, prompts)) + tokens + 1 > llm.context:
        return
    answer(llm, prompts[-1], tokens, after_step)
    samples = [answer(llm, prompts[i % (len(prompts) - 1)], tokens, after_step) for i in range(tests.repeats)]
    found.answers[llm.threads] = Answers(llm.plan.as_json(), samples)
    found.series.append(Series(name, "tokens/s", tuple(stats.tokens_per_s for stats in samples), llm.threads))


def answer(llm: LLM, prompt: list[int], tokens: int, after_step: Callable[[], None] = _NOTHING) -> RunStats:
    """Of the likeliest answer to a prompt: `tokens` after its first, with drafts where the plan has them."""
    llm.clear()
    with llm.stream(prompt, max_tokens=tokens + 1, temperature=0, ignore_eos=True) as stream:
        for _ in stream:
            after_step()
        return llm.run_stats(stream.completion)


def _rates(llm: LLM, name: str, tokens: int, at_once: int, repeats: int, after_step: Callable[[], None]) -> Series:
    """Of random tokens."""
    ids = np.random.default_rng(tokens).integers(0, llm.config.vocab, tokens, dtype=np.int32)
    rate(llm.core, ids, at_once, after_step)
    samples = tuple(rate(llm.core, ids, at_once, after_step) for _ in range(repeats))
    return Series(name, "tokens/s", samples, llm.threads)


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
