"""What an answer consists of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    token: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class Chunk:
    """One generated token. Texts of all chunks of a sample, joined, are the sample's text.

    text may be empty: while a character is incomplete, or while it may be the beginning of a stop text.
    """

    text: str
    token: int
    logprob: float  # natural logarithm of its probability before any filter
    top_logprobs: tuple[TokenLogprob, ...] = ()  # likeliest first; params.logprobs of them
    index: int = 0  # which of the n samples
    finish_reason: FinishReason | None = None  # set on the last chunk of a sample
    stop_reason: str | int | None = None  # the stop text or token that ended it


@dataclass(frozen=True, slots=True)
class Sample:
    text: str
    tokens: tuple[int, ...]  # with the one that ended it
    logprobs: tuple[float, ...]
    top_logprobs: tuple[tuple[TokenLogprob, ...], ...]
    finish_reason: FinishReason
    stop_reason: str | int | None

    @property
    def cumulative_logprob(self) -> float:
        return sum(self.logprobs)


@dataclass(frozen=True, slots=True)
class Stats:
    """Times of one request, in seconds, waiting for other requests included, and so are their neurons."""

    prompt_tokens: int
    cached_tokens: int  # of the prompt; taken over from earlier requests
    output_tokens: int  # of all samples
    ttft: float  # from request to first token
    total: float
    passes: int = 0  # exact ones through the model that gave tokens after the first; with drafts, several each
    drafted: int = 0  # tokens that a predictor proposed
    accepted: int = 0  # of those, the ones that the exact computation gave too
    latencies: tuple[float, ...] = ()  # of each token of the first sample after its first
    # Of a packed model: what its counters (LLM.stats, neuron_…) grew by from the first token to the last.
    neurons: Mapping[str, float] = field(default_factory=dict)
    samples: int = 1  # that output_tokens are of

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens computed per second; 0 if none was measured."""
        return (self.prompt_tokens - self.cached_tokens) / self.ttft if self.ttft > 0 else 0.0

    @property
    def acceptance(self) -> float:
        """Share of drafted tokens that were right; 0 if none was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def decode_rate(self) -> float:
        """Tokens per second after each sample's first, which belongs to the prompt's time; 0 if there was no second."""
        elapsed, tokens = self.total - self.ttft, self.output_tokens - self.samples
        return tokens / elapsed if tokens > 0 and elapsed > 0 else 0.0

    def latency(self, share: float) -> float:
        """Seconds within which this share of the tokens after the first came, such as 0.99; 0 if there were none."""
        ordered = sorted(self.latencies)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer; with n > 1, `samples` has them all and the properties speak of the first."""

    samples: tuple[Sample, ...]
    seed: int
    stats: Stats

    @property
    def text(self) -> str:
        return self.samples[0].text

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.samples[0].tokens

    @property
    def logprobs(self) -> tuple[float, ...]:
        return self.samples[0].logprobs

    @property
    def finish_reason(self) -> FinishReason:
        return self.samples[0].finish_reason
