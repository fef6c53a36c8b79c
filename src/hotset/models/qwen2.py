"""Qwen 2 and 2.5: Llama's shape with biases on q, k and v, and windows in the upper layers if switched on.

Source: transformers models/qwen2.
"""

from hotset.config import ModelConfig
from hotset.models.blocks import (
    ATTENTION,
    ATTENTION_BIAS,
    BUFFERS,
    EMBEDDING,
    GATED_FFN,
    HEAD,
    PRE_NORMS,
    context_of,
    read_activation,
    read_qwen_windows,
    read_sizes,
    uniform_layers,
)
from hotset.models.reader import Reader
from hotset.models.rope import read_rope
from hotset.models.spec import Family, GgufLayout, Parts

QKV_BIAS = {role: name for role, name in ATTENTION_BIAS.items() if role != "o_bias"}


def build(cfg: Reader) -> Parts:
    sizes = read_sizes(cfg, max_position=32768, kv_heads=32)
    rope = read_rope(cfg, sizes.head_dim, sizes.max_position)
    cfg.only("attention_bias", True, why="Qwen 2 always has biases on q, k and v")
    cfg.only("use_mrope", False)
    config = ModelConfig(
        **sizes.common(),
        context=context_of(cfg, sizes, [rope]),
        attention_scale=sizes.head_dim**-0.5,
        layers=uniform_layers(read_qwen_windows(cfg, sizes.layers)),
        ropes=(rope.config,),
        norm_eps=cfg.positive("rms_norm_eps", 1e-6),
        **read_activation(cfg),
    )
    tied = cfg.flag("tie_word_embeddings", False)
    names = {**EMBEDDING, **({} if tied else HEAD), **PRE_NORMS, **ATTENTION, **QKV_BIAS, **GATED_FFN}
    return Parts(config, names, unused=BUFFERS)


FAMILY = Family(
    name="qwen2",
    architectures=("Qwen2ForCausalLM",),
    model_types=("qwen2",),
    build=build,
    gguf=GgufLayout(arch="qwen2", architecture="Qwen2ForCausalLM", model_type="qwen2"),
)
