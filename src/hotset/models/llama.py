"""Llama 1 to 3, SmolLM2, ReluLLaMA, ProSparse and the many models of their shape.

Source: transformers models/llama (configuration_llama.py for the defaults).
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
from hotset.models.spec import Family, GgufLayout, Names, Parts


def build(
    cfg: Reader, *, act: str = "silu", norm_eps: float = 1e-6, max_position: int = 2048, tied: bool = False
) -> Parts:
    """The keyword arguments are defaults of keys, for families that differ in them."""
    sizes = read_sizes(cfg, max_position=max_position)
    rope = read_rope(cfg, sizes.head_dim, sizes.max_position)
    cfg.only("rope_interleaved", False, why="hotset rotates halves, as transformers does")
    config = ModelConfig(
        **sizes.common(),
        context=context_of(cfg, sizes, [rope]),
        attention_scale=sizes.head_dim**-0.5,
        layers=uniform_layers([0] * sizes.layers),
        ropes=(rope.config,),
        norm_eps=cfg.positive("rms_norm_eps", norm_eps),
        **read_activation(cfg, default=act),
    )
    return Parts(config, names(cfg, tied), unused=BUFFERS)


def names(cfg: Reader, tied: bool) -> Names:
    return {
        **EMBEDDING,
        **({} if cfg.flag("tie_word_embeddings", tied) else HEAD),
        **PRE_NORMS,
        **ATTENTION,
        **(ATTENTION_BIAS if cfg.flag("attention_bias", False) else {}),
        **GATED_FFN,
        **(GATED_FFN_BIAS if cfg.flag("mlp_bias", False) else {}),
    }


FAMILY = Family(
    name="llama",
    architectures=("LlamaForCausalLM", "LLaMAForCausalLM"),
    model_types=("llama",),
    build=build,
    inert=frozenset({"pretraining_tp", "is_llama_config"}),
    gguf=GgufLayout(
        arch="llama",
        architecture="LlamaForCausalLM",
        model_type="llama",
        interleaved=frozenset({"q", "k", "q_bias", "k_bias"}),
    ),
)
# The checkpoints' own class is LlamaForCausalLM with the shifted ReLU (hidden_act "fatrelu") put in.
PROSPARSE = Family(
    name="prosparse",
    architectures=("SparseLlamaForCausalLM",),
    model_types=("sparsellama",),
    build=build,
    inert=frozenset({"pretraining_tp", "auto_map"}),
)
