"""The sampler's distribution: small cases by hand, then the native sampler's draws against it."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from hotset import _core
from hotset.reference.sampling import Filters, distribution

LOGITS = np.log(np.array([0.1, 0.4, 0.05, 0.25, 0.2]))


@pytest.mark.parametrize(
    ("filters", "want"),
    [
        (Filters(), [0.1, 0.4, 0.05, 0.25, 0.2]),
        (Filters(temperature=0), [0, 1, 0, 0, 0]),
        (Filters(temperature=0.5), np.array([0.01, 0.16, 0.0025, 0.0625, 0.04]) / 0.275),
        (Filters(top_k=2), [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]),
        (Filters(top_p=0.6), [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]),
        (Filters(top_p=0.0), [0, 1, 0, 0, 0]),
        (Filters(min_p=0.5), [0, 0.4 / 0.85, 0, 0.25 / 0.85, 0.2 / 0.85]),
        (Filters(logit_bias={2: math.log(20)}), np.array([0.1, 0.4, 1.0, 0.25, 0.2]) / 1.95),
        (Filters(logit_bias={1: -math.inf}), np.array([0.1, 0, 0.05, 0.25, 0.2]) / 0.6),
        (Filters(top_k=3, top_p=0.7), [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]),  # of the three that top-k left
    ],
)
def test_by_hand(filters: Filters, want: Any) -> None:
    assert distribution(LOGITS, filters) == pytest.approx(np.asarray(want, dtype=float))


def test_penalties_by_hand() -> None:
    x = np.array([2.0, -1.0, 0.5, 0.0])
    filters = Filters(repetition_penalty=2.0, presence_penalty=0.25, frequency_penalty=0.125)
    got = distribution(x, filters, prompt=[0, 1], output=[2, 2])
    logits = np.array([1.0, -2.0, 0.25 - 0.25 - 2 * 0.125, 0.0])
    assert got == pytest.approx(np.exp(logits) / np.exp(logits).sum())


def test_equal_logits_keep_the_lower_tokens() -> None:
    assert distribution(np.zeros(5), Filters(top_k=2)).tolist() == [0.5, 0.5, 0, 0, 0]


CASES = {
    "plain": Filters(),
    "cold": Filters(temperature=0.3),
    "top_k": Filters(top_k=7),
    "top_p": Filters(top_p=0.8, temperature=1.3),
    "min_p": Filters(min_p=0.08),
    "all": Filters(temperature=0.8, top_k=20, top_p=0.9, min_p=0.02, logit_bias={3: 2.0, 5: -1.0}),
    "penalties": Filters(repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2),
}


@pytest.mark.parametrize("name", CASES)
def test_native_draws_follow_the_distribution(name: str) -> None:
    """Chi-square over 20000 first draws, each by a sampler of its own; the limit is passed once in 10^6 runs."""
    filters, draws, vocab = CASES[name], 20000, 50
    logits = (2 * np.random.default_rng(1).standard_normal(vocab)).astype(np.float32)
    prompt = [4, 4, 9, 30]
    want = distribution(logits, filters, prompt=prompt)
    counts = np.zeros(vocab)
    for seed in range(draws):
        sampler = _core.Sampler(seed=seed, **(asdict(filters) | {"logit_bias": dict(filters.logit_bias)}))
        sampler.accept_prompt(np.array(prompt, np.int32))
        counts[sampler.sample_logits(logits)[0]] += 1
    assert not counts[want == 0].any()
    expected = draws * want
    usual, rare = expected >= 5, (expected < 5) & (want > 0)
    got, hoped = [*counts[usual], counts[rare].sum()], [*expected[usual], max(expected[rare].sum(), 1e-9)]
    if not rare.any():
        got, hoped = got[:-1], hoped[:-1]
    chi2 = sum((g - h) ** 2 / h for g, h in zip(got, hoped, strict=True))
    freedom = len(got) - 1
    # Wilson and Hilferty: (chi2 / k)^(1/3) is about normal with mean 1 - 2 / 9k and variance 2 / 9k
    z = ((chi2 / max(freedom, 1)) ** (1 / 3) - (1 - 2 / (9 * max(freedom, 1)))) / math.sqrt(2 / (9 * max(freedom, 1)))
    assert z < 4.75


@pytest.mark.parametrize("name", CASES)
def test_native_greedy_and_log_probability(name: str) -> None:
    filters = replace(CASES[name], temperature=0.0)
    logits = (2 * np.random.default_rng(2).standard_normal(50)).astype(np.float32)
    sampler = _core.Sampler(seed=0, **(asdict(filters) | {"logit_bias": dict(filters.logit_bias)}))
    output: list[int] = []
    for _ in range(6):  # penalties count what was drawn
        token, logprob = sampler.sample_logits(logits)
        assert token == int(np.argmax(distribution(logits, filters, output=output)))
        assert logprob == pytest.approx(math.log(distribution(logits, Filters())[token]), abs=1e-5)
        output.append(token)
