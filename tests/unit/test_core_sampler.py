"""The native sampler against a full sort in NumPy: real vocabulary sizes, long sequences, masks, refusals."""

from __future__ import annotations

import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hotset import _core
from hotset.engine.budget import MIB, resident_bytes
from hotset.errors import UsageError

F32 = NDArray[np.float32]


def logits_like_a_model(vocab: int, seed: int = 0) -> F32:
    """A few likely tokens above a wide floor."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(vocab) * 2
    x[rng.integers(0, vocab, 40)] += rng.exponential(5, 40)
    return x.astype(np.float32)


def kept(x: F32, temperature: float, top_k: int, top_p: float, min_p: float) -> set[int]:
    """The tokens that may come out, from the definitions, by sorting everything."""
    order = np.argsort(-x, kind="stable")[: top_k or None]
    p = np.exp((x[order].astype(float) - float(x[order[0]])) / temperature)
    before = np.cumsum(p) - p
    keep = (before < top_p * p.sum()) if top_p < 1 else np.ones(len(p), bool)
    keep[0] = True
    return set(order[keep & (p >= min_p)].tolist())


@pytest.mark.parametrize("vocab", [32000, 151936])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [(1, 5, 1, 0), (0.7, 40, 0.5, 0), (1, 0, 0.3, 0), (1.2, 0, 1, 0.3), (0.9, 60, 0.9, 0.1), (1, 1, 1, 0)],
)
def test_only_what_the_filters_keep_is_drawn(
    vocab: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    x = logits_like_a_model(vocab)
    sampler = _core.Sampler(seed=1, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    drawn = {sampler.sample_logits(x)[0] for _ in range(400)}
    allowed = kept(x, temperature, top_k, top_p, min_p)
    assert drawn <= allowed
    likely = {t for t in allowed if x[t] > x.max() - temperature}  # each at least 1/e as likely as the best
    assert likely <= drawn


def test_filters_cut_exactly_where_a_sort_does() -> None:
    """Bans every kept token but the last one: that one must come out; bans it too: it must not."""
    x = logits_like_a_model(32000)
    order = np.argsort(-x, kind="stable")
    for top_k in (1, 2, 37, 1000, 31999):
        last = int(order[top_k - 1])
        bias = {int(t): -1e4 for t in order if t != last}  # all sink together, so `last` is now the best ...
        assert _core.Sampler(seed=0, top_k=1, logit_bias=bias).sample_logits(x)[0] == last
        flat = np.where(np.isin(np.arange(x.size), order[:top_k]), x + 50, x).astype(np.float32)
        draws = {_core.Sampler(seed=s, top_k=top_k, temperature=1e6).sample_logits(flat)[0] for s in range(50)}
        assert draws <= set(order[:top_k].tolist())  # nearly uniform, and never outside


def test_draws_of_one_stream_are_uniform_and_independent() -> None:
    """Chi-square of single draws and of successive pairs among 8 equal tokens; passed wrongly once in 10^6."""
    sampler = _core.Sampler(seed=123)
    x = np.zeros(8, np.float32)
    draws = np.array([sampler.sample_logits(x)[0] for _ in range(64000)])
    for counts in (np.bincount(draws, minlength=8), np.bincount(draws[::2] * 8 + draws[1::2], minlength=64)):
        expected, freedom = counts.sum() / counts.size, counts.size - 1
        chi2 = float(((counts - expected) ** 2).sum() / expected)
        deviations = ((chi2 / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
        assert abs(deviations) < 4.9  # Wilson and Hilferty's normal approximation


def test_penalties_along_a_greedy_sequence() -> None:
    """200 tokens: counts must grow step by step, prompt and output apart."""
    rng = np.random.default_rng(5)
    prompt = rng.integers(0, 60, 30).astype(np.int32)
    sampler = _core.Sampler(
        seed=0, temperature=0, repetition_penalty=1.2, presence_penalty=0.3, frequency_penalty=0.15, logit_bias={3: 1.5}
    )
    sampler.accept_prompt(prompt[:10])
    sampler.accept_prompt(prompt[10:])
    seen, output = set(prompt.tolist()), Counter[int]()
    for _ in range(200):
        logits = rng.standard_normal(60).astype(np.float32)
        x = logits.astype(float)
        x[3] += 1.5
        for token in seen:
            x[token] = x[token] / 1.2 if x[token] > 0 else x[token] * 1.2
        for token, count in output.items():
            x[token] -= 0.3 + 0.15 * count
        token, logprob = sampler.sample_logits(logits)
        assert token == int(x.argmax())
        assert logprob == pytest.approx(logits[token] - math.log(np.exp(logits.astype(float)).sum()), abs=1e-5)
        seen.add(token)
        output[token] += 1


def test_log_probability_is_that_of_the_model_not_of_the_filters() -> None:
    x = logits_like_a_model(32000)
    token, logprob = _core.Sampler(seed=0, top_k=1, temperature=0.1, logit_bias={7: 100}).sample_logits(x)
    assert token == 7
    shifted = x.astype(float) - float(x.max())
    assert logprob == pytest.approx(shifted[7] - math.log(np.exp(shifted).sum()), abs=1e-4)


def bits(allowed: NDArray[np.bool_]) -> NDArray[np.uint32]:
    padded = np.zeros(-(-allowed.size // 32) * 32, bool)
    padded[: allowed.size] = allowed
    return np.packbits(padded, bitorder="little").view(np.uint32)


def test_mask() -> None:
    rng = np.random.default_rng(9)
    x = rng.standard_normal(1000).astype(np.float32)
    allowed = rng.random(1000) < 0.02
    sampler = _core.Sampler(seed=1, temperature=1e4)
    assert {sampler.sample_logits(x, bits(allowed))[0] for _ in range(2000)} == set(np.flatnonzero(allowed).tolist())
    greedy = _core.Sampler(seed=1, temperature=0)
    assert greedy.sample_logits(x, bits(allowed))[0] == int(np.where(allowed, x, -np.inf).argmax())


def test_logits_are_not_changed() -> None:
    x = logits_like_a_model(1000)
    before = x.copy()
    x.flags.writeable = False
    _core.Sampler(seed=0, top_k=3, logit_bias={1: 2.0}).sample_logits(x)
    assert (x == before).all()


def test_a_seed_gives_the_same_tokens_in_every_release() -> None:
    """xoshiro256** seeded by splitmix64, computed here in Python, and the inverse of the cumulative sum."""
    word = 2**64 - 1

    def splitmix(state: int) -> tuple[int, int]:
        state = (state + 0x9E3779B97F4A7C15) & word
        z = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & word
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & word
        return state, z ^ z >> 31

    s, state = [], 2024
    for _ in range(4):
        state, z = splitmix(state)
        s.append(z)

    def rotate(v: int, k: int) -> int:
        return (v << k | v >> (64 - k)) & word

    def uniform() -> float:
        result = rotate(s[1] * 5 & word, 7) * 9 & word
        t = s[1] << 17 & word
        s[2] ^= s[0]
        s[3] ^= s[1]
        s[1] ^= s[2]
        s[0] ^= s[3]
        s[2] ^= t
        s[3] = rotate(s[3], 45)
        return (result >> 11) * 2.0**-53

    x = np.log(np.arange(1, 3001)).astype(np.float32)
    cumulative = np.cumsum(np.arange(1, 3001))
    sampler = _core.Sampler(seed=2024)
    for _ in range(200):
        point = uniform() * cumulative[-1]
        assert abs(sampler.sample_logits(x)[0] - int(np.searchsorted(cumulative, point, side="right"))) <= 1  # rounding


def test_samplers_take_memory_by_the_text_not_by_the_vocabulary() -> None:
    """A thousand queued prompts, and a hundred answers under way, of a vocabulary of 1 MiB of logits."""
    vocab = 1 << 18
    x = logits_like_a_model(vocab)
    prompt = np.array([1, vocab - 1, 5], np.int32)
    options: list[dict[str, Any]] = [{}, {"repetition_penalty": 1.1, "frequency_penalty": 0.1}]
    for some in options:  # what the first ones take, all share
        _core.Sampler(seed=0, **some).sample_logits(x)
    before = resident_bytes()
    samplers = [_core.Sampler(seed=i, **options[i % 2]) for i in range(1000)]
    for sampler in samplers:
        sampler.accept_prompt(prompt)
    assert resident_bytes() - before < 8 * MIB
    for sampler in samplers[:100]:
        sampler.sample_logits(x)
        sampler.fork().sample_logits(x)
    assert resident_bytes() - before < 16 * MIB


def test_samplers_of_several_threads_do_not_disturb_each_other() -> None:
    """What they compute with is lent to them for a choice."""
    x = logits_like_a_model(32000)
    options = {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.2}

    def draws(seed: int) -> list[int]:
        sampler = _core.Sampler(seed=seed, **options)
        return [sampler.sample_logits(x)[0] for _ in range(200)]

    alone = [draws(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(draws, range(4))) == alone


def test_a_prompt_accepted_among_the_output_keeps_its_counts() -> None:
    x = np.zeros(50, np.float32)
    sampler = _core.Sampler(seed=0, temperature=0, presence_penalty=1.0)
    assert [sampler.sample_logits(x)[0] for _ in range(3)] == [0, 1, 2]
    sampler.accept_prompt(np.array([40, 1, 3, 0, 40], np.int32))
    assert [sampler.sample_logits(x)[0] for _ in range(3)] == [3, 4, 5]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"temperature": -1}, "temperature must be >= 0"),
    ({"temperature": math.nan}, "temperature"),
    ({"top_k": -1}, "top_k must be >= 0"),
    ({"top_p": 1.5}, "top_p must be between 0 and 1, got 1.5"),
    ({"min_p": -0.1}, "min_p must be between 0 and 1"),
    ({"repetition_penalty": 0}, "repetition_penalty must be > 0"),
    ({"presence_penalty": math.inf}, "presence_penalty must be finite"),
    ({"frequency_penalty": math.nan}, "frequency_penalty must be finite"),
    ({"logit_bias": {-1: 1.0}}, "negative"),
    ({"logit_bias": {1: math.nan}}, "logit_bias of token 1"),
]


@pytest.mark.parametrize(("values", "message"), BAD)
def test_bad_parameters_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _core.Sampler(seed=0, **values)


def test_bad_logits_are_refused() -> None:
    x = np.zeros(100, np.float32)
    sampler = _core.Sampler(seed=0)
    for bad, name in ((np.nan, "NaN"), (np.inf, r"\+inf")):
        x[17] = bad
        with pytest.raises(UsageError, match=f"token 17 is {name}"):
            sampler.sample_logits(x)
    with pytest.raises(UsageError, match="no token can be chosen"):
        sampler.sample_logits(np.zeros(100, np.float32), np.zeros(4, np.uint32))
    with pytest.raises(UsageError, match=r"mask has shape \[3\], wanted \[4\]"):
        sampler.sample_logits(np.zeros(100, np.float32), np.zeros(3, np.uint32))
    with pytest.raises(UsageError, match="logits are empty"):
        sampler.sample_logits(np.zeros(0, np.float32))
    with pytest.raises(UsageError, match="token 100, outside the vocabulary of 100"):
        _core.Sampler(seed=0, logit_bias={100: 1.0}).sample_logits(np.zeros(100, np.float32))
    sampler.accept_prompt(np.array([100], np.int32))
    with pytest.raises(UsageError, match="token 100 is outside the vocabulary of 100"):
        sampler.sample_logits(np.zeros(100, np.float32))


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_a_fork_draws_what_the_original_draws_and_leaves_it_alone(temperature: float) -> None:
    rows = [logits_like_a_model(1000, seed) for seed in range(12)]
    penalties = {"repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.3}

    def sampler() -> _core.Sampler:
        made = _core.Sampler(seed=5, temperature=temperature, top_p=0.9, logit_bias={3: 2.0}, **penalties)
        made.accept_prompt(np.array([1, 2, 3, 999], np.int32))
        return made

    alone, forked = sampler(), sampler()
    want = [alone.sample_logits(row) for row in rows]
    for at in range(0, len(rows), 3):
        assert [forked.fork().sample_logits(rows[at]) for _ in range(2)] == [want[at]] * 2
        ahead = forked.fork()
        assert [ahead.sample_logits(row) for row in rows[at : at + 3]] == want[at : at + 3]
        assert [forked.sample_logits(row) for row in rows[at : at + 3]] == want[at : at + 3]
