"""Runs of `hotset sparsify` under a limit on their memory: each says where it ended and what takes less there."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from sparsify_runs import MODEL, corpus, limited

pytestmark = pytest.mark.full
pytest.importorskip("torch")
pytest.importorskip("transformers")

MIB = 1 << 20


def model_of(folder: Path, hidden: int, ffn: int) -> Path:
    """A Llama of one layer with stories260K's tokenizer; its weights, all 0, are a hole in the file."""
    shutil.copytree(MODEL, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((MODEL / "config.json").read_text())
    config |= {"hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": 1, "num_key_value_heads": 8}
    (folder / "config.json").write_text(json.dumps(config))
    layer = "model.layers.0."
    shapes = {"model.embed_tokens.weight": [512, hidden], "model.norm.weight": [hidden]}
    shapes |= {f"{layer}self_attn.{name}_proj.weight": [hidden, hidden] for name in "qkvo"}
    shapes |= {f"{layer}mlp.{name}_proj.weight": [ffn, hidden] for name in ("gate", "up")}
    shapes |= {f"{layer}mlp.down_proj.weight": [hidden, ffn]}
    shapes |= {f"{layer}{name}_layernorm.weight": [hidden] for name in ("input", "post_attention")}
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(file.tell() + end)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = corpus(tmp_path_factory.mktemp("text"))
    path.write_text(40 * path.read_text())
    return path


FIRST = {"ffn-tokens": 3200, "micro-batch": 2}


@pytest.mark.parametrize(
    ("shape", "most", "flags", "said"),
    [
        # 3 GiB of weights.
        ((512, 1 << 19), 600 * MIB, {}, "the model's weights; try a smaller model"),
        ((512, 1 << 19), 600 * MIB, {"from-scratch": None}, "the model's weights; try a smaller model"),
        # 384 MiB of weights; they are mapped and read, so for a moment there twice.
        (
            (512, 1 << 16),
            1175 * MIB,
            {"distill": 0.5},
            "the original's weights beside the model's; try no --distill or a smaller model",
        ),
        (
            (512, 1 << 16),
            1175 * MIB,
            FIRST | {"distill": 0.5},
            "the original's weights beside the model's; try no --distill and no --ffn-tokens or a smaller model",
        ),
        # 192 MiB of weights, as many of gradients, twice as many of moments.
        (
            (512, 1 << 15),
            850 * MIB,
            {"from-scratch": None},
            "the state of adamw; try --optimizer muon, more devices under torchrun or a smaller model",
        ),
        # 2 GiB of neurons in the pass.
        (
            (64, 4096),
            500 * MIB,
            {"micro-batch": 1024, "batch": 1024, "sequence": 128},
            "a pass of 1024 sequences of 128 tokens; try --micro-batch 512, --recompute, --dtype bf16, a shorter "
            "--sequence or a smaller model",
        ),
        (
            (64, 32768),
            500 * MIB,
            {"micro-batch": 1, "batch": 1, "sequence": 2400, "dtype": "bf16", "recompute": None},
            "a pass of 1 sequence of 2400 tokens; try a shorter --sequence or a smaller model",
        ),
        # 2 GiB of streams.
        (
            (512, 64),
            500 * MIB,
            FIRST | {"ffn-tokens": 524288, "micro-batch": 64},
            "the streams of 524288 tokens in the first stage; try fewer --ffn-tokens (is 524288) or a smaller model",
        ),
        # 1.5 GiB of neurons in the first pass.
        (
            (64, 8192),
            500 * MIB,
            FIRST | {"ffn-tokens": 51200, "micro-batch": 1600, "zeros": 0.8},
            "a pass of 1600 sequences of 32 tokens in the first stage; try --micro-batch 800, a shorter --sequence or "
            "a smaller model",
        ),
        # 1 GiB of products of neurons.
        (
            (64, 16384),
            700 * MIB,
            FIRST,
            "the least squares of 16384 neurons in the first stage; try fewer --ffn-tokens (is 3200) or a smaller "
            "model",
        ),
        # 400 MiB for each of gate, up and what comes of them.
        (
            (32, 512),
            900 * MIB,
            FIRST | {"ffn-tokens": 204800, "ffn-batch": 204800, "micro-batch": 64},
            "an update on 204800 tokens in the first stage; try --ffn-batch 102400, --dtype bf16, fewer --ffn-tokens "
            "(is 204800) or a smaller model",
        ),
    ],
)
def test_out_of_memory_says_what_takes_less_there(
    shape: tuple[int, int], most: int, flags: dict[str, Any], said: str, text: Path, tmp_path: Path
) -> None:
    model = model_of(tmp_path / "model", *shape)
    code, err = limited(model, tmp_path / "run", text, most, flags)
    assert (code, err) == (6, f"hotset: out of memory for {said}")
