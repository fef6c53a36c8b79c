"""BOS and EOS around a text as the installed transformers puts them, whatever tokenizer_config.json says."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
from builders import byte_folder

from hotset.tokenizer import Tokenizer

pytestmark = pytest.mark.full
# tokenizer_class and model_type: a class of its own that reads tokenizer.json whole, one that rebuilds it, and none.
CLASSES = [
    ("LlamaTokenizerFast", "qwen2"),  # DeepSeek-R1-Distill-Qwen-7B
    ("LlamaTokenizerFast", "llama"),
    ("PreTrainedTokenizerFast", "llama"),
    ("Qwen2Tokenizer", "qwen2"),
    ("GPT2Tokenizer", "gpt2"),
    ("GemmaTokenizerFast", "gemma3_text"),
    (None, "llama"),
]
FLAGS = [
    dict(zip(("add_bos_token", "add_eos_token"), flags, strict=True))
    for flags in product((None, False, True), repeat=2)
]


@pytest.mark.parametrize("post_processor", ["none", "byte level", "template"])
@pytest.mark.parametrize(("kind", "model_type"), CLASSES)
def test_bos_and_eos_around_a_text(tmp_path: Path, kind: str | None, model_type: str, post_processor: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<s>", "pad_token": "</s>", "tokenizer_class": kind}
    for i, flags in enumerate(FLAGS):
        given = {key: value for key, value in (config | flags).items() if value is not None}
        folder = byte_folder(tmp_path / str(i), post_processor, given)
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        assert Tokenizer.load(folder).encode("a") == theirs("a").input_ids, given
