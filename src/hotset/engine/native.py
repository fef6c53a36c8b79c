"""Samplers of the native core, as the engine wants them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hotset import _core
from hotset.engine.backend import Draw, DrawFactory
from hotset.errors import ModelError, UsageError
from hotset.params import SamplingParams


def draw_factory(core: _core.Engine) -> DrawFactory:
    """Samplers that read the last logits of `core`."""

    def make(params: SamplingParams, seed: int, prompt: list[int]) -> Draw:
        sampler = _core.Sampler(
            seed=seed,
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            repetition_penalty=params.repetition_penalty,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            logit_bias=dict(params.logit_bias),
        )
        sampler.accept_prompt(np.array(prompt, np.int32))
        return _NativeDraw(sampler, core)

    return make


@dataclass(frozen=True, slots=True)
class _NativeDraw:
    sampler: _core.Sampler
    core: _core.Engine

    def __call__(self, row: int) -> tuple[int, float]:
        return _sample(self.sampler, self.core, row)

    def fork(self) -> _NativeDraw:
        return _NativeDraw(self.sampler.fork(), self.core)


def _sample(sampler: _core.Sampler, core: _core.Engine, row: int) -> tuple[int, float]:
    try:
        return sampler.sample(core, row)
    except UsageError as error:
        if (core.logits()[row] < np.inf).all():  # false for NaN too
            raise
        raise ModelError(
            f"the model computes what is no number: {error}. Its weights are damaged or too large for their format; "
            "convert it again from a good source"
        ) from None
