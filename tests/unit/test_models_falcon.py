"""Falcon: its three kinds of attention, what is refused, and tensors that lie fused in the checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_vectors import FOLDER, load, part_of, read_tensors
from safetensors.numpy import save_file

from hotset.errors import FormatError, ModelError
from hotset.models import resolve
from hotset.tools.convert import convert

SMALL: dict[str, Any] = {
    "architectures": ["FalconForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
NEW = SMALL | {"new_decoder_architecture": True}
QKV = "transformer.h.1.self_attention.query_key_value.weight"


def shapes_of(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {spec.source_name: spec.source_shape for spec in resolve(config).tensors}


# --- config -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "kv_heads", "rows"),
    [
        (SMALL, 1, 96),
        (SMALL | {"num_kv_heads": 4}, 1, 96),  # not read by the older architecture
        (SMALL | {"multi_query": False}, 4, 192),
        (NEW | {"num_kv_heads": 2}, 2, 128),
        (NEW, 4, 192),
    ],
)
def test_kv_heads_and_rows_of_the_fused_tensor(config: dict[str, Any], kv_heads: int, rows: int) -> None:
    assert resolve(config).config.kv_heads == kv_heads
    assert shapes_of(config)[QKV] == (rows, 64)
    assert shapes_of(config | {"bias": True})[QKV.replace("weight", "bias")] == (rows,)


@pytest.mark.parametrize(
    ("config", "parallel", "norms"),
    [
        (SMALL, True, {"input_layernorm"}),
        (SMALL | {"parallel_attn": False}, False, {"input_layernorm", "post_attention_layernorm"}),
        (NEW, True, {"ln_attn", "ln_mlp"}),
        (NEW | {"num_ln_in_parallel_attn": 1}, True, {"input_layernorm"}),
    ],
)
def test_norms_of_a_block(config: dict[str, Any], parallel: bool, norms: set[str]) -> None:
    assert resolve(config).config.parallel is parallel
    names = {name.split(".")[3] for name in shapes_of(config) if name.startswith("transformer.h.1.")}
    assert names - {"self_attention", "mlp"} == norms


def test_an_activation_that_is_not_named_is_gelu_and_the_user_is_told() -> None:
    model = resolve(SMALL)
    assert (model.config.act_gate, model.config.gated, model.config.ffn) == ("gelu", False, 256)
    assert '"activation": "relu"' in model.notes[0]
    relu = resolve(SMALL | {"activation": "relu", "ffn_hidden_size": 96})
    assert (relu.config.act_gate, relu.config.ffn, relu.notes) == ("relu", 96, ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alibi": True}, "'alibi' is true; wanted false .*no attention biases"),
        ({"apply_residual_connection_post_layernorm": True}, "'apply_residual_connection_post_layernorm' is true"),
        ({"activation": "mish"}, "'activation' is \"mish\"; wanted silu or .*gelu.*relu"),
        ({"num_attention_heads": 5}, "'num_attention_heads' is 5; wanted a divisor of hidden_size, 64"),
        ({"multi_query": False, "num_kv_heads": 2}, "'num_kv_heads' is 2; wanted num_attention_heads, 4"),
        ({"new_decoder_architecture": True, "num_kv_heads": 3}, "'num_kv_heads' is 3; wanted a divisor of"),
        ({"new_decoder_architecture": True, "parallel_attn": False}, "'parallel_attn' is false; wanted true"),
        ({"new_decoder_architecture": True, "num_ln_in_parallel_attn": 3}, "'num_ln_in_parallel_attn' is 3; wanted 1"),
        ({"num_ln_in_parallel_attn": 2}, "'num_ln_in_parallel_attn' is 2; wanted 1, without new_decoder"),
        ({"hidden_act": "relu"}, "'hidden_act' = \"relu\""),
    ],
)
def test_what_hotset_does_not_compute_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        resolve(SMALL | change)


# --- fused tensors ----------------------------------------------------------------------------------


def test_a_fused_tensor_is_known_by_its_own_name_only() -> None:
    model = resolve(SMALL)
    assert model.canonical(QKV) == QKV
    odd = "transformer.h.1.self_attention.r_proj.weight"
    assert model.canonical(odd) == odd


def spoilt(folder: Path, **changes: Any) -> Path:
    """The grouped vector's checkpoint with some tensors replaced, None: removed."""
    shutil.copytree(FOLDER / "falcon_grouped", folder, ignore=shutil.ignore_patterns("expected*"))
    tensors = read_tensors(folder / "model.safetensors") | changes
    kept = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (None, f"missing: {QKV}; "),
        (np.zeros((127, 64), np.float32), rf"of the wrong shape: {QKV} \[127, 64\] instead of \[128, 64\]"),
    ],
)
def test_a_fused_tensor_that_does_not_fit_is_named_once(tensor: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message.removesuffix("; ")) as caught:
        convert(spoilt(tmp_path / "model", **{QKV: tensor}), tmp_path / "store")
    assert str(caught.value).count(QKV) == 1


def test_a_weight_that_is_no_number_is_named_with_part_and_whole(tmp_path: Path) -> None:
    whole = read_tensors(FOLDER / "falcon_grouped" / "model.safetensors")[QKV].copy()
    whole[64 + 32 + 3, 21] = np.nan  # second group of 64 rows: two query heads of 16, a key, a value
    part = QKV.replace("query_key_value", "k_proj")
    with pytest.raises(FormatError, match=f"'{part}', part of '{QKV}', holds nan at row 19, column 21"):
        convert(spoilt(tmp_path / "model", **{QKV: whole}), tmp_path / "store", quant="f32")


def test_parts_share_out_every_row() -> None:
    for name in ("falcon", "falcon_grouped", "falcon_in_turn"):
        parts = [spec for spec in load(name).model.tensors if spec.source_name == QKV]
        rows = np.arange(parts[0].source_shape[0])[:, None].repeat(parts[0].cols, axis=1)
        taken = np.concatenate([part_of(rows, spec)[:, 0] for spec in parts])
        np.testing.assert_array_equal(np.sort(taken), rows[:, 0])
