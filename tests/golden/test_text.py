"""Known text of two real models: a 260k-parameter story teller, and a chat model of 135M."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from hotset import LLM, Tokenizer, _core
from hotset.errors import MemoryBudgetError

DATA = Path(__file__).parent / "data"
STORY = json.loads((DATA / "stories260k/story.json").read_text(encoding="utf-8"))
SMOLLM2 = json.loads((DATA / "smollm2_text.json").read_text(encoding="utf-8"))
ISAS = [isa.name for isa in _core.isa_list() if isa.supported and isa.compiled]


def tokenizer_vectors() -> list[dict[str, Any]]:
    lines = (DATA / "tokenizer/smollm2.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("isa", ISAS)
def test_the_story_is_that_of_the_reference(stories_store: Path, isa: str) -> None:
    with LLM(stories_store, isa=isa) as llm:
        assert llm.isa == isa
        completion = llm.generate(STORY["prompt"], max_tokens=200, echo=True)
    assert completion.text == STORY["text"]
    assert [*llm.tokenize(STORY["prompt"]), *completion.tokens] == STORY["ids"]


@pytest.mark.parametrize("vector", SMOLLM2, ids=lambda v: v.get("question") or v["prompt"][:20])
def test_smollm2_says_what_transformers_says(smollm2: LLM, vector: dict[str, Any]) -> None:
    options = {"max_tokens": len(vector["ids"])}
    if "question" in vector:
        messages = [{"role": "user", "content": vector["question"]}]
        text = smollm2.tokenizer.apply_chat_template(messages)
        assert smollm2.tokenizer.encode(text, add_special=False) == vector["prompt_ids"]
        completion = smollm2.chat(messages, **options)
    else:
        assert smollm2.tokenize(vector["prompt"]) == vector["prompt_ids"]
        completion = smollm2.generate(vector["prompt"], **options)
    assert list(completion.tokens) == vector["ids"]
    assert completion.text == vector["text"]
    assert completion.finish_reason == ("stop" if vector["ids"][-1] in smollm2.tokenizer.eos_ids else "length")


@pytest.mark.full
@pytest.mark.parametrize("isa", ISAS)
def test_every_isa_says_what_transformers_says(smollm2_store: Path, isa: str) -> None:
    with LLM(smollm2_store, isa=isa) as llm:
        for vector in SMOLLM2:
            assert list(llm.generate(vector["prompt_ids"], max_tokens=len(vector["ids"])).tokens) == vector["ids"]


def test_the_tokenizer_inside_the_gguf_gives_the_original_ids(smollm2_store: Path) -> None:
    tokenizer = Tokenizer.load(smollm2_store)
    for vector in tokenizer_vectors():
        assert tokenizer.encode(vector["text"]) == vector["ids"], vector["text"]
        assert tokenizer.decode(vector["ids"]) == vector["text"]
    assert tokenizer.bos_id == 1 and 2 in tokenizer.eos_ids and not tokenizer.adds_bos


def test_a_chat_goes_on_from_what_is_known(smollm2: LLM) -> None:
    messages = [{"role": "user", "content": "What is 2+2?"}]
    first = smollm2.chat(messages, max_tokens=20)
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "And 3+3?"}]
    second = smollm2.chat(messages, max_tokens=10)
    assert second.stats.cached_tokens >= first.stats.prompt_tokens + len(first.tokens) - 2
    smollm2.clear()
    assert smollm2.chat(messages, max_tokens=10).tokens == second.tokens


def test_ctrl_c_stops_within_a_token_and_leaves_the_engine_usable(smollm2: LLM) -> None:
    smollm2.clear()
    wanted = smollm2.generate("1 2 3 4 5 6", max_tokens=8).tokens
    prompt = list(range(100, 6100))
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    started = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        smollm2.generate(prompt, max_tokens=2000, ignore_eos=True)
    assert time.perf_counter() - started < 5, "6000 tokens take longer than that"
    assert smollm2.generate("1 2 3 4 5 6", max_tokens=8).tokens == wanted
    smollm2.clear()
    assert smollm2.core.kv_free_tokens() == 8192, "what the stopped request held is free again"


def test_a_memory_budget_holds(smollm2_store: Path) -> None:
    """In a process of its own: the peak of everything it ever held, measured by the kernel.

    VmHWM, not ru_maxrss: that one begins with what the parent held when it forked.
    """
    budget = 340
    code = f"""
from pathlib import Path
from hotset import LLM
with LLM({str(smollm2_store)!r}, memory="{budget}MiB") as llm:
    context = llm.context
    llm.generate([*range(1000, 1000 + context - 20)], max_tokens=20, ignore_eos=True, logprobs=5)
    llm.logits([*range(1000, 1000 + min(400, context))])
status = Path("/proc/self/status").read_text()
print(context, status.partition("VmHWM:")[2].split()[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    context, peak_kib = map(int, done.stdout.split())
    assert context >= 512 and peak_kib <= budget * 1024, (context, peak_kib / 1024)
    with pytest.raises(MemoryBudgetError, match="least that works"):
        LLM(smollm2_store, memory="150MiB")
