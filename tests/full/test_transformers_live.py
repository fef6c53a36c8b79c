"""Random shapes of every family, run by the installed transformers, the NumPy twin and the native engine."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from engine_runs import ISAS, assert_close, assert_engine_close, engine, prompt, step
from golden_vectors import NAMES, Vector, load

from hotset.formats.store import open_store
from hotset.models import resolve
from hotset.tools.convert import convert

pytestmark = pytest.mark.full
SCRIPT = Path(__file__).parents[2] / "scripts" / "make_vectors.py"
SHAPES = 4  # for each case of the script
CASES = 25  # in the script; known here so that collecting needs no torch


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """scripts/make_vectors.py; skipped where torch or transformers is missing."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    spec = importlib.util.spec_from_file_location("make_vectors", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_vectors"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    assert len(module.CASES) == CASES
    return module


def random_shape(case: Any, random: np.random.Generator) -> Any:
    """The case with other sizes; what decides its kind stays."""
    kv_heads, head_dim = int(random.integers(1, 4)), 2 * int(random.integers(4, 20))
    if "partial_rotary_factor" in case.config:
        head_dim *= 2  # the half that rotates has pairs
    heads = kv_heads * int(random.integers(1, 4))
    changes: dict[str, Any] = {
        "num_attention_heads": heads,
        "hidden_size": heads * head_dim,
        "vocab_size": int(random.integers(20, 300)),
    }
    if case.model_type == "opt":
        changes |= {"ffn_dim": int(random.integers(8, 200)), "word_embed_proj_dim": heads * head_dim}
    elif case.model_type == "falcon":
        changes |= {key: kv_heads for key in ("num_kv_heads",) if key in case.config}
        changes["ffn_hidden_size"] = int(random.integers(8, 200))
        if "new_decoder_architecture" in case.config:
            changes["num_ln_in_parallel_attn"] = int(random.integers(1, 3))
        elif not case.config.get("multi_query", True):
            changes["parallel_attn"] = bool(random.integers(2))
    else:
        changes |= {"num_key_value_heads": kv_heads, "intermediate_size": int(random.integers(8, 200))}
        changes["head_dim"] = 2 * int(random.integers(4, 20)) if "head_dim" in case.config else head_dim
    if "layer_types" not in case.config:
        changes["num_hidden_layers"] = int(random.integers(1, 5))
    if case.config.get("sliding_window"):
        changes["sliding_window"] = int(random.integers(2, 40))
    longest = 60
    if "max_position_embeddings" not in case.config:  # where it is, it decides the kind of RoPE
        changes["max_position_embeddings"] = 256
        longest = int(random.choice([60, 240]))
    return replace(case, config=case.config | changes, tokens=int(random.integers(2, longest)))


@pytest.mark.parametrize("name", NAMES)
def test_config_as_the_installed_transformers_saves_it(name: str, script: ModuleType, tmp_path: Path) -> None:
    if any(case.name == name and case.parent for case in script.CASES):
        pytest.skip("its class is in the checkpoint, not in transformers")
    script.AutoConfig.from_pretrained(load(name).folder).save_pretrained(tmp_path)
    model = resolve(json.loads((tmp_path / "config.json").read_text()))
    assert (model.config, model.tensors) == (load(name).model.config, load(name).model.tensors)


@pytest.mark.parametrize("shape", range(SHAPES))
@pytest.mark.parametrize("index", range(CASES))
def test_random_shape(index: int, shape: int, script: ModuleType, tmp_path: Path) -> None:
    seed = 1000 * index + shape
    case = random_shape(script.CASES[index], np.random.default_rng(seed))
    script.write(tmp_path / "model", case, seed)
    values = script.expected(script.build(tmp_path / "model", case, seed), case, seed)
    script.save_file(values, tmp_path / "model" / "expected.safetensors")

    vector = Vector(tmp_path / "model")
    assert_close(vector.twin("exact"), vector.logits, vector.tolerance("exact"))
    fmt = {"torch.bfloat16": "bf16", "torch.float16": "f16", "torch.float32": "f32"}[str(case.dtype)]
    convert(vector.folder, tmp_path / "store", quant=fmt)
    for isa in (ISAS[0], ISAS[-1]):
        core = engine(open_store(tmp_path / "store"), isa)
        seq, rows = prompt(core, vector.tokens, 13)
        rest = [step(core, [(seq, [token])])[0] for token in vector.continuation]
        assert_engine_close(vector, np.concatenate([rows, *rest]), "f16")
