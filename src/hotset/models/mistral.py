"""Mistral 7B, Nemo and Small (text): Llama's shape with a sliding window in every layer, and no biases.

Source: transformers models/mistral.
"""

from hotset.config import ModelConfig
from hotset.models.blocks import (
    ATTENTION,
    BUFFERS,
    EMBEDDING,
    GATED_FFN,
    HEAD,
    PRE_NORMS,
    context_of,
    read_activation,
    read_sizes,
    read_window,
    uniform_layers,
)
from hotset.models.reader import Reader
from hotset.models.rope import read_rope
from hotset.models.spec import Family, Parts


def build(cfg: Reader) -> Parts:
    sizes = read_sizes(cfg, max_position=4096 * 32, kv_heads=8)
    rope = read_rope(cfg, sizes.head_dim, sizes.max_position)
    cfg.only("attention_bias", False)
    cfg.only("mlp_bias", False)
    config = ModelConfig(
        **sizes.common(),
        context=context_of(cfg, sizes, [rope]),
        attention_scale=sizes.head_dim**-0.5,
        layers=uniform_layers([read_window(cfg, 4096)] * sizes.layers),
        ropes=(rope.config,),
        norm_eps=cfg.positive("rms_norm_eps", 1e-6),
        **read_activation(cfg),
    )
    tied = cfg.flag("tie_word_embeddings", False)
    names = {**EMBEDDING, **({} if tied else HEAD), **PRE_NORMS, **ATTENTION, **GATED_FFN}
    return Parts(config, names, unused=BUFFERS)


FAMILY = Family(
    name="mistral", architectures=("MistralForCausalLM",), model_types=("mistral",), build=build
)  # llama.cpp writes Mistral as arch "llama", without the window
