"""Nemotron-4 and Minitron: LayerNorm with weights (1 + w) and biases, half of each head rotated, a plain ReLU² FFN.

Source: transformers models/nemotron; arXiv:2402.16819.
"""

from hotset.config import ModelConfig
from hotset.models.blocks import (
    ATTENTION,
    ATTENTION_BIAS,
    BUFFERS,
    EMBEDDING,
    GATED_FFN,
    GATED_FFN_BIAS,
    HEAD,
    PRE_NORMS,
    context_of,
    read_activation,
    read_sizes,
    uniform_layers,
)
from hotset.models.reader import Reader
from hotset.models.rope import read_rope
from hotset.models.spec import Family, Names, Parts

NORMS: Names = {**PRE_NORMS, "final_norm": EMBEDDING["final_norm"]}


def build(cfg: Reader) -> Parts:
    sizes = read_sizes(cfg, max_position=4096)
    rope = read_rope(cfg, sizes.head_dim, sizes.max_position, partial=0.5)
    config = ModelConfig(
        **sizes.common(),
        context=context_of(cfg, sizes, [rope]),
        attention_scale=sizes.head_dim**-0.5,
        layers=uniform_layers([0] * sizes.layers),
        ropes=(rope.config,),
        norm="layer",
        norm_eps=cfg.positive("norm_eps", 1e-5),
        norm_offset=1.0,
        gated=False,
        **read_activation(cfg, default="relu2"),
    )
    return Parts(config, _names(cfg), unused=BUFFERS)


def _names(cfg: Reader) -> Names:
    names = {
        **EMBEDDING,
        **({} if cfg.flag("tie_word_embeddings", False) else HEAD),
        **NORMS,
        **{f"{role}_bias": name.removesuffix("weight") + "bias" for role, name in NORMS.items()},
        **ATTENTION,
        **(ATTENTION_BIAS if cfg.flag("attention_bias", False) else {}),
        **GATED_FFN,
        **(GATED_FFN_BIAS if cfg.flag("mlp_bias", False) else {}),
    }
    return {role: name for role, name in names.items() if role not in ("gate", "gate_bias")}


FAMILY = Family(name="nemotron", architectures=("NemotronForCausalLM",), model_types=("nemotron",), build=build)
