"""Small model files for tests: a tiny llama as Hugging Face folder and as GGUF, made by the formats' own libraries."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tokenizers
from numpy.typing import NDArray
from safetensors.numpy import save_file

Arrays = dict[str, NDArray[Any]]

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 260,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
# Hugging Face name within a layer -> GGUF name, rows, columns
LAYER = {
    "self_attn.q_proj": ("attn_q", 64, 64),
    "self_attn.k_proj": ("attn_k", 32, 64),
    "self_attn.v_proj": ("attn_v", 32, 64),
    "self_attn.o_proj": ("attn_output", 64, 64),
    "mlp.gate_proj": ("ffn_gate", 96, 64),
    "mlp.up_proj": ("ffn_up", 96, 64),
    "mlp.down_proj": ("ffn_down", 64, 96),
    "input_layernorm": ("attn_norm", 64, 0),
    "post_attention_layernorm": ("ffn_norm", 64, 0),
}
WHOLE = {
    "model.embed_tokens": ("token_embd", 260, 64),
    "model.norm": ("output_norm", 64, 0),
    "lm_head": ("output", 260, 64),
}
HEADS = {"attn_q": 4, "attn_k": 2}


def names() -> dict[str, tuple[str, int, int]]:
    """Hugging Face name -> GGUF name, rows, columns (0: a vector)."""
    found = {f"{name}.weight": (f"{g}.weight", rows, cols) for name, (g, rows, cols) in WHOLE.items()}
    for layer in range(2):
        for name, (g, rows, cols) in LAYER.items():
            found[f"model.layers.{layer}.{name}.weight"] = (f"blk.{layer}.{g}.weight", rows, cols)
    return found


def llama_weights(seed: int = 0) -> Arrays:
    """Float32 weights by Hugging Face name."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal((rows, cols) if cols else rows).astype(np.float32)
        for name, (_, rows, cols) in names().items()
    }


def write_folder(folder: Path, weights: Arrays, config: Mapping[str, Any] = CONFIG, shards: int = 1) -> Path:
    """A Hugging Face folder, in `shards` files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config)))
    if shards == 1:
        save_file(weights, folder / "model.safetensors")
        return folder
    weight_map = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(weights)}
    for file in sorted(set(weight_map.values())):
        save_file({name: weights[name] for name in weights if weight_map[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def permute(weights: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows as llama.cpp's converter writes them for interleaved RoPE pairs."""
    half = weights.shape[0] // heads // 2
    return weights.reshape(heads, 2, half, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def gguf_arrays(weights: Arrays) -> Arrays:
    """The same weights by GGUF name and in GGUF's order of rows."""
    found = {}
    for name, (other, _, _) in names().items():
        role = other.split(".")[-2]
        found[other] = permute(weights[name], HEADS[role]) if role in HEADS else weights[name]
    return found


def write_gguf(
    path: Path,
    arrays: Arrays,
    kind: str,
    raw: Mapping[str, tuple[str, NDArray[np.uint8]]] | None = None,
    ffn: int = 96,
) -> Path:
    """A GGUF of the tiny llama, matrices in `kind`; `raw`: tensors as a type and ready blocks [rows, row_bytes]."""
    raw = raw or {}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(10000.0)
    add_vocabulary(writer)
    for name, values in arrays.items():
        if name in raw:
            writer.add_tensor(name, raw[name][1], raw_dtype=gguf.GGMLQuantizationType[raw[name][0]])
        elif values.ndim == 1 or kind == "F32":
            writer.add_tensor(name, values.astype(np.float32))
        else:
            code = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quants.quantize(values.astype(np.float32), code), raw_dtype=code)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_vocabulary(writer: gguf.GGUFWriter) -> None:
    """260 tokens: the bytes, three letter pairs and an end of text."""
    from hotset.tools.random_model import random_vocabulary

    tokens, merges = random_vocabulary(260)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 259 + [3])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(259)
    writer.add_eos_token_id(259)


def byte_folder(folder: Path, post_processor: str, config: dict[str, Any]) -> Path:
    """A tokenizer.json of single bytes after <s> and </s>. post_processor: "none", "byte level", "template" (BOS)."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *alphabet])}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<s>", "</s>"])
    if post_processor == "byte level":
        made.post_processor = tokenizers.processors.ByteLevel()
    elif post_processor == "template":
        made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def patched(data: bytes, offset: int, new: bytes) -> bytes:
    """`data` with `new` written over it."""
    return data[:offset] + new + data[offset + len(new) :]
