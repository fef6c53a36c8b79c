"""What the engine needs of the native core and of a tokenizer; tests put small twins in their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hotset.params import SamplingParams

PAGE = 64  # tokens per KV page; native/kernels/kernels.h


class Core(Protocol):
    """The part of `_core.Engine` that steps and keeps sequences; see _core.pyi."""

    def sequence_new(self) -> int: ...
    def sequence_fork(self, seq: int) -> int: ...
    def sequence_free(self, seq: int) -> None: ...
    def sequence_truncate(self, seq: int, tokens: int) -> None: ...
    def sequence_length(self, seq: int) -> int: ...
    def kv_free_tokens(self) -> int: ...
    def step(
        self,
        seqs: NDArray[np.int32],
        counts: NDArray[np.int32],
        tokens: NDArray[np.int32],
        want: NDArray[np.uint8],
        rope_lengths: NDArray[np.int64] | None = None,
        draft: bool = False,
    ) -> int: ...
    def logits(self) -> NDArray[np.float32]: ...
    def token_logprobs(self, targets: NDArray[np.int32]) -> NDArray[np.float32]: ...
    def top_logprobs(self, row: int, n: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]: ...


class Draw(Protocol):
    """Draws the next token of one sequence from a row of the core's last logits; returns (token, log probability)."""

    def __call__(self, row: int) -> tuple[int, float]: ...
    def fork(self) -> Draw:
        """Draws what this one would draw, and does not change it."""


class Decoder(Protocol):
    """Tokens to text as they come; `hotset.tokenizer.StreamDecoder`."""

    def push(self, token: int) -> str: ...
    def flush(self) -> str: ...


DrawFactory = Callable[[SamplingParams, int, list[int]], Draw]  # params, seed, prompt
