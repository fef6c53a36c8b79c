"""The golden vectors' models as llama.cpp's converter would write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from builders import permute
from golden_vectors import FOLDER, read_tensors

from hotset.models import resolve
from hotset.models.gguf import gguf_name

# Vectors whose config GGUF can express in full.
EXPRESSIBLE = {
    "llama": "llama",
    "llama_linear": "llama",
    "llama_yarn": "llama",
    "qwen2_tied": "qwen2",
    "qwen3": "qwen3",
    "olmo2": "olmo2",
    "gemma3": "gemma3",
}


def read_config(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((FOLDER / name / "config.json").read_text())
    return config


def write_metadata(arch: str, config: dict[str, Any]) -> dict[str, Any]:
    """The keys that convert_hf_to_gguf.py writes for a config."""
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    keys: dict[str, Any] = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": hidden,
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": float(np.float32(config["rms_norm_eps"])),
        "attention.key_length": config.get("head_dim", hidden // heads),
        "attention.value_length": config.get("head_dim", hidden // heads),
        "rope.freq_base": config.get("rope_theta", config.get("rope_parameters", {}).get("rope_theta")),
    }
    scaling = config.get("rope_scaling") or {}
    if scaling:
        keys["rope.scaling.type"] = scaling.get("rope_type", scaling.get("type"))
        keys["rope.scaling.factor"] = scaling["factor"]
    for key, name in {
        "original_max_position_embeddings": "original_context_length",
        "beta_fast": "yarn_beta_fast",
        "beta_slow": "yarn_beta_slow",
    }.items():
        if key in scaling:
            keys[f"rope.scaling.{name}"] = scaling[key]
    if arch == "gemma3":
        keys["attention.sliding_window"] = config["sliding_window"]
        keys["attention.sliding_window_pattern"] = config["sliding_window_pattern"]
        keys["final_logit_softcapping"] = config["final_logit_softcapping"]
    named = {f"{arch}.{key}": value for key, value in keys.items()}
    return {"general.architecture": arch, "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, **named}


def shapes_of(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {gguf_name(spec): spec.shape for spec in resolve(config).tensors}


def write_gguf(name: str, path: Path) -> None:
    """A vector's checkpoint as GGUF in float32: rows of q and k permuted for llama, 1 added to Gemma's norms."""
    arch, config = EXPRESSIBLE[name], read_config(name)
    writer = gguf.GGUFWriter(path, arch)
    for key, value in write_metadata(arch, config).items():
        if key != "general.architecture":
            add = writer.add_float32 if isinstance(value, float) else writer.add_string
            (writer.add_uint32 if isinstance(value, int) else add)(key, value)
    _add_vocabulary(writer, config["vocab_size"])
    weights = read_tensors(FOLDER / name / "model.safetensors")
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    for spec in resolve(config).tensors:
        values = weights[spec.name].astype(np.float32)
        if arch == "llama" and spec.role in heads:
            values = permute(values, heads[spec.role])
        if arch == "gemma3" and spec.name.endswith("norm.weight"):
            values = values + np.float32(1)
        writer.add_tensor(gguf_name(spec), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """A SentencePiece vocabulary of that size, so that the file has all its parts."""
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(f"piece{i}" for i in range(size - 3))])
    writer.add_token_scores([0.0] * 3 + [-float(i) for i in range(size - 3)])
    writer.add_token_types([2, 3, 3] + [1] * (size - 3))
