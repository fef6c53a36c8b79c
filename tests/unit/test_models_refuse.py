"""Configs that must be refused: every message names key, value and what to do; nothing but ModelError comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotset.errors import ModelError
from hotset.models import resolve

VECTORS = Path(__file__).parent.parent / "golden" / "vectors"
CONFIGS = [json.loads(path.read_text()) for path in sorted(VECTORS.glob("*/config.json"))]
SMALL: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@pytest.mark.parametrize("key", [key for key in SMALL if key != "architectures"])
def test_missing_keys_without_default(key: str) -> None:
    with pytest.raises(ModelError, match=f"lacks the key '{key}'"):
        resolve({k: v for k, v in SMALL.items() if k != key})


def test_unknown_key_is_named_with_its_value_and_the_way_out() -> None:
    keys = SMALL | {"clip_qkv": 8.0, "mystery": {"a": 1}}
    with pytest.raises(ModelError, match=r"'clip_qkv' = 8.0, 'mystery' = .*--ignore-key clip_qkv --ignore-key mystery"):
        resolve(keys)
    assert resolve(keys, ignore_keys=["clip_qkv", "mystery"]) == resolve(SMALL)


def test_ignoring_a_known_key_makes_it_absent() -> None:
    keys = SMALL | {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "odd": 1}}
    with pytest.raises(ModelError, match=r"--ignore-key rope_scaling.odd"):
        resolve(keys)
    assert resolve(keys, ignore_keys=["rope_scaling.odd"]).config.context == 4096
    assert resolve(keys, ignore_keys=["rope_scaling"]) == resolve(SMALL)


def test_a_store_remembers_the_keys_it_was_converted_without() -> None:
    store = SMALL | {"mystery": 1, "hotset": {"options": {"ignore_keys": ["mystery"]}}}
    assert resolve(store) == resolve(SMALL)
    with pytest.raises(ModelError, match="'hotset' is 3; wanted an object"):
        resolve(SMALL | {"hotset": 3})


def test_keys_that_are_harmless_are_accepted() -> None:
    harmless = {
        "use_cache": True,
        "torch_dtype": "float16",
        "transformers_version": "4.40.0",
        "eos_token_id": [1, 2],
        "initializer_range": 0.02,
        "attention_dropout": 0.0,
        "temperature": 0.7,
        "hotset": {"format_version": 1},
        "unheard_of": None,
    }
    assert resolve(SMALL | harmless) == resolve(SMALL)


BAD_VALUES: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": 0}, "'hidden_size' is 0; wanted a whole number from 1"),
    ({"hidden_size": -64}, "'hidden_size' is -64"),
    ({"hidden_size": "64"}, "'hidden_size' is \"64\""),
    ({"hidden_size": 64.5}, "'hidden_size' is 64.5"),
    ({"hidden_size": True}, "'hidden_size' is true"),
    ({"vocab_size": 2**31}, "'vocab_size' is 2147483648"),
    ({"vocab_size": [100]}, "'vocab_size'"),
    ({"num_hidden_layers": 10**6}, "'num_hidden_layers' is 1000000; wanted at most 4096"),
    ({"num_attention_heads": 5}, "'num_attention_heads' is 5; wanted a divisor of hidden_size, 64"),
    ({"num_key_value_heads": 3}, "'num_key_value_heads' is 3; wanted a divisor of num_attention_heads, 4"),
    ({"head_dim": 2**30}, "'head_dim'"),
    ({"head_dim": 7}, "'partial_rotary_factor'"),
    ({"rms_norm_eps": 0}, "'rms_norm_eps' is 0; wanted a number above 0"),
    ({"rms_norm_eps": float("nan")}, "'rms_norm_eps'"),
    ({"hidden_act": "mish"}, "'hidden_act' is \"mish\"; wanted silu or"),
    ({"tie_word_embeddings": "yes"}, "'tie_word_embeddings' is \"yes\"; wanted true or false"),
    ({"rope_theta": 0.5}, "'rope_theta' is 0.5; wanted a number above 1"),
    ({"rope_interleaved": True}, "'rope_interleaved' is true; wanted false"),
    ({"rope_scaling": {"type": "longrope"}}, r"'rope_scaling\.type' is \"longrope\"; wanted default or"),
    ({"rope_scaling": {"type": "linear"}}, r"lacks the key 'rope_scaling\.factor'"),
    ({"rope_scaling": {"type": "linear", "factor": 1e30}}, r"'rope_scaling\.factor' is 1e\+30"),
    ({"rope_scaling": "linear"}, "'rope_scaling' is \"linear\"; wanted an object"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}}, "older way"),
    ({"max_position_embeddings": 2**30, "rope_scaling": {"type": "linear", "factor": 8.0}}, "a context below 2\\^31"),
    ({"partial_rotary_factor": 1.5}, "'partial_rotary_factor' is 1.5; wanted a number up to 1"),
    ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq.*convert the unquantized model"),
    ({"is_encoder_decoder": True}, "'is_encoder_decoder' is true"),
    ({"architectures": "LlamaForCausalLM"}, "'architectures'"),
    ({"architectures": [["LlamaForCausalLM"]]}, "is not one that hotset runs"),
]


@pytest.mark.parametrize(("change", "message"), BAD_VALUES, ids=[str(change)[:60] for change, _ in BAD_VALUES])
def test_bad_values(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        resolve(SMALL | change)


def test_gemma3_attention_softcap_is_refused() -> None:
    gemma = SMALL | {"architectures": ["Gemma3ForCausalLM"], "attn_logit_softcapping": 50.0}
    with pytest.raises(ModelError, match=r"attn_logit_softcapping' is 50.0; wanted its absence"):
        resolve(gemma)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
SECTION_KEYS = ("rope_type", "type", "factor", "rope_theta", "low_freq_factor", "high_freq_factor", "factors", "mscale")


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_value_anywhere_gives_a_model_or_a_model_error(data: st.DataObject) -> None:
    config = dict(data.draw(st.sampled_from(CONFIGS)))
    for key in data.draw(st.lists(st.sampled_from(sorted(config)), min_size=1, max_size=2)):
        config[key] = data.draw(JSON)
    kinds = st.sampled_from(("default", "linear", "dynamic", "llama3", "yarn"))
    number = st.floats() | st.integers(-2, 10**9) | JSON
    if data.draw(st.booleans()):
        section = data.draw(st.dictionaries(st.sampled_from(SECTION_KEYS), number, max_size=5))
        config["rope_scaling"] = section | {"rope_type": data.draw(kinds)}
    try:
        model = resolve(config)
    except ModelError as error:
        assert len(str(error)) < 2000
    else:
        assert model.tensors and model.config.context > 0
