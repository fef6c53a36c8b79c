"""LLM on a real, tiny model: what every parameter does, and that nothing else changes the text."""

from __future__ import annotations

import gc
import json
import math
from pathlib import Path

import numpy as np
import pytest

from hotset import LLM, SamplingParams
from hotset.engine import Engine
from hotset.engine.native import draw_factory
from hotset.errors import InputError, UsageError

PROMPT = "Once upon a time"
STORY = json.loads((Path(__file__).parents[1] / "golden/data/stories260k/story.json").read_text(encoding="utf-8"))
WARM = SamplingParams(temperature=1.0, seed=11, max_tokens=40)


def test_the_five_lines_of_the_readme(stories_store: Path) -> None:
    with LLM(stories_store, context=128) as llm:
        assert llm.generate(PROMPT, max_tokens=12).text == ", there was a little girl named Lily. She"
        assert llm.context == 128
    with pytest.raises(UsageError, match="closed"):
        llm.generate(PROMPT)


def test_closing_frees_the_memory_though_the_answer_is_kept(smollm2_store: Path) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    llm = LLM(smollm2_store, context=256)
    kept = llm.generate(PROMPT, max_tokens=3)
    held = resident()
    gc.disable()  # it must not take the collector
    llm.close()
    gc.enable()
    assert len(kept.tokens) == 3 and resident() < held - llm.store.files["resident.safetensors"].bytes // 2


def test_streams_and_results_tell_the_same(stories: LLM) -> None:
    chunks = list(stories.stream(PROMPT, WARM))
    whole = stories.generate(PROMPT, WARM)
    assert "".join(c.text for c in chunks) == whole.text
    assert tuple(c.token for c in chunks) == whole.tokens
    assert tuple(c.logprob for c in chunks) == whole.logprobs
    assert [c.finish_reason for c in chunks] == [None] * 39 + ["length"]
    assert whole.stats.output_tokens == 40 and whole.stats.ttft <= whole.stats.total


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_no_token(stories: LLM, stories_store: Path, threads: int) -> None:
    wanted = stories.generate(PROMPT, WARM)
    with LLM(stories_store, threads=threads) as llm:
        assert llm.threads == threads
        assert llm.generate(PROMPT, WARM).tokens == wanted.tokens
        assert llm.generate(PROMPT, WARM).logprobs == wanted.logprobs, "not a bit of a logit differs either"


@pytest.mark.parametrize("step", [1, 2, 7, 64])
def test_chunks_of_prefill_change_no_token(stories: LLM, step: int) -> None:
    prompt = stories.tokenize(STORY["text"][:200])
    stories.clear()  # the second engine below does not know of its prefixes
    engine = Engine(
        stories.core,
        vocab=stories.config.vocab,
        context=512,
        max_step_tokens=step,
        draw_factory=draw_factory(stories.core),
        make_decoder=stories.tokenizer.stream,
        token_text=stories.tokenizer.token_text,
        reuse=False,
    )
    requests = [engine.submit(prompt[: len(prompt) - i], WARM, 11, frozenset()) for i in range(3)]
    while not all(r.finished for r in requests):
        engine.advance(next(r for r in requests if not r.finished))
    for i, request in enumerate(requests):
        alone = stories.generate(prompt[: len(prompt) - i], WARM)
        assert request.completion().tokens == alone.tokens
        assert request.completion().logprobs == alone.logprobs


def test_company_in_a_batch_changes_no_token(stories: LLM) -> None:
    prompts = [PROMPT, "Lily", "The big dog", "One day, Tom and Sam", PROMPT, "It was"]
    together = stories.generate(prompts, WARM)
    assert [c.tokens for c in together] == [stories.generate(p, WARM).tokens for p in prompts]
    assert together[0].tokens == together[4].tokens


def test_reused_prefixes_change_no_token(stories_store: Path) -> None:
    turns = [PROMPT, PROMPT + ", there was a cat", PROMPT + ", there was a dog. The dog", PROMPT, "Lily"]
    with LLM(stories_store) as llm, LLM(stories_store, reuse=False) as fresh:
        for turn in turns:
            reused, computed = llm.generate(turn, WARM), fresh.generate(turn, WARM)
            assert reused.tokens == computed.tokens and reused.logprobs == computed.logprobs
            assert computed.stats.cached_tokens == 0
        assert llm.generate(turns[1], WARM).stats.cached_tokens > 5
        llm.clear()
        assert llm.generate(turns[1], WARM).stats.cached_tokens == 0


def test_samples_are_different_and_repeatable(stories: LLM) -> None:
    first, again = (stories.generate(PROMPT, WARM, n=4) for _ in range(2))
    assert [s.tokens for s in first.samples] == [s.tokens for s in again.samples]
    assert len({s.tokens for s in first.samples}) == 4
    assert first.tokens == stories.generate(PROMPT, WARM).tokens, "sample 0 is what n=1 gives"
    assert {c.index for c in stories.stream(PROMPT, WARM, n=4)} == {0, 1, 2, 3}


def test_without_a_seed_each_request_gets_its_own_and_tells_it(stories: LLM) -> None:
    first, second = (stories.generate(PROMPT, temperature=1.0, max_tokens=40) for _ in range(2))
    assert first.seed != second.seed and first.tokens != second.tokens
    assert stories.generate(PROMPT, temperature=1.0, max_tokens=40, seed=first.seed).tokens == first.tokens


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("little", ", there was a "),
        (["named Lily. She", "girl named"], ", there was a little "),
        ("a time", None),
        (["zzz", "y. S"], ", there was a little girl named Lil"),
    ],
)
def test_stop_texts_end_the_answer_before_them(stories: LLM, stop: str | list[str], text: str | None) -> None:
    completion = stories.generate(PROMPT, stop=stop, max_tokens=30)
    whole = stories.generate(PROMPT, max_tokens=30)
    assert completion.text == (whole.text if text is None else text)
    assert completion.finish_reason == ("length" if text is None else "stop")
    assert "".join(c.text for c in stories.stream(PROMPT, stop=stop, max_tokens=30)) == completion.text
    if text is not None:
        assert completion.samples[0].stop_reason in stop
        assert len(completion.tokens) < 30


def test_stop_tokens_end_the_answer(stories: LLM) -> None:
    token = stories.generate(PROMPT, max_tokens=6).tokens[-1]
    completion = stories.generate(PROMPT, max_tokens=30, stop_token_ids=[token])
    assert completion.finish_reason == "stop" and completion.tokens[-1] == token
    assert completion.samples[0].stop_reason == token
    forced = stories.generate(PROMPT, max_tokens=5, logit_bias={2: 1000.0})
    assert forced.tokens == (2,) and forced.text == "" and forced.finish_reason == "stop"
    assert len(stories.generate(PROMPT, max_tokens=5, logit_bias={2: 1000.0}, ignore_eos=True).tokens) == 5


def test_the_context_ends_an_answer(stories_store: Path) -> None:
    with LLM(stories_store, context=20) as llm:
        completion = llm.generate(PROMPT, max_tokens=None)
        assert completion.finish_reason == "length" and len(completion.tokens) == 20 - 5


def test_echo_begins_with_the_prompt(stories: LLM) -> None:
    plain = stories.generate(PROMPT, max_tokens=9)
    assert stories.generate(PROMPT, max_tokens=9, echo=True).text == PROMPT + plain.text
    assert "".join(c.text for c in stories.stream(PROMPT, max_tokens=9, echo=True)) == PROMPT + plain.text


def test_logprobs_are_those_of_the_logits(stories: LLM) -> None:
    completion = stories.generate(PROMPT, max_tokens=12, temperature=1.0, seed=5, logprobs=4)
    ids = [*stories.tokenize(PROMPT), *completion.tokens]
    x = stories.logits(ids).astype(np.float64)
    expected = x - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True)) - x.max(1, keepdims=True)
    for i, token in enumerate(completion.tokens):
        row = expected[len(ids) - 12 + i - 1]
        assert completion.logprobs[i] == pytest.approx(row[token], abs=2e-5)
        top = completion.samples[0].top_logprobs[i]
        assert [t.token for t in top] == np.argsort(-row, kind="stable")[:4].tolist()
        assert [t.logprob for t in top] == pytest.approx(np.sort(row)[::-1][:4], abs=2e-5)
        assert all(t.text == stories.tokenizer.token_text(t.token) for t in top)
    assert completion.samples[0].cumulative_logprob == pytest.approx(sum(completion.logprobs))


def test_penalties_and_bias_change_what_they_should(stories: LLM) -> None:
    def count(**options: float) -> int:
        tokens = stories.generate(PROMPT, max_tokens=80, ignore_eos=True, **options).tokens
        return len(tokens) - len(set(tokens))

    plain = count()
    assert count(repetition_penalty=1.5) < plain
    assert count(frequency_penalty=1.5) < plain and count(presence_penalty=2.0) < plain
    first = stories.generate(PROMPT, max_tokens=1).tokens[0]
    assert stories.generate(PROMPT, max_tokens=1, logit_bias={first: -math.inf}).tokens[0] != first


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_the_narrowest_filters_are_greedy(stories: LLM, options: dict[str, float]) -> None:
    wanted = stories.generate(PROMPT, max_tokens=30).tokens
    assert stories.generate(PROMPT, max_tokens=30, temperature=1.3, **options).tokens == wanted


def test_int8_kv_writes_nearly_the_same_story(stories_store: Path) -> None:
    with LLM(stories_store, kv="int8") as llm:
        assert llm.generate(PROMPT, max_tokens=12).text == ", there was a little girl named Lily. She"


def test_perplexity_is_that_of_the_logits(stories: LLM) -> None:
    ids = [*STORY["ids"], *STORY["ids"][1:], *STORY["ids"][1:]][:400]
    x = stories.logits(ids[:100]).astype(np.float64)
    nll = np.log(np.exp(x).sum(1)) - x[np.arange(100), np.array(ids[1:101])]
    got = stories.perplexity(ids[:100], window=100)
    assert (got.tokens, got.windows) == (49, 1)
    assert got.value == pytest.approx(math.exp(nll[50:99].mean()), rel=1e-5)
    sliding = stories.perplexity(ids[:100], window=100, stride=50)
    assert sliding.tokens == 99 and sliding.value == pytest.approx(math.exp(nll[:99].mean()), rel=1e-5)
    assert stories.perplexity(ids, window=64).windows == 6
    strided = stories.perplexity(ids, window=64, stride=32)
    assert strided.tokens == 399, "every token but the first is scored once"
    with pytest.raises(InputError, match="too few"):
        stories.perplexity(ids[:20], window=64)
    with pytest.raises(UsageError, match="window is 1"):
        stories.perplexity(ids, window=1)


def test_tokens_there_and_back(stories: LLM) -> None:
    ids = stories.tokenize(STORY["text"])
    assert ids[0] == 1 and stories.tokenize("a", add_special=False)[0] != 1
    assert stories.detokenize(ids, skip_special=True) == STORY["text"]
