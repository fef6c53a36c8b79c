"""A config that ties the head, and a checkpoint that stores one: a copy is left out, another head is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import CONFIG, Arrays, llama_weights, write_folder

from hotset.errors import ModelError
from hotset.formats.safetensors import read_folder
from hotset.formats.store import open_store
from hotset.models import resolve
from hotset.tools import convert_tied
from hotset.tools.convert import convert
from hotset.tools.convert_tied import untie

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TIED = CONFIG | {"tie_word_embeddings": True}
VECTORS = Path(__file__).parents[1] / "golden" / "vectors"


def tied_weights(**changes: Any) -> Arrays:
    weights = llama_weights()
    return weights | {HEAD: weights[EMBED].copy()} | changes


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert_tied, "PIECE", 1000)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_copy_is_left_out(tmp_path: Path, shards: int) -> None:
    report = convert(write_folder(tmp_path / "model", tied_weights(), TIED, shards), tmp_path / "store", quant="f32")
    store = open_store(tmp_path / "store")
    assert HEAD not in store.entries and store.config["tie_word_embeddings"] is True
    assert not any("ties" in note for note in report.notes)


def test_without_a_head_nothing_is_untied(tmp_path: Path) -> None:
    weights = tied_weights()
    del weights[HEAD]
    convert(write_folder(tmp_path / "model", weights, TIED), tmp_path / "store")
    assert open_store(tmp_path / "store").config["tie_word_embeddings"] is True


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("where", [(0, 0), (100, 7), (259, 63)])
def test_another_head_is_used(tmp_path: Path, where: tuple[int, int], shards: int) -> None:
    weights = tied_weights()
    weights[HEAD][where] += 1
    report = convert(write_folder(tmp_path / "model", weights, TIED, shards), tmp_path / "store", quant="f16")
    assert f"{HEAD} differs from the embedding, so it is used although the config ties them" in report.notes[0]
    store = open_store(tmp_path / "store")
    assert HEAD in store.entries and store.config["tie_word_embeddings"] is False
    assert [spec.name for spec in resolve(store.config).tensors if spec.role == "head"] == [HEAD]
    untied = write_folder(tmp_path / "untied", weights, CONFIG, shards)
    convert(untied, tmp_path / "second", quant="f16")
    for name in ("resident.safetensors", "neurons.safetensors"):
        assert (tmp_path / "store" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert convert(tmp_path / "model", tmp_path / "store", quant="f16").unchanged


def test_a_head_of_another_type_is_another_head(tmp_path: Path) -> None:
    weights = tied_weights(**{HEAD: tied_weights()[HEAD].astype(np.float16)})
    convert(write_folder(tmp_path / "model", weights, TIED), tmp_path / "store")
    assert HEAD in open_store(tmp_path / "store").entries


def test_a_head_of_another_shape_is_refused(tmp_path: Path) -> None:
    weights = tied_weights(**{HEAD: np.zeros((200, 64), np.float32)})
    with pytest.raises(ModelError, match=r"wrong shape: lm_head\.weight \[200, 64\] instead of \[260, 64\]"):
        convert(write_folder(tmp_path / "model", weights, TIED), tmp_path / "store")


MESSAGE = (
    r"'lm_head\.weight' differs from the embedding, .* with a tied head only; remove .* do not ignore tie_word_emb"
)


def test_a_key_that_is_ignored_cannot_untie(tmp_path: Path) -> None:
    config = {key: value for key, value in CONFIG.items() if key != "tie_word_embeddings"}
    config |= {
        "architectures": ["MiniCPMForCausalLM"],
        "model_type": "minicpm",
    }  # tied unless the config says otherwise
    folder = write_folder(tmp_path / "model", llama_weights(), config)
    with pytest.raises(ModelError, match=MESSAGE):
        convert(folder, tmp_path / "store", ignore_keys=["tie_word_embeddings"])
    convert(folder, tmp_path / "store")
    assert HEAD in open_store(tmp_path / "store").entries


def test_a_family_known_tied_only_is_refused(tmp_path: Path) -> None:
    text = json.loads((VECTORS / "gemma3" / "config.json").read_text())
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}
    weights = {"model.language_model.embed_tokens.weight": np.zeros((192, 64), np.float32)}
    model = resolve(config)
    for head, refused in ((np.zeros((192, 64), np.float32), False), (np.ones((192, 64), np.float32), True)):
        found = read_folder(write_folder(tmp_path / str(refused), weights | {HEAD: head}, config))
        if refused:
            with pytest.raises(ModelError, match=MESSAGE):
                untie(config, model, found, (), "model")
        else:
            assert untie(config, model, found, (), "model") == (config, model)
