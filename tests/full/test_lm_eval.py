"""The model class for lm-evaluation-harness against the harness's own for transformers, on one random llama."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import hotset
from hotset.tools.convert import convert

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("lm_eval")

pytestmark = pytest.mark.full
TOKENIZER = Path(hotset.__file__).parent / "data/stories-13m"
PAIRS = [
    ("Once upon a time there was a", " dog"),
    ("Once upon a time there was a", " very old house in the wood."),
    ("Tom said:", " no"),
    ("", "The sun was warm."),
]
TEXTS = ["One day a cat came home.", "A long story. " * 40]  # the second has more than one window


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama of 128 positions with the story model's tokenizer."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(
        vocab_size=4096,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
        **shape,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TOKENIZER / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def models(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """hotset's model class and the harness's, as the harness makes them by name."""
    importlib.import_module("hotset.tools.lm_eval_model")
    registry = importlib.import_module("lm_eval.api.registry")
    store = tmp_path_factory.mktemp("store") / "llama"
    convert(folder, store, quant="f32")
    ours = registry.get_model("hotset").create_from_arg_string(f"path={store},threads=1")
    arguments = f"pretrained={folder},dtype=float32,device=cpu,max_length=128"
    theirs = registry.get_model("hf").create_from_arg_string(arguments)
    return ours, theirs


def requests(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    instance = importlib.import_module("lm_eval.api.instance").Instance
    return [instance(kind, {}, one, i) for i, one in enumerate(arguments)]


def test_continuations_are_as_likely(models: tuple[Any, Any]) -> None:
    ours, theirs = (model.loglikelihood(requests("loglikelihood", PAIRS)) for model in models)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in theirs], rel=1e-3)


def test_whole_texts_are_as_likely(models: tuple[Any, Any]) -> None:
    asked = requests("loglikelihood_rolling", [(text,) for text in TEXTS])
    ours, theirs = (model.loglikelihood_rolling(asked) for model in models)
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_answers_are_the_same(models: tuple[Any, Any]) -> None:
    wishes = {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False}
    asked = requests("generate_until", [("Once upon a time", wishes), ("Tom said:", wishes)])
    ours, theirs = (model.generate_until(asked) for model in models)
    assert ours == theirs
    assert all(ours), json.dumps(ours)
