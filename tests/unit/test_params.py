"""Sampling parameters beyond what the native core can hold: refused by name, whatever their size."""

from __future__ import annotations

import math
from typing import Any

import pytest

from hotset.errors import UsageError
from hotset.params import SamplingParams

MOST = 2**31 - 1


@pytest.mark.parametrize("name", ["top_k", "logprobs"])
def test_counts_have_32_bits(name: str) -> None:
    assert getattr(SamplingParams(**{name: MOST}), name) == MOST
    for value in (MOST + 1, 99999999999, 10**20):
        with pytest.raises(UsageError, match=f"^{name} is {value}; wanted .* at most {MOST}$"):
            SamplingParams(**{name: value})


@pytest.mark.parametrize("name", ["temperature", "repetition_penalty", "presence_penalty", "frequency_penalty"])
def test_numbers_fit_floats_of_32_bits(name: str) -> None:
    SamplingParams(**{name: 3.4e38})
    for value in (3.5e38, 1e300, 10**400, 10**5000, math.inf):
        with pytest.raises(UsageError, match=rf"^{name} is .*; wanted a number.*, no larger than .* 32 bits") as caught:
            SamplingParams(**{name: value})
        assert len(str(caught.value)) < 250


@pytest.mark.parametrize("name", ["top_p", "min_p"])
def test_shares_of_any_size_are_refused(name: str) -> None:
    for value in (10**400, 10**5000):
        with pytest.raises(UsageError, match=f"^{name} is .*, at most 1$"):
            SamplingParams(**{name: value})


def test_biases_that_no_float_holds() -> None:
    wrong: list[dict[Any, Any]] = [{1: 10**400}, {1: -(10**400)}, {1: 10**5000}, {1: 1e39}, {10**5000: math.nan}]
    for bias in wrong:
        with pytest.raises(UsageError, match=r"^logit_bias has .*; wanted a mapping"):
            SamplingParams(logit_bias=bias)
    for banned in (-math.inf, -1e300, -3.4e38):
        assert SamplingParams(logit_bias={1: banned}).logit_bias == {1: banned}
