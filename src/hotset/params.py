"""How tokens are chosen and when an answer ends."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any

from hotset.errors import UsageError

_SEEDS = 1 << 64
_MOST = (1 << 31) - 1  # the native core counts in 32 bits
_LARGEST = float.fromhex("0x1.fffffep+127")  # and computes in floats of 32 bits


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Filters apply in this order: logit bias, penalties, temperature, top-k, top-p, min-p.

    Same seed, same text: whatever the number of threads, the batch, or the size of prefill chunks.
    Raises: UsageError naming the field, what it got and what it wants.
    """

    max_tokens: int | None = 256  # None: to the end of the context
    temperature: float = 0.0  # 0 takes the likeliest token
    top_k: int = 0  # keep the k likeliest; 0: all
    top_p: float = 1.0  # keep the likeliest that together have this probability
    min_p: float = 0.0  # drop what is less likely than this share of the likeliest
    repetition_penalty: float = 1.0  # divides logits of tokens in prompt and output (arXiv:1909.05858)
    presence_penalty: float = 0.0  # subtracted once from logits of tokens in the output
    frequency_penalty: float = 0.0  # subtracted for every time the token is in the output
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # added; -inf bans a token
    seed: int | None = None  # None: a new one for each request, told in the result
    stop: str | Sequence[str] = ()  # the answer ends before any of these texts
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None  # also tell the n likeliest tokens at each position
    n: int = 1  # samples from one prefill; sample i draws with a seed derived from (seed, i)
    echo: bool = False  # the text starts with the prompt

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            self._integer("max_tokens", 1)
        self._number("temperature", 0.0)
        self._integer("top_k", 0, _MOST)
        self._number("top_p", 0.0, 1.0, open_low=True)
        self._number("min_p", 0.0, 1.0)
        self._number("repetition_penalty", 0.0, open_low=True)
        self._number("presence_penalty")
        self._number("frequency_penalty")
        self._integer("n", 1)
        if self.seed is not None:
            self._integer("seed", 0, _SEEDS - 1)
        if self.logprobs is not None:
            self._integer("logprobs", 0, _MOST)
        for name in ("ignore_eos", "echo"):
            if not isinstance(getattr(self, name), bool):
                raise self._wrong(name, "True or False")
        self._check_bias()
        self._check_stops()

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def _wrong(self, name: str, wanted: str) -> UsageError:
        return UsageError(f"{name} is {_shown(getattr(self, name))}; wanted {wanted}")

    def _integer(self, name: str, low: int, high: int | None = None) -> None:
        value = getattr(self, name)
        if not _is_int(value) or value < low or (high is not None and value > high):
            raise self._wrong(name, f"a whole number of at least {low}" + (f", at most {high}" if high else ""))

    def _number(self, name: str, low: float = -_LARGEST, high: float = _LARGEST, *, open_low: bool = False) -> None:
        value = getattr(self, name)
        if not _is_number(value) or not low <= value <= high or (open_low and value == low):
            least = "" if low == -_LARGEST else f" {'above' if open_low else 'of at least'} {low:g}"
            most = "" if high == _LARGEST else f", at most {high:g}"
            size = ", no larger than floats of 32 bits (3.4e38)" if _is_number(value) and abs(value) > _LARGEST else ""
            raise self._wrong(name, f"a number{least}{most or size}")

    def _check_bias(self) -> None:
        wanted = "a mapping from token id to number, at most 3.4e38 (-inf bans the token)"
        if not isinstance(self.logit_bias, Mapping):
            raise self._wrong("logit_bias", wanted)
        for token, bias in self.logit_bias.items():
            fits = _is_number(bias) and (-sys.float_info.max <= bias <= _LARGEST or bias == -math.inf)
            if not _is_int(token) or token < 0 or not fits:
                raise UsageError(f"logit_bias has {_shown(token)}: {_shown(bias)}; wanted {wanted}")

    def _check_stops(self) -> None:
        if not isinstance(self.stop, (str, Sequence)) or not all(isinstance(s, str) and s for s in self.stops):
            raise self._wrong("stop", "a text or a list of texts, none of them empty")
        ids: Any = self.stop_token_ids
        if not isinstance(ids, Sequence) or not all(_is_int(i) and i >= 0 for i in ids):
            raise self._wrong("stop_token_ids", "a list of token ids")


def merged(params: SamplingParams | None, options: Mapping[str, Any]) -> SamplingParams:
    """`params`, or the defaults, with some fields replaced. Raises UsageError for an unknown field."""
    known = [f.name for f in fields(SamplingParams)]
    for name in options:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
            raise UsageError(f"there is no sampling parameter {name!r}; {hint}")
    return replace(params or SamplingParams(), **options)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _shown(value: object, limit: int = 80) -> str:
    """What was got, in one line: Python gives no text at all to whole numbers of more than 4300 digits."""
    try:
        text = repr(value)
    except ValueError:
        return "too long to be shown"
    return text if len(text) <= limit else f"{text[:limit]}…"


def sample_seed(seed: int, index: int) -> int:
    """Seed of sample `index` of a request; sample 0 keeps the request's own.

    Source: finalizer of splitmix64 (Steele, Lea, Flood 2014), whose outputs for neighbouring inputs are unrelated.
    """
    if index == 0:
        return seed
    z = (seed + index * 0x9E3779B97F4A7C15) % _SEEDS
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % _SEEDS
    z = (z ^ z >> 27) * 0x94D049BB133111EB % _SEEDS
    return z ^ z >> 31
