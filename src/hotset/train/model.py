"""From a model's folder to a network to train, and from the network to a folder that `hotset convert` reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from hotset.errors import HotsetError, ModelError, UsageError
from hotset.formats.files import Json, read_json
from hotset.models import resolve
from hotset.models.spec import Model
from hotset.tokenizer import Tokenizer
from hotset.train.memory import is_failed_allocation
from hotset.train.settings import Settings
from hotset.train.tokens import Encoder

_SPARSE = {"relu", "relu2", "shifted_relu"}
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
)


def read_config(folder: Path) -> Json:
    """config.json of a model that can be made sparse.

    Raises: UsageError (no such folder), ModelError (unknown architecture, no gated FFN, sparse already).
    """
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder} is no Hugging Face folder: it has no config.json; give the folder of a checkpoint")
    config = read_json(folder / "config.json")
    found = resolve(config).config
    if not found.gated:
        raise ModelError(f"{folder}: its FFNs have no gate; only gated FFNs (SwiGLU, GeGLU) can be made sparse")
    if found.act_gate in _SPARSE:
        raise ModelError(
            f"{folder} is sparse already: its FFNs use {found.act_gate}; take the model it was made from, "
            "or go on to `hotset convert`"
        )
    return config


def require_teacher(folder: Path, encoder: Encoder) -> None:
    """Raises: UsageError (no such folder), ModelError (its distribution is over other tokens)."""
    if not (folder / "config.json").is_file():
        raise UsageError(f"--teacher {folder} is no Hugging Face folder: it has no config.json")
    vocab = int(read_json(folder / "config.json").get("vocab_size", 0))
    if vocab != encoder.vocab:
        raise ModelError(f"--teacher {folder} has {vocab} tokens and the model {encoder.vocab}; want the same ones")
    if Tokenizer.load(folder).vocabulary != encoder.tokenizer.vocabulary:
        raise ModelError(f"--teacher {folder} has another tokenizer than the model; want the same one")


def sparse_config(config: Json, settings: Settings) -> Json:
    """The config.json of the result. Raises ModelError if hotset's families have no word for it."""
    if settings.activation == "keep":
        return config
    changed = {key: value for key, value in config.items() if key not in ("hidden_activation", "auto_map")}
    if settings.activation == "drelu":
        changed |= _as_bamboo(config)
    elif settings.activation == "fatrelu":
        changed |= {"hidden_act": "fatrelu", "hidden_act_param": settings.threshold}
        if config.get("model_type") == "llama":
            changed |= {"architectures": ["SparseLlamaForCausalLM"], "model_type": "sparsellama"}
    else:
        changed |= {"hidden_act": "relu"}
    _check(config, changed, settings)
    return changed


def _as_bamboo(config: Json) -> Json:
    """Bamboo is Mistral's shape with dReLU; the defaults of its keys are Mistral's, so Llama's are written out."""
    changed: Json = {"architectures": ["BambooForCausalLM"], "model_type": "bamboo", "hidden_act": "relu"}
    if config.get("model_type") == "llama":
        heads = config["num_attention_heads"]
        changed |= {
            "sliding_window": None,
            "num_key_value_heads": config.get("num_key_value_heads") or heads,
            "max_position_embeddings": config.get("max_position_embeddings", 2048),
            "pretraining_tp": None,
        }
    return changed


def _check(before: Json, after: Json, settings: Settings) -> None:
    """The result must be the same model but for its activation."""
    kind = str(before.get("model_type"))
    try:
        old, new = resolve(before), resolve(after)
    except HotsetError as error:
        raise ModelError(
            f"a {kind} model with {settings.activation} has no place in hotset's families: {error}"
        ) from None
    wanted = ("shifted_relu", settings.threshold) if settings.activation == "fatrelu" else ("relu", 0.0)
    if (new.config.act_gate, new.config.gate_threshold) != wanted or _names(old) != _names(new):
        raise ModelError(
            f"a {kind} model with {settings.activation} has no place in hotset's families; "
            "use --activation relu, or a Llama or Mistral model"
        )


def _names(model: Model) -> list[tuple[str, int, int]]:
    return [(spec.name, spec.rows, spec.cols) for spec in model.tensors]


def load_model(folder: Path, *, from_scratch: bool, seed: int) -> Any:
    """The network in f32. Raises ModelError if transformers cannot load it; failed allocations pass."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(seed)
    try:
        if from_scratch:
            return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if is_failed_allocation(error):
            raise
        raise ModelError(f"transformers cannot load {folder}: {str(error).splitlines()[0]}") from None


def untied(state: dict[str, Any], config: Json) -> dict[str, Any]:
    """The state without the head where it is the embedding again."""
    tied = config.get("tie_word_embeddings", False)
    return {name: tensor for name, tensor in state.items() if not (tied and name == "lm_head.weight")}


def write_model(model: Any, state: dict[str, Any], config: Json, source: Path, dest: Path, dtype: torch.dtype) -> None:
    """A Hugging Face folder; its config.json comes last, so that a half-written one is not taken for a model.

    state: name -> tensor of the whole model, in f32, each once.
    """
    part = dest / "model.partial"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    weights = {name: tensor.to(dtype) for name, tensor in state.items()}
    model.save_pretrained(part, state_dict=weights)
    (dest / "config.json").unlink(missing_ok=True)
    for old in dest.glob("*.safetensors*"):  # of a run before, which may have been cut into other files
        old.unlink()
    for path in sorted(part.glob("*.safetensors*")):
        path.replace(dest / path.name)
    shutil.rmtree(part)
    for name in _TOKENIZER:
        if (source / name).is_file():
            shutil.copyfile(source / name, dest / name)
    name = str(dtype).removeprefix("torch.")
    text = json.dumps({key: value for key, value in config.items() if key != "torch_dtype"} | {"dtype": name}, indent=2)
    unfinished = dest / "config.json.partial"
    unfinished.write_text(text + "\n")
    unfinished.replace(dest / "config.json")
