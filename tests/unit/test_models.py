"""Configs of published models and of both transformers spellings, read into shapes, windows and rotations."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from hotset.config import ModelConfig
from hotset.errors import ModelError
from hotset.formats.safetensors import read_header
from hotset.models import families, resolve

VECTORS = Path(__file__).parent.parent / "golden" / "vectors"
SMALL: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
QWEN2 = SMALL | {"architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": 2}
GEMMA3 = SMALL | {"architectures": ["Gemma3ForCausalLM"], "num_key_value_heads": 2, "head_dim": 16}
OPT: dict[str, Any] = {
    "architectures": ["OPTForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "ffn_dim": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def config(**changes: Any) -> ModelConfig:
    return resolve(SMALL | changes).config


# --- tensors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.name for path in VECTORS.iterdir() if path.is_dir()))
def test_tensors_are_those_that_transformers_saves(name: str) -> None:
    model = resolve(json.loads((VECTORS / name / "config.json").read_text()))
    saved = read_header(VECTORS / name / "model.safetensors").entries
    assert {spec.source_name: spec.source_shape for spec in model.tensors} == {
        key: tuple(e.shape) for key, e in saved.items()
    }


def test_kinds_decide_file_and_format() -> None:
    kinds = {spec.role: spec.kind for spec in resolve(SMALL | {"attention_bias": True}).tensors}
    assert {role for role, kind in kinds.items() if kind == "ffn"} == {"gate", "up", "down"}
    assert {role for role, kind in kinds.items() if kind == "attention"} == {"q", "k", "v", "o"}
    assert kinds["embed"] == "embedding" and kinds["head"] == "head" and kinds["q_bias"] == "vector"


def test_tensors_that_checkpoints_carry_for_nothing_are_known() -> None:
    tied, untied = resolve(SMALL | {"tie_word_embeddings": True}), resolve(SMALL)
    assert tied.canonical("lm_head.weight") is None
    assert untied.canonical("lm_head.weight") == "lm_head.weight"
    assert untied.canonical("model.layers.0.self_attn.rotary_emb.inv_freq") is None
    assert untied.canonical("model.layers.0.surprise.weight") == "model.layers.0.surprise.weight"


def test_opt_checkpoints_without_the_outer_prefix_are_read() -> None:
    assert resolve(OPT).canonical("decoder.layers.1.fc1.bias") == "model.decoder.layers.1.fc1.bias"


# --- families ---------------------------------------------------------------------------------------


def test_families() -> None:
    assert set(families()) >= {"llama", "mistral", "qwen2", "qwen3", "gemma3", "olmo2", "opt", "falcon"}


def test_model_type_decides_where_no_architecture_is_named() -> None:
    keys = {key: value for key, value in SMALL.items() if key != "architectures"}
    assert resolve(keys | {"model_type": "qwen2", "num_key_value_heads": 4}).family == "qwen2"


def test_unknown_architecture_names_the_closest() -> None:
    with pytest.raises(ModelError, match=r"'Qwen2ForCausalML'.*the closest is Qwen2ForCausalLM"):
        resolve(SMALL | {"architectures": ["Qwen2ForCausalML"]})
    with pytest.raises(ModelError, match="neither 'architectures' nor 'model_type'"):
        resolve({"hidden_size": 64})


def test_gemma3_multimodal_gives_its_language_part() -> None:
    text = {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34}
    keys: dict[str, Any] = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "boi_token_index": 255999,
        "mm_tokens_per_image": 256,
        "text_config": text | {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024},
        "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
    }
    model = resolve(keys)
    assert (model.config.heads, model.config.kv_heads, model.config.head_dim) == (8, 4, 256)
    assert [layer.window for layer in model.config.layers[:7]] == [1024] * 5 + [0, 1024]
    assert "vision tower" in model.notes[0]
    name = "language_model.model.layers.3.mlp.up_proj.weight"
    assert model.canonical("model.language_model.layers.3.mlp.up_proj.weight") == name
    assert model.canonical("vision_tower.vision_model.head.weight") is None
    keys["text_config"]["surprise"] = 1
    with pytest.raises(ModelError, match=r"'text_config\.surprise' = 1"):
        resolve(keys)


def test_opt_variants_that_are_computed_otherwise_are_refused() -> None:
    with pytest.raises(ModelError, match=r"do_layer_norm_before.*opt-350m"):
        resolve(OPT | {"do_layer_norm_before": False})
    with pytest.raises(ModelError, match="'word_embed_proj_dim' is 32; wanted 64"):
        resolve(OPT | {"word_embed_proj_dim": 32})
    with pytest.raises(ModelError, match="layer_norm_elementwise_affine"):
        resolve(OPT | {"layer_norm_elementwise_affine": False})


# --- windows ----------------------------------------------------------------------------------------


def windows(keys: dict[str, Any]) -> list[int]:
    return [layer.window for layer in resolve(keys).config.layers]


def test_mistral_windows_absent_and_null_differ() -> None:
    mistral = SMALL | {"architectures": ["MistralForCausalLM"], "num_key_value_heads": 2}
    assert windows(mistral) == [4096] * 4  # the class default
    assert windows(mistral | {"sliding_window": None}) == [0] * 4
    assert windows(mistral | {"sliding_window": 8}) == [8] * 4


def test_qwen_windows_need_their_switch() -> None:
    keys = QWEN2 | {"sliding_window": 8, "max_window_layers": 3}
    assert windows(keys) == [0] * 4
    assert windows(keys | {"use_sliding_window": True}) == [0, 0, 0, 8]
    types = ["sliding_attention", "full_attention"] * 2
    assert windows(keys | {"use_sliding_window": True, "layer_types": types}) == [8, 0, 8, 0]
    with pytest.raises(ModelError, match="layer_types"):
        resolve(keys | {"layer_types": types})
    with pytest.raises(ModelError, match="a list of 4 out of full_attention, sliding_attention"):
        resolve(keys | {"layer_types": ["full_attention", "linear_attention", "full_attention", "full_attention"]})


def test_gemma3_pattern_and_layer_types_agree() -> None:
    by_pattern = resolve(GEMMA3 | {"sliding_window_pattern": 2, "sliding_window": 8}).config
    types = ["sliding_attention", "full_attention"] * 2
    assert resolve(GEMMA3 | {"layer_types": types, "sliding_window": 8}).config == by_pattern
    assert [(layer.window, layer.rope) for layer in by_pattern.layers] == [(8, 1), (0, 0)] * 2


# --- rotations --------------------------------------------------------------------------------------

YARN = {"factor": 4.0, "original_max_position_embeddings": 512, "beta_fast": 32.0, "beta_slow": 1.0}


def test_both_spellings_of_rope_read_the_same() -> None:
    older = config(rope_theta=5000.0, max_position_embeddings=2048, rope_scaling={"type": "yarn", **YARN})
    parameters = {"rope_type": "yarn", "rope_theta": 5000.0, **YARN}
    assert config(rope_parameters=parameters, max_position_embeddings=2048, dtype="bfloat16") == older
    nested = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    scaled = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_theta": 1e6, "rope_local_base_freq": 1e4}
    assert resolve(GEMMA3 | {"rope_parameters": nested}).config == resolve(GEMMA3 | scaled).config


def test_frequencies() -> None:
    base = config().ropes[0].inv_freq
    assert base == pytest.approx([10000 ** (-i / 16) for i in range(0, 16, 2)], rel=1e-7)
    linear = config(rope_scaling={"rope_type": "linear", "factor": 4.0}).ropes[0].inv_freq
    assert linear == pytest.approx([f / 4 for f in base], rel=1e-6)
    half = config(partial_rotary_factor=0.5).ropes[0].inv_freq
    assert half == pytest.approx([10000 ** (-i / 8) for i in range(0, 8, 2)], rel=1e-7)


def test_llama3_keeps_fast_frequencies_and_divides_slow_ones() -> None:
    keys = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192, "factor": 8.0}
    plain, scaled = (
        config(rope_theta=500000.0, head_dim=128, **more).ropes[0].inv_freq
        for more in ({}, {"rope_scaling": {"rope_type": "llama3", **keys}})
    )
    for f, g in zip(plain, scaled, strict=True):
        wavelength = 2 * math.pi / f
        if wavelength < 8192 / 4:
            assert g == f
        elif wavelength > 8192:
            assert g == pytest.approx(f / 8, rel=1e-6)
        else:
            assert f / 8 < g < f


def test_yarn_attention_factor() -> None:
    def factor(**keys: float) -> float:
        return config(rope_scaling={"rope_type": "yarn", **YARN, **keys}).ropes[0].attention_factor

    assert factor() == pytest.approx(0.1 * math.log(4) + 1)
    assert factor(attention_factor=1.5) == 1.5
    assert factor(mscale=0.7, mscale_all_dim=1.3) == pytest.approx((0.07 * math.log(4) + 1) / (0.13 * math.log(4) + 1))


def test_scaling_stretches_the_context() -> None:
    def context(**scaling: Any) -> int:
        return config(max_position_embeddings=512, rope_scaling=scaling).context

    assert context(rope_type="dynamic", factor=2.0) == 1024
    assert context(rope_type="linear", factor=8.0) == 4096
    assert context(rope_type="yarn", **YARN) == 2048
    assert context() == 512
