"""What LLM refuses, and how; and what it survives."""

from __future__ import annotations

import asyncio
import math
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hotset import LLM
from hotset.engine import Completion
from hotset.errors import InputError, MemoryBudgetError, ModelError, UsageError
from hotset.tools.convert import convert

STORIES = Path(__file__).parents[1] / "golden/data/stories260k"
PROMPT = "Once upon a time"


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        ("", InputError, "the prompt is empty"),
        ([], InputError, "the prompt is empty"),
        ("a\ud800b", InputError, "lone surrogate"),
        ([1, 512], InputError, "token id 512 is unknown; this model's go from 0 to 511"),
        ([1, -1], InputError, "token id -1"),
        ([1, 2.5], InputError, r"token id 2\.5"),
        ("word " * 600, InputError, r"the prompt has \d+ tokens; the context holds 512"),
        (5, UsageError, "the prompt is a int"),
        (b"bytes", UsageError, "the prompt is a bytes"),
    ],
)
def test_prompts_that_cannot_be_run(stories: LLM, prompt: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        stories.generate(prompt)
    with pytest.raises(error, match=message):
        stories.stream(prompt)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperatur": 1}, "no sampling parameter 'temperatur'; did you mean temperature"),
        ({"temperature": -1}, "temperature is -1; wanted a number of at least 0"),
        ({"logit_bias": {512: 1.0}}, "token id 512 is unknown"),
        ({"stop_token_ids": [9999]}, "token id 9999 is unknown"),
    ],
)
def test_parameters_that_make_no_sense(stories: LLM, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        stories.generate(PROMPT, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"context": 513}, UsageError, "context is 513 tokens; the model's limit is 512"),
        ({"context": 1}, UsageError, "context is 1"),
        ({"threads": 0}, UsageError, "threads is 0"),
        ({"kv": "f8"}, UsageError, "kv is 'f8'; wanted 'f16' or 'int8'"),
        ({"load": "fast"}, UsageError, "load is 'fast'"),
        ({"memory": "lots"}, UsageError, "'lots' is no size"),
        ({"kv_tokens": 100, "context": 200}, UsageError, "kv_tokens is 100"),
        ({"memory": "1MiB"}, MemoryBudgetError, r"budget of 1MiB is too small; the least that works is \d+MiB"),
    ],
)
def test_loads_that_are_refused(stories_store: Path, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LLM(stories_store, **options)


def test_a_model_without_a_template_cannot_chat(stories: LLM) -> None:
    with pytest.raises(ModelError, match="no chat template"):
        stories.chat([{"role": "user", "content": "Hi"}])


def test_the_least_budget_that_is_named_works(stories_store: Path) -> None:
    with pytest.raises(MemoryBudgetError) as caught:
        LLM(stories_store, memory=1)
    least = str(caught.value).split("least that works is ")[1].split("MiB")[0]
    with LLM(stories_store, memory=f"{int(least) + 2}MiB") as llm:  # 2: what this process grew by in between
        assert llm.generate(PROMPT, max_tokens=3).text == ", there was"


def test_a_model_that_computes_no_numbers_is_an_error_and_not_a_crash(tmp_path: Path) -> None:
    source = shutil.copytree(STORIES, tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"] = np.full(64, 3e38, np.float32)
    save_file(tensors, source / "model.safetensors")
    convert(source, tmp_path / "store", quant="f32")
    with LLM(tmp_path / "store") as llm:
        for _ in range(2):
            with pytest.raises(ModelError, match=r"no number.*convert it again"):
                llm.generate(PROMPT)


def test_banning_every_token_is_the_callers_mistake(stories: LLM) -> None:
    with pytest.raises(UsageError):
        stories.generate(PROMPT, logit_bias=dict.fromkeys(range(512), -math.inf))
    assert stories.generate(PROMPT, max_tokens=3).text == ", there was"


def test_closing_a_stream_cancels_it_and_others_go_on(stories: LLM) -> None:
    whole = stories.generate(PROMPT, max_tokens=60)
    first, second = stories.stream(PROMPT, max_tokens=60), stories.stream(PROMPT, max_tokens=60)
    next(first), next(second)
    first.close()
    assert first.completion.finish_reason == "cancelled"
    assert next(second).token == whole.tokens[1]
    assert [c.token for c in second] == list(whole.tokens[2:])
    assert list(first) == [], "its second token was never computed"


def test_a_dropped_stream_frees_its_place(stories_store: Path) -> None:
    with LLM(stories_store, reuse=False) as llm:
        free = llm.core.kv_free_tokens()
        for _ in llm.stream(PROMPT, max_tokens=100):
            break
        llm.generate("The", max_tokens=2)
        assert llm.core.kv_free_tokens() == free


def test_calls_from_several_threads_give_what_they_give_alone(stories: LLM) -> None:
    prompts = [PROMPT, "Lily", "The dog", "One day"]
    alone = [stories.generate(p, max_tokens=50, temperature=1.0, seed=3).tokens for p in prompts]
    got: dict[int, Completion] = {}

    def call(i: int) -> None:
        got[i] = stories.generate(prompts[i], max_tokens=50, temperature=1.0, seed=3)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [got[i].tokens for i in range(len(prompts))] == alone


def test_async_streams_run_side_by_side_and_can_be_left(stories: LLM) -> None:
    async def read(prompt: str, most: int) -> list[int]:
        tokens = []
        async for chunk in stories.astream(prompt, max_tokens=30):
            tokens.append(chunk.token)
            if len(tokens) == most:
                break
        return tokens

    async def both() -> list[list[int]]:
        return await asyncio.gather(read(PROMPT, 99), read("Lily", 5), read("The dog", 99))

    first, left, third = asyncio.run(both())
    assert tuple(first) == stories.generate(PROMPT, max_tokens=30).tokens
    assert tuple(left) == stories.generate("Lily", max_tokens=5).tokens
    assert tuple(third) == stories.generate("The dog", max_tokens=30).tokens
