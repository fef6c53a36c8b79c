"""Requests of LLM that fail, are left or cut off: what they raise, and that they leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hotset import LLM, _core
from hotset.engine.backend import Draw
from hotset.engine.likelihood import Continuation, likelihoods
from hotset.errors import InputError, ModelError, UsageError
from hotset.params import SamplingParams
from hotset.tools.convert import convert

STORIES = Path(__file__).parents[1] / "golden/data/stories260k"
PROMPT = "Once upon a time there was"
FULL = [1 + i % 500 for i in range(512)]  # as many tokens as the context


@pytest.fixture
def llm(stories_store: Path) -> Iterator[LLM]:
    with LLM(stories_store) as loaded:
        yield loaded


@pytest.mark.parametrize("bad", ["", [], 5, [1, 999], "word " * 600])
def test_a_batch_with_a_prompt_that_cannot_be_run_leaves_none_queued(llm: LLM, bad: Any) -> None:
    prompts: Any = [PROMPT, llm.tokenize(PROMPT), bad]
    with pytest.raises((InputError, UsageError)):
        llm.generate(prompts, max_tokens=400)
    llm.generate("Hello", max_tokens=5)
    assert len(llm.logits(FULL)) == 512, "nobody else has pages"


@pytest.mark.parametrize("queued", [0, 1, 2])
@pytest.mark.parametrize("before", [True, False])
def test_ctrl_c_while_a_batch_is_queued_leaves_none_queued(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, queued: int, before: bool
) -> None:
    numbers, queue = iter(range(9)), llm.engine._scheduler.add

    def interrupted(sequence: Any) -> None:
        last = next(numbers) == queued
        if last and before:
            raise KeyboardInterrupt
        queue(sequence)
        if last:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(llm.engine._scheduler, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate([PROMPT] * 3, max_tokens=400)
    llm.generate("Hello", max_tokens=5)
    assert len(llm.logits(FULL)) == 512


def read_likelihoods(llm: LLM) -> None:
    list(likelihoods(llm.engine, [[Continuation(FULL, 400)]]))


@pytest.mark.parametrize(
    "use",
    [lambda llm: llm.logits(FULL), lambda llm: llm.perplexity(FULL, window=512), read_likelihoods],
    ids=["logits", "perplexity", "likelihoods"],
)
def test_a_stream_left_early_does_not_block_what_is_scored(llm: LLM, use: Callable[[LLM], object]) -> None:
    for _ in llm.stream(PROMPT, max_tokens=400):
        break
    use(llm)
    assert not llm.engine._scheduler.active


def fail_for(monkeypatch: pytest.MonkeyPatch, llm: LLM, prompt: str, after: int) -> None:
    """Draws of this prompt fail after so many tokens."""
    make, bad = llm.engine._draw_factory, llm.tokenize(prompt)

    def factory(params: SamplingParams, seed: int, tokens: list[int]) -> Draw:
        draw, count = make(params, seed, tokens), iter(range(9999))

        def failing(row: int) -> tuple[int, float]:
            if next(count) == after:
                raise ModelError("no number")
            return draw(row)

        return failing if tokens == bad else draw  # type: ignore[return-value]

    monkeypatch.setattr(llm.engine, "_draw_factory", factory)


@pytest.mark.parametrize("after", [0, 4])
def test_an_error_of_one_request_is_raised_whoever_drove_its_step(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    fail_for(monkeypatch, llm, "Lily", after)
    for prompts in ([PROMPT, "Lily"], ["Lily", PROMPT], ["The", PROMPT, "Lily", "One"]):
        with pytest.raises(ModelError, match="no number"):
            llm.generate(prompts, max_tokens=20)
    assert len(llm.logits(FULL)) == 512


def test_an_error_of_one_stream_is_raised_by_it_alone(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_for(monkeypatch, llm, "Lily", after=4)
    bad, good = llm.stream("Lily", max_tokens=20), llm.stream(PROMPT, max_tokens=20)
    assert len(list(good)) == 20
    for _ in range(4):  # what came before
        next(bad)
    with pytest.raises(ModelError, match="no number"):
        next(bad)

    async def both() -> list[Any]:
        async def read(prompt: str) -> int:
            return len([chunk async for chunk in llm.astream(prompt, max_tokens=20)])

        return await asyncio.gather(read(PROMPT), read("Lily"), return_exceptions=True)

    good_tokens, error = asyncio.run(both())
    assert good_tokens == 20 and isinstance(error, ModelError)


def test_a_perplexity_that_fails_does_not_block_other_threads(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="token id 1000000 is unknown"):
        llm.perplexity([1, 2, 3, 10**6], window=4, stride=4)
    with pytest.raises(InputError, match=r"token id 2\.5 is unknown"):
        llm.logits([1, 2.5, 3])  # type: ignore[list-item]
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError) as kept:
        patch.setattr(llm.engine, "core", Failing(llm.engine.core))
        llm.perplexity(FULL, window=64)
    thread = threading.Thread(target=llm.generate, args=("Hello",), kwargs={"max_tokens": 3}, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive() and kept.tb is not None


class Failing:
    def __init__(self, core: Any) -> None:
        self._core = core

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def token_logprobs(self, targets: Any) -> Any:
        raise ZeroDivisionError


def users(core: _core.Engine) -> int:
    """Who holds it besides the caller: it is not weakly referenceable."""
    return sys.getrefcount(core) - 3


def test_closing_ends_open_streams_and_frees_the_core(stories_store: Path) -> None:
    llm = LLM(stories_store)
    core, streams = llm.core, [llm.stream(PROMPT, max_tokens=400, n=n) for n in (1, 2)]
    left, engine = len(next(streams[0]).text), llm.engine
    waiting = llm.stream("Lily", n=3)
    gc.collect()
    gc.disable()  # it must not take the collector
    llm.close()
    assert users(core) == 0
    gc.enable()
    for stream in (*streams, waiting):
        with pytest.raises(UsageError, match="this LLM is closed; make a new one"):
            list(stream)
        stream.close()
    assert left and streams[0].completion.finish_reason == "cancelled"
    with pytest.raises(UsageError, match="closed"):
        engine.submit([1, 2], SamplingParams(), 0, frozenset())
    llm.close()


def test_closing_gives_memory_back_while_a_stream_is_kept() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    llm = LLM("stories-13m", context=256)
    stream = llm.stream(PROMPT, max_tokens=100, n=2)
    next(stream)
    held, weights = resident(), llm.stats["weight_bytes"]
    llm.close()
    assert resident() < held - weights // 2
    with pytest.raises(UsageError, match="closed"):
        list(stream)


def test_a_kept_error_does_not_keep_the_core(tmp_path: Path) -> None:
    source = shutil.copytree(STORIES, tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"] = np.full(64, 3e38, np.float32)
    save_file(tensors, source / "model.safetensors")
    convert(source, tmp_path / "store", quant="f32")
    llm = LLM(tmp_path / "store")
    core, stream = llm.core, llm.stream(PROMPT, n=2)
    with pytest.raises(ModelError, match="no number") as kept:
        next(stream)
    gc.collect()
    gc.disable()
    llm.close()
    assert users(core) == 0 and kept.tb is not None
    gc.enable()


def test_closing_while_other_threads_are_in_steps(stories_store: Path) -> None:
    for _ in range(5):
        llm, started, errors = LLM(stories_store), threading.Barrier(4), []

        def work(prompt: str, llm: LLM = llm, started: threading.Barrier = started, errors: list[Any] = errors) -> None:
            stream = llm.stream(prompt, max_tokens=None, ignore_eos=True)
            next(stream)
            started.wait(60)
            try:
                list(stream)
            except UsageError as error:
                errors.append(str(error))

        threads = [threading.Thread(target=work, args=(p,), daemon=True) for p in (PROMPT, "Lily", "The dog")]
        for thread in threads:
            thread.start()
        started.wait(60)
        core = llm.core
        llm.close()
        for thread in threads:
            thread.join(60)
        assert errors == ["this LLM is closed; make a new one"] * 3
        assert users(core) == 0
