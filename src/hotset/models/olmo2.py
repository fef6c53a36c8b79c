"""OLMo 2: no norm before a block, one on its output; q and k are normed over all heads together.

Source: transformers models/olmo2.
"""

from hotset.config import ModelConfig
from hotset.models.blocks import (
    ATTENTION,
    ATTENTION_BIAS,
    BUFFERS,
    EMBEDDING,
    GATED_FFN,
    HEAD,
    QK_NORM,
    context_of,
    read_activation,
    read_sizes,
    uniform_layers,
)
from hotset.models.reader import Reader
from hotset.models.rope import read_rope
from hotset.models.spec import Family, GgufLayout, Parts

POST_NORMS = {
    "attn_post_norm": "model.layers.{}.post_attention_layernorm.weight",
    "ffn_post_norm": "model.layers.{}.post_feedforward_layernorm.weight",
}


def build(cfg: Reader) -> Parts:
    sizes = read_sizes(cfg, max_position=2048)
    rope = read_rope(cfg, sizes.head_dim, sizes.max_position)
    cfg.only("clip_qkv")
    config = ModelConfig(
        **sizes.common(),
        context=context_of(cfg, sizes, [rope]),
        attention_scale=sizes.head_dim**-0.5,
        layers=uniform_layers([0] * sizes.layers),
        ropes=(rope.config,),
        norm_eps=cfg.positive("rms_norm_eps", 1e-5),
        qk_norm="full",
        **read_activation(cfg),
    )
    tied, biases = cfg.flag("tie_word_embeddings", False), cfg.flag("attention_bias", False)
    names = {
        **EMBEDDING,
        **({} if tied else HEAD),
        **ATTENTION,
        **(ATTENTION_BIAS if biases else {}),
        **QK_NORM,
        **POST_NORMS,
        **GATED_FFN,
    }
    return Parts(config, names, unused=BUFFERS)


FAMILY = Family(
    name="olmo2",
    architectures=("Olmo2ForCausalLM",),
    model_types=("olmo2",),
    build=build,
    gguf=GgufLayout(arch="olmo2", architecture="Olmo2ForCausalLM", model_type="olmo2"),
)
