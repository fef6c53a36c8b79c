"""Log probabilities of given tokens: logits of a text, perplexity."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotset.engine.engine import Engine
from hotset.errors import InputError, UsageError

_WANT_NONE, _WANT_ALL = 0, 2


@dataclass(frozen=True, slots=True)
class Perplexity:
    """exp of the mean negative log likelihood of `tokens` scored tokens."""

    value: float
    error: float  # standard error of `value`
    tokens: int
    windows: int


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens [start, end) run from an empty context; those from `first` on are scored."""

    start: int
    end: int
    first: int


def half_windows(tokens: int, size: int) -> list[Window]:
    """Whole windows side by side, of which the second half is scored, as llama.cpp's perplexity tool does."""
    starts = range(0, tokens - size + 1, size)
    return [Window(start, start + size, start + size // 2 + 1) for start in starts]


def sliding_windows(tokens: int, size: int, stride: int) -> list[Window]:
    """Windows `stride` apart; each scores what the one before has not, as in Hugging Face's guide to perplexity.

    The first token of a window has nothing before it, so it is never scored: with stride = size, one in `size` is not.
    """
    windows: list[Window] = []
    for start in range(0, tokens, stride):
        end = min(start + size, tokens)
        windows.append(Window(start, end, max(windows[-1].end if windows else 0, start + 1)))
        if end == tokens:
            break
    return windows


def perplexity(
    engine: Engine,
    tokens: list[int],
    windows: list[Window],
    *,
    bos_id: int | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Perplexity:
    """Perplexity of `tokens` over `windows`.

    bos_id: replaces the first token of every window, if given, as llama.cpp does for models that start texts with BOS.
    progress: called with windows done and in all.
    Raises: InputError if no token would be scored, or for a token that the model does not have.
    """
    engine.check_ids(tokens)
    if not any(w.first < w.end for w in windows):
        raise InputError(f"the text has {len(tokens)} tokens, too few to score; give a longer text or a smaller window")
    logprobs: list[float] = []
    for done, window in enumerate(windows):
        chunk = tokens[window.start : window.end]
        if bos_id is not None:
            chunk[0] = bos_id
        logprobs += token_logprobs(engine, chunk, window.first - window.start).tolist()
        progress(done + 1, len(windows))
    values = -np.array(logprobs, np.float64)
    value = math.exp(values.mean())
    error = value * float(values.std()) / math.sqrt(max(len(values) - 1, 1))
    return Perplexity(value, error, len(values), len(windows))


def token_logprobs(engine: Engine, tokens: list[int], first: int = 1) -> NDArray[np.float32]:
    """log p(tokens[i] | tokens before i) for i from `first` (>= 1) on: [len(tokens) - first].

    Raises: UsageError for a smaller `first`; InputError for a token that the model does not have, or too many.
    """
    if first < 1:
        raise UsageError(f"first is {first}; the first token has nothing before it, so wanted at least 1")
    engine.check_ids(tokens)
    with closing(_steps(engine, tokens[:-1], first - 1)) as steps:
        rows = [
            engine.core.token_logprobs(np.array(tokens[start + 1 : start + 1 + count], np.int32))
            for start, count in steps
        ]
    return np.concatenate([*rows, np.empty(0, np.float32)])


def logits(engine: Engine, tokens: list[int]) -> NDArray[np.float32]:
    """Logits after every token: [len(tokens), vocab].

    Raises: InputError for a token that the model does not have, or too many.
    """
    engine.check_ids(tokens)
    out = np.empty((len(tokens), engine.vocab), np.float32)
    with closing(_steps(engine, tokens, 0)) as steps:
        for start, count in steps:
            out[start : start + count] = engine.core.logits()
    return out


def _steps(engine: Engine, tokens: list[int], first: int) -> Generator[tuple[int, int], None, None]:
    """Runs `tokens` on a sequence of their own, holding the engine's lock until it ends or is closed.

    Yields (start, count) of each step from `first` on; its logits are then the core's last.
    """
    rows = engine.most_logit_rows
    silent = [
        (at, min(engine.max_step_tokens, first - at), _WANT_NONE) for at in range(0, first, engine.max_step_tokens)
    ]
    scored = [(at, min(rows, len(tokens) - at), _WANT_ALL) for at in range(first, len(tokens), rows)]
    with engine.lock:
        engine.make_room(len(tokens))
        handle = engine.core.sequence_new()
        try:
            for start, count, want in silent + scored:
                engine.core.step(
                    np.array([handle], np.int32),
                    np.array([count], np.int32),
                    np.array(tokens[start : start + count], np.int32),
                    np.array([want], np.uint8),
                    np.array([len(tokens)], np.int64),
                )
                if want:
                    yield start, count
        finally:
            engine.core.sequence_free(handle)
