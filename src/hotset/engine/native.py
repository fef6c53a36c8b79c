"""Samplers of the native core, as the engine wants them."""

from __future__ import annotations

import numpy as np

from hotset import _core
from hotset.engine.backend import Draw, DrawFactory
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
        return lambda row: sampler.sample(core, row)

    return make
