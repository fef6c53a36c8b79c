"""Published sparse checkpoints: what their configs say about the FFN, and which of their tensors are known."""

from __future__ import annotations

import math
from typing import Any

import pytest

from hotset.config import ModelConfig
from hotset.errors import ModelError
from hotset.models import Model, resolve

LLAMA_7B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vocab_size": 32000,
}
RELU_LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "relu", **LLAMA_7B}
PROSPARSE = {
    "architectures": ["SparseLlamaForCausalLM"],
    "model_type": "sparsellama",
    "auto_map": {"AutoModelForCausalLM": "modeling_sparsellama.SparseLlamaForCausalLM"},
    "hidden_act": "fatrelu",
    "hidden_act_param": 0.01,
    **LLAMA_7B,
}
BAMBOO = {
    "architectures": ["BambooForCausalLM"],
    "model_type": "bamboo",
    "auto_map": {"AutoModelForCausalLM": "modeling_bamboo.BambooForCausalLM"},
    "hidden_act": "relu",
    **LLAMA_7B,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "sliding_window": 4096,
}
del BAMBOO["pretraining_tp"]
MINICPM_S = {
    "architectures": ["MiniCPMForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_minicpm.MiniCPMForCausalLM"},
    "hidden_act": "fatrelu",
    "hidden_act_param": 0.01,
    "hidden_size": 1536,
    "intermediate_size": 3840,
    "max_position_embeddings": 4096,
    "num_attention_heads": 24,
    "num_hidden_layers": 52,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "scale_emb": 12,
    "dim_model_base": 256,
    "scale_depth": 1.4,
    "vocab_size": 73440,
}
AFM = {
    "architectures": ["ArceeForCausalLM"],
    "hidden_act": "relu2",
    "hidden_size": 2560,
    "intermediate_size": 18432,
    "num_attention_heads": 20,
    "num_hidden_layers": 36,
    "num_key_value_heads": 4,
    "vocab_size": 128004,
}
MINITRON = {
    "architectures": ["NemotronForCausalLM"],
    "hidden_act": "relu2",
    "head_dim": 128,
    "hidden_size": 3072,
    "intermediate_size": 9216,
    "norm_eps": 1e-05,
    "num_attention_heads": 24,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "partial_rotary_factor": 0.5,
    "vocab_size": 256000,
}


def ffn(config: ModelConfig) -> tuple[object, ...]:
    c = config
    return c.gated, c.act_gate, c.gate_threshold, c.act_up, c.up_threshold


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        (RELU_LLAMA, (True, "relu", 0.0, "none", 0.0)),
        (PROSPARSE, (True, "shifted_relu", 0.01, "none", 0.0)),
        (MINICPM_S, (True, "shifted_relu", 0.01, "none", 0.0)),
        (BAMBOO, (True, "relu", 0.0, "relu", 0.0)),
        (AFM, (False, "relu2", 0.0, "none", 0.0)),
        (MINITRON, (False, "relu2", 0.0, "none", 0.0)),
    ],
)
def test_activations_of_both_branches(keys: dict[str, Any], wanted: tuple[object, ...]) -> None:
    assert ffn(resolve(keys).config) == wanted


def parameters(model: Model) -> int:
    return sum(math.prod(spec.shape) for spec in model.tensors)


@pytest.mark.parametrize(
    ("keys", "count"),
    [
        (RELU_LLAMA, 6_738_415_616),  # Llama 2 7B's
        (PROSPARSE, 6_738_415_616),
        (BAMBOO, 7_241_732_096),  # Mistral 7B's
    ],
)
def test_parameters_are_those_of_the_model_they_come_from(keys: dict[str, Any], count: int) -> None:
    assert parameters(resolve(keys)) == count


@pytest.mark.parametrize(("keys", "billions"), [(MINICPM_S, 1.36), (AFM, 4.62), (MINITRON, 4.19)])
def test_parameters_are_those_that_the_authors_round_to(keys: dict[str, Any], billions: float) -> None:
    assert parameters(resolve(keys)) / 1e9 == pytest.approx(billions, abs=0.006)


def test_minicpm_scales() -> None:
    config = resolve(MINICPM_S).config
    assert config.embedding_scale == 12.0
    assert config.residual_scale == pytest.approx(1.4 / math.sqrt(52))
    assert config.logit_scale == pytest.approx(256 / 1536)
    assert not any(spec.role == "head" for spec in resolve(MINICPM_S).tensors)


def test_predictors_of_turbosparse_are_known_and_not_needed() -> None:
    model = resolve(BAMBOO)
    for role, name in model.predictor.items():
        assert role in ("predictor_in", "predictor_out")
        assert model.canonical(name.format(17)) is None
    assert len(model.predictor) == 2
    assert any("predictors" in note for note in model.notes)
    odd = "model.layers.17.mlp.predictor.fc3.weight"
    assert model.canonical(odd) == odd
    assert not resolve(RELU_LLAMA).predictor


def test_threshold_without_a_shifted_relu_changes_nothing() -> None:
    assert resolve(RELU_LLAMA | {"hidden_act_param": 0.01}) == resolve(RELU_LLAMA)


@pytest.mark.parametrize("threshold", [None, -0.5, "0.01", float("nan"), True])
def test_shifted_relu_needs_its_threshold(threshold: object) -> None:
    with pytest.raises(ModelError, match="hidden_act_param"):
        resolve(PROSPARSE | {"hidden_act_param": threshold})


@pytest.mark.parametrize(
    ("keys", "change", "message"),
    [
        (MINICPM_S, {"scale_depth": 0}, "'scale_depth' is 0; wanted a number above 0"),
        (MINICPM_S, {"num_experts": 8}, "'num_experts' is 8"),
        (MINICPM_S, {"sparse_config": {"block_size": 64}}, "'sparse_config' is"),
        (PROSPARSE, {"hidden_act": "fatrelu_0.01"}, "'hidden_act' is \"fatrelu_0.01\"; wanted silu or .*fatrelu"),
        (PROSPARSE, {"sparse_config": {}, "attention_sparsity": 1}, "'attention_sparsity' = 1"),
        (RELU_LLAMA, {"auto_map": {"AutoModel": "own.Model"}}, "'auto_map'"),
        (AFM, {"mlp_gate": True}, "'mlp_gate' = true"),
        (MINITRON, {"partial_rotary_factor": 2.0}, "'partial_rotary_factor' is 2.0"),
    ],
)
def test_what_would_change_the_result_is_refused(keys: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        resolve(keys | change)
