"""GGUF metadata, as llama.cpp's converter writes it, gives the same model as the Hugging Face config it came from."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest
from gguf_models import EXPRESSIBLE, read_config, shapes_of, write_metadata

from hotset.errors import ModelError
from hotset.models import from_gguf, resolve, row_order
from hotset.models.rope import llama3_divisors, plain

ARCHS = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma3": gguf.MODEL_ARCH.GEMMA3,
    "olmo2": gguf.MODEL_ARCH.OLMO2,
}


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_metadata_gives_the_model_of_the_config(name: str) -> None:
    config, arch = read_config(name), EXPRESSIBLE[name]
    imported = from_gguf(write_metadata(arch, config), shapes_of(config))
    if arch == "gemma3":  # GGUF does not carry this one; llama.cpp takes the head size, as we do
        assert imported.config["query_pre_attn_scalar"] == config["head_dim"]
        imported.config["query_pre_attn_scalar"] = config["query_pre_attn_scalar"]
    got, want = resolve(imported.config), resolve(config)
    assert got.tensors == want.tensors
    assert got.config.norm_eps == pytest.approx(want.config.norm_eps, rel=1e-7)
    imported.config["rms_norm_eps"] = config["rms_norm_eps"]
    assert resolve(imported.config).config == want.config
    assert (imported.config["bos_token_id"], imported.config["eos_token_id"]) == (1, 2)


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_names_are_those_of_the_gguf_package(name: str) -> None:
    config, arch = read_config(name), EXPRESSIBLE[name]
    imported = from_gguf(write_metadata(arch, config), shapes_of(config))
    table = gguf.get_tensor_name_map(ARCHS[arch], config["num_hidden_layers"])
    for ours, huggingface in imported.names.items():
        assert table.get_name(huggingface, try_suffixes=(".weight", ".bias")) == ours


def test_only_llama_permutes_rows_and_only_gemma_shifts_norms() -> None:
    for name, arch in EXPRESSIBLE.items():
        config = read_config(name)
        imported = from_gguf(write_metadata(arch, config), shapes_of(config))
        assert bool(imported.permuted) == (arch == "llama")
        assert bool(imported.shifted) == (arch == "gemma3")
    llama = read_config("llama")
    permuted = from_gguf(write_metadata("llama", llama), shapes_of(llama)).permuted
    assert permuted["model.layers.0.self_attn.q_proj.weight"] == 6
    assert permuted["model.layers.1.self_attn.k_proj.weight"] == 2
    gemma = read_config("gemma3")
    shifted = from_gguf(write_metadata("gemma3", gemma), shapes_of(gemma)).shifted
    norms = {spec.name for spec in resolve(gemma).tensors if spec.name.endswith("norm.weight")}
    assert shifted == norms and "model.layers.0.self_attn.q_norm.weight" in norms


def test_row_order_undoes_the_permutation_of_the_converter() -> None:
    heads, head_dim, cols = 3, 8, 5
    huggingface = np.arange(heads * head_dim * cols).reshape(heads * head_dim, cols)
    # LlamaModel.permute of convert_hf_to_gguf.py
    stored = huggingface.reshape(heads, 2, head_dim // 2, cols).swapaxes(1, 2).reshape(huggingface.shape)
    np.testing.assert_array_equal(stored[row_order(heads * head_dim, heads)], huggingface)


def test_rope_divisors_become_llama3_keys_or_stay_a_list() -> None:
    config = read_config("llama") | {"rope_theta": 500000.0, "head_dim": 64}
    metadata, shapes = write_metadata("llama", config), shapes_of(config) | {"rope_freqs.weight": (32,)}
    imported = from_gguf(metadata, shapes)
    assert imported.rope_divisors == "rope_freqs.weight" and imported.unused == {"rope_freqs.weight"}

    published = np.array(llama3_divisors(plain(500000.0, 64), 32.0, 1.0, 4.0, 8192), np.float32)
    completed = imported.with_rope_divisors(published)
    wanted = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    assert completed.config["rope_scaling"] == wanted | {"original_max_position_embeddings": 8192}

    odd = np.linspace(1.0, 3.0, 32, dtype=np.float32)
    freq = resolve(imported.with_rope_divisors(odd).config).config.ropes[0].inv_freq
    assert freq == pytest.approx([f / d for f, d in zip(plain(500000.0, 64), odd, strict=True)], rel=1e-6)
    for bad in (odd[:5], 0 * odd, -odd, np.full(32, np.inf, np.float32), np.full(32, np.nan, np.float32)):
        with pytest.raises(ModelError, match="a list of 32 numbers"):
            resolve(imported.with_rope_divisors(bad).config)


def test_gemma3_27b_scales_attention_by_hidden_over_heads() -> None:
    config = read_config("gemma3") | {"num_hidden_layers": 62}
    assert from_gguf(write_metadata("gemma3", config), shapes_of(config)).config["query_pre_attn_scalar"] == 64 // 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"general.architecture": "lama"}, "GGUF architecture 'lama'.*the closest is llama"),
        ({"general.architecture": None}, r"lacks the key 'general\.architecture'"),
        ({"llama.block_count": None}, r"lacks the key 'llama\.block_count'"),
        ({"llama.expert_count": 8}, r"'llama\.expert_count' is 8.*mixtures of experts"),
        ({"llama.attention.value_length": 16}, r"'llama\.attention\.value_length' is 16; wanted 12"),
        ({"llama.feed_forward_length": [100, 96]}, r"'llama\.feed_forward_length' is \[100, 96\]; wanted the same"),
        ({"llama.rope.scaling.type": "longrope"}, r"'llama\.rope\.scaling\.type' is \"longrope\"; wanted none, linear"),
        ({"llama.attention.clamp_kqv": 8.0}, r"'llama\.attention\.clamp_kqv' = 8.0.*--ignore-key"),
    ],
)
def test_bad_metadata(change: dict[str, Any], message: str) -> None:
    config = read_config("llama")
    with pytest.raises(ModelError, match=message):
        from_gguf(write_metadata("llama", config) | change, shapes_of(config))


def test_sizes_listed_per_layer_and_ignored_keys() -> None:
    config = read_config("llama")
    listed = {"llama.feed_forward_length": [100, 100], "llama.attention.head_count_kv": [2, 2]}
    odd = {"llama.attention.clamp_kqv": 8.0}
    metadata = write_metadata("llama", config)
    want = from_gguf(metadata, shapes_of(config))
    got = from_gguf(metadata | listed | odd, shapes_of(config), ignore_keys=["llama.attention.clamp_kqv"])
    assert got == want
    with pytest.raises(ModelError, match=r"no tensor token_embd\.weight"):
        from_gguf(metadata, {})
