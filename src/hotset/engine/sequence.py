"""The state of one request and of its samples."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from hotset.engine.backend import Decoder, Draw
from hotset.engine.output import Chunk, Completion, FinishReason, Sample, Stats
from hotset.engine.stops import StopMatcher
from hotset.params import SamplingParams


@dataclass(slots=True, eq=False)
class Sequence:
    """One inference timeline: tokens known, and how many of them the KV cache holds."""

    request: Request
    index: int
    tokens: list[int]  # prompt, then output
    draw: Draw | None  # None: finished; it would keep the core's memory for as long as somebody keeps the answer
    decoder: Decoder
    stops: StopMatcher
    handle: int | None = None  # of the native sequence; None: nothing computed
    computed: int = 0  # tokens in the KV cache
    shares_page: bool = False  # its last KV page may belong to another sequence too, and is copied when written
    served: int = 0  # when it last had its turn; turns are numbered
    finish_reason: FinishReason | None = None
    chunks: list[Chunk] = field(default_factory=list)

    @property
    def pending(self) -> int:
        """Tokens known but not yet in the KV cache; 1 while decoding."""
        return len(self.tokens) - self.computed

    def sample(self) -> Sample:
        """The sample as far as it has come."""
        last = self.chunks[-1] if self.chunks else None
        return Sample(
            text="".join(chunk.text for chunk in self.chunks),
            tokens=tuple(chunk.token for chunk in self.chunks),
            logprobs=tuple(chunk.logprob for chunk in self.chunks),
            top_logprobs=tuple(chunk.top_logprobs for chunk in self.chunks),
            finish_reason=self.finish_reason or "cancelled",
            stop_reason=last.stop_reason if last else None,
        )


@dataclass(slots=True, eq=False)
class Request:
    """A prompt with its n samples. `chunks` is the queue between the engine and whoever reads the answer."""

    prompt: list[int]
    params: SamplingParams
    seed: int
    stop_tokens: frozenset[int]
    echoed: str = ""  # what each sample's text starts with: the prompt, if it is to be part of the answer
    number: int = 0  # order of arrival
    sequences: list[Sequence] = field(default_factory=list)
    chunks: deque[Chunk] = field(default_factory=deque)
    error: BaseException | None = None
    abandoned: bool = False  # nobody reads it any more; the engine cancels it before its next step
    cached_tokens: int = 0
    passes: int = 0  # steps that gave tokens after the prompt's
    drafted: int = 0  # tokens
    accepted: int = 0  # of those, the ones that the exact logits gave too
    started: float = field(default_factory=time.perf_counter)
    times: list[float] = field(default_factory=list)  # when each token of the first sample came
    ended: float | None = None
    counted: list[Mapping[str, float]] = field(default_factory=list)  # by the core, at the first and the last token

    def count(self, counters: Mapping[str, float]) -> None:
        """A token came; counters: of the core, since it was loaded."""
        self.counted = [*self.counted[:1], counters]

    @property
    def finished(self) -> bool:
        return self.ended is not None

    def completion(self) -> Completion:
        """The answer as far as it has come."""
        end = self.ended or time.perf_counter()
        stats = Stats(
            prompt_tokens=len(self.prompt),
            cached_tokens=self.cached_tokens,
            output_tokens=sum(len(s.chunks) for s in self.sequences),
            ttft=(self.times[0] if self.times else end) - self.started,
            total=end - self.started,
            passes=self.passes,
            drafted=self.drafted,
            accepted=self.accepted,
            latencies=tuple(later - before for before, later in pairwise(self.times)),
            neurons=_growth(*self.counted) if len(self.counted) == 2 else {},
            samples=len(self.sequences),
        )
        return Completion(tuple(s.sample() for s in self.sequences), self.seed, stats)


def _growth(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    return {name: value - before[name] for name, value in after.items()}
