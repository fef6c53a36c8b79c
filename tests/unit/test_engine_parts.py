"""The engine's small parts: parameters, stop texts, windows, budgets."""

from __future__ import annotations

import math
import signal
import threading
import time
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from engine_twin import VOCAB, CoreTwin
from hypothesis import given
from hypothesis import strategies as st

from hotset.config import LayerConfig, ModelConfig
from hotset.engine.budget import Allotment, Host, allot, kv_bytes, parse_bytes, scratch_bytes
from hotset.engine.lock import FairLock
from hotset.engine.prefix_cache import PrefixCache
from hotset.engine.score import half_windows, sliding_windows
from hotset.engine.stops import StopMatcher
from hotset.errors import MemoryBudgetError, UsageError
from hotset.params import SamplingParams, merged, sample_seed

MIB = 1 << 20
SMALL = ModelConfig(
    hidden=576, vocab=49152, ffn=1536, heads=9, kv_heads=3, head_dim=64, context=8192, attention_scale=0.125,
    layers=(LayerConfig(),) * 30,
)  # fmt: skip
HOST = Host(base=50 * MIB, free=4096 * MIB)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("max_tokens", 0, "at least 1"),
        ("max_tokens", 1.5, "whole number"),
        ("temperature", -0.1, "at least 0"),
        ("temperature", math.nan, "a number"),
        ("temperature", "hot", "a number"),
        ("top_k", -1, "at least 0"),
        ("top_k", True, "whole number"),
        ("top_p", 0, "above 0, at most 1"),
        ("top_p", 1.01, "above 0, at most 1"),
        ("min_p", 2, "at most 1"),
        ("repetition_penalty", 0, "above 0"),
        ("presence_penalty", math.inf, "a number"),
        ("frequency_penalty", None, "a number"),
        ("logit_bias", [1], "a mapping"),
        ("logit_bias", {1: math.inf}, "a mapping"),
        ("logit_bias", {-1: 0.0}, "a mapping"),
        ("seed", -1, "at least 0"),
        ("seed", 1 << 64, "at most 18446744073709551615"),
        ("stop", [""], "none of them empty"),
        ("stop", "", "none of them empty"),
        ("stop", 5, "a text or a list"),
        ("stop_token_ids", [-1], "token ids"),
        ("stop_token_ids", 2, "token ids"),
        ("ignore_eos", 1, "True or False"),
        ("logprobs", -1, "at least 0"),
        ("n", 0, "at least 1"),
    ],
)
def test_wrong_parameters_are_named_with_value_and_what_is_wanted(name: str, value: Any, wanted: str) -> None:
    with pytest.raises(UsageError, match=f"^{name} .*{wanted}"):
        SamplingParams(**{name: value})


def test_parameters_are_merged_on_top_of_others() -> None:
    base = SamplingParams(temperature=0.5, seed=3)
    assert merged(base, {"seed": 4}) == replace(base, seed=4)
    assert merged(None, {}) == SamplingParams()
    with pytest.raises(UsageError, match=r"'max_token'; did you mean max_tokens\?"):
        merged(base, {"max_token": 4})


def test_seeds_of_samples_are_all_different_and_fit_64_bits() -> None:
    seeds = {sample_seed(seed, i) for seed in range(30) for i in range(1, 30)}
    assert len(seeds) == 30 * 29 and max(seeds) < 1 << 64
    assert sample_seed(17, 0) == 17


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.data())
def test_stop_texts_are_found_however_the_text_is_cut(text: str, stops: list[str], data: st.DataObject) -> None:
    matcher, out, rest = StopMatcher(stops), "", text
    found = None
    while rest and found is None:
        cut = data.draw(st.integers(1, len(rest)))
        piece, found = matcher.push(rest[:cut])
        out, rest = out + piece, rest[cut:]
        if found is None:
            seen = text[: len(text) - len(rest)]
            held = seen[len(out) :]
            assert held == "" or any(stop.startswith(held) for stop in stops), "nothing is held back without need"
    places = [text.find(stop) for stop in stops if stop in text]
    if not places:
        assert found is None and out + matcher.flush() == text
    else:
        assert found in stops and text[len(out) :].startswith(found)
        assert len(out) >= min(places) and not any(stop in out for stop in stops)


def test_half_windows_are_those_of_llama_cpp() -> None:
    windows = half_windows(1300, 512)
    assert [(w.start, w.end) for w in windows] == [(0, 512), (512, 1024)]
    assert [w.end - w.first for w in windows] == [255, 255], "n_ctx - n_ctx / 2 - 1 tokens of each are scored"


@given(st.integers(2, 300), st.integers(2, 60), st.data())
def test_sliding_windows_score_every_token_once(tokens: int, size: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, size))
    windows = sliding_windows(tokens, size, stride)
    scored = [i for w in windows for i in range(w.first, w.end)]
    unscored = {0} | ({w.start for w in windows} if stride == size else set())
    assert scored == [i for i in range(tokens) if i not in unscored]
    assert all(w.end - w.start <= size and w.first > w.start for w in windows if w.first < w.end)


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GiB", 4 << 30), ("500MB", 500 * 10**6), ("1.5 gib", 3 << 29), ("1024", 1024), (7, 7), ("2K", 2000)],
)
def test_sizes_are_read(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "4 GiBs", "0", 0, True, "1e9"])
def test_sizes_that_are_none_are_refused(text: Any) -> None:
    with pytest.raises(UsageError, match="is no size"):
        parse_bytes(text)


def spend(memory: int | None, weights: int = 100 * MIB, host: Host = HOST, **options: Any) -> Allotment:
    defaults = {"kv": "f16", "context": None, "kv_tokens": None}
    return allot(SMALL, weights, host, memory=memory, **(defaults | options))


def test_kv_cache_bytes_are_those_of_the_pages() -> None:
    assert kv_bytes(SMALL, "f16", 64) == 64 * 30 * 3 * 64 * 2 * 2
    assert kv_bytes(SMALL, "f16", 65) == 2 * kv_bytes(SMALL, "f16", 64)
    assert kv_bytes(SMALL, "int8", 64) == 64 * 30 * 3 * (2 * 64 + (2 + 1) * 2)


def test_a_large_budget_gives_the_models_context_and_a_small_one_what_fits() -> None:
    assert spend(1024 * MIB) == Allotment(8192, 8192, 512)
    tight = spend(300 * MIB)
    assert 512 <= tight.context < 8192 and tight.context % 64 == 0
    used = 50 * MIB + 100 * MIB + scratch_bytes(SMALL, tight.max_step_tokens) + kv_bytes(SMALL, "f16", tight.context)
    assert 300 * MIB - 64 * MIB - kv_bytes(SMALL, "f16", 64) <= used <= 300 * MIB - 64 * MIB
    assert spend(300 * MIB, kv="int8").context > tight.context
    assert spend(None, host=Host(50 * MIB, 300 * MIB)).context < spend(None).context == 8192


@pytest.mark.parametrize("options", [{}, {"context": 4096}, {"context": 512, "kv_tokens": 3000}])
def test_the_least_budget_works_and_nothing_below(options: dict[str, int]) -> None:
    with pytest.raises(MemoryBudgetError) as caught:
        spend(1, **options)
    least = int(str(caught.value).split("least that works is ")[1].split("MiB")[0]) * MIB
    allotment = spend(least, **options)
    assert allotment.context >= options.get("context", 512)
    assert allotment.kv_tokens >= options.get("kv_tokens", 0)
    with pytest.raises(MemoryBudgetError):
        spend(least - MIB, **options)


def test_mapped_weights_need_no_free_memory_but_count_in_a_budget() -> None:
    host = Host(50 * MIB, 400 * MIB)
    assert spend(None, weights=4096 * MIB, host=host, mapped=True).context >= 512
    with pytest.raises(MemoryBudgetError, match="400MiB of memory are free"):
        spend(None, weights=4096 * MIB, host=host)
    with pytest.raises(MemoryBudgetError, match="budget of 1024MiB"):
        spend(1024 * MIB, weights=4096 * MIB, host=host, mapped=True)


def test_a_budget_beyond_what_is_granted() -> None:
    host = Host(50 * MIB, 0, limit=600 * MIB)  # free: others may give it back
    least = spend(400 * MIB, host=host)
    assert spend(4096 * MIB, host=host, context=least.context) == replace(least, max_step_tokens=512)
    with pytest.raises(MemoryBudgetError, match=r"take \d+MiB within the budget of 4096MiB, .* grants 600MiB in all"):
        spend(4096 * MIB, weights=500 * MIB, host=host)
    assert spend(4096 * MIB, weights=2048 * MIB, host=host, mapped=True, context=512).context == 512
    assert spend(4096 * MIB, weights=500 * MIB, host=host.unlimited()).context == 8192


def test_this_host_can_be_measured() -> None:
    host = Host.measure()
    assert 10 * MIB < host.base < host.free < host.limit


def test_the_prefix_cache_keeps_the_longest_of_each_conversation() -> None:
    core = CoreTwin(pages=64, max_step_tokens=64)
    cache = PrefixCache(core)

    def keep(tokens: list[int]) -> None:
        cache.keep(core.sequence_new(), tokens)

    long = [i % VOCAB for i in range(40)]
    keep(long[:20])
    keep(long)
    keep(long[:30])
    assert len(cache) == 1, "beginnings of another entry add nothing"
    keep([9] * 20)
    assert len(cache) == 2
    keep([1, 2, 3])
    assert len(cache) == 2, "too short to be worth it"
    assert cache.fork_longest([5] * 30) is None
    while cache.evict():
        pass
    assert len(cache) == 0 and not cache.evict()


def test_the_lock_goes_round_and_lets_in_one_at_a_time() -> None:
    lock, order, start = FairLock(), [], threading.Barrier(3)

    def work(name: int) -> None:
        start.wait()
        for _ in range(300):
            with lock:
                before = len(order)
                order.append(name)
                time.sleep(1e-5)  # lets others run, as a step does
                assert len(order) == before + 1

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(order) == 900
    middle = order[200:500]
    assert sum(a != b for a, b in pairwise(middle)) > 250, "whoever has had it goes to the end of the queue"


def test_an_interrupt_at_any_moment_leaves_no_lock_behind() -> None:
    lock, interrupted, armed = FairLock(), 0, [False]

    def interrupt(*_: object) -> None:
        if armed[0]:
            armed[0] = False
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for i in range(4000):
            try:
                armed[0] = True
                signal.setitimer(signal.ITIMER_REAL, (1 + i % 40) * 1e-6)
                for _ in range(10):
                    with lock:
                        pass
            except KeyboardInterrupt:
                interrupted += 1
            armed[0] = False
            with lock:  # would wait for ever
                pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 400
