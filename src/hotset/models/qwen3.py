"""Qwen 3 (dense): RMS norms on every head's q and k before the rotation, head size of its own, biases only if asked.

Source: transformers models/qwen3.
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
    QK_NORM,
    context_of,
    read_activation,
    read_qwen_windows,
    read_sizes,
    uniform_layers,
)
from hotset.models.reader import Reader
from hotset.models.rope import read_rope
from hotset.models.spec import Family, GgufLayout, Parts


def build(cfg: Reader) -> Parts:
    sizes = read_sizes(cfg, max_position=32768, kv_heads=32, head_dim=128)
    rope = read_rope(cfg, sizes.head_dim, sizes.max_position)
    config = ModelConfig(
        **sizes.common(),
        context=context_of(cfg, sizes, [rope]),
        attention_scale=sizes.head_dim**-0.5,
        layers=uniform_layers(read_qwen_windows(cfg, sizes.layers)),
        ropes=(rope.config,),
        norm_eps=cfg.positive("rms_norm_eps", 1e-6),
        qk_norm="per_head",
        **read_activation(cfg),
    )
    tied, biases = cfg.flag("tie_word_embeddings", False), cfg.flag("attention_bias", False)
    names = {
        **EMBEDDING,
        **({} if tied else HEAD),
        **PRE_NORMS,
        **ATTENTION,
        **(ATTENTION_BIAS if biases else {}),
        **QK_NORM,
        **GATED_FFN,
    }
    return Parts(config, names, unused=BUFFERS)


FAMILY = Family(
    name="qwen3",
    architectures=("Qwen3ForCausalLM",),
    model_types=("qwen3",),
    build=build,
    gguf=GgufLayout(arch="qwen3", architecture="Qwen3ForCausalLM", model_type="qwen3"),
)
