"""Gemma 3, text: local layers with a window and their own RoPE base between global ones, norms around every block
with weights (1 + w), GeGLU, an embedding scaled by sqrt(hidden).

Source: transformers models/gemma3; arXiv:2503.19786.
"""

from typing import Any

from hotset.config import LayerConfig, ModelConfig
from hotset.models.blocks import (
    ATTENTION,
    ATTENTION_BIAS,
    BUFFERS,
    EMBEDDING,
    GATED_FFN,
    HEAD,
    LAYER_TYPES,
    QK_NORM,
    Sizes,
    check_sizes,
    context_of,
    read_activation,
    read_window,
)
from hotset.models.inert import INERT
from hotset.models.reader import Reader
from hotset.models.rope import Rope, from_section, read_nested_rope
from hotset.models.spec import Family, GgufLayout, Names, Parts

GLOBAL_BASE, LOCAL_BASE = 1e6, 1e4
GLOBAL, LOCAL = 0, 1  # indices of the two rotations
NORMS = {
    "attn_norm": "model.layers.{}.input_layernorm.weight",
    "attn_post_norm": "model.layers.{}.post_attention_layernorm.weight",
    "ffn_norm": "model.layers.{}.pre_feedforward_layernorm.weight",
    "ffn_post_norm": "model.layers.{}.post_feedforward_layernorm.weight",
}


def build(cfg: Reader) -> Parts:
    sizes = _sizes(cfg)
    ropes = _ropes(cfg, sizes)
    cfg.only("attn_logit_softcapping", why="hotset does not cap attention scores")
    cfg.only("use_bidirectional_attention", False, why="hotset's attention is causal")
    config = ModelConfig(
        **sizes.common(),
        context=context_of(cfg, sizes, ()),  # max_position_embeddings already counts the scaling
        attention_scale=cfg.positive("query_pre_attn_scalar", 256.0) ** -0.5,
        layers=_layers(cfg, sizes.layers),
        ropes=tuple(rope.config for rope in ropes),
        norm_eps=cfg.positive("rms_norm_eps", 1e-6),
        norm_offset=1.0,
        qk_norm="per_head",
        embedding_scale=sizes.hidden**0.5,
        logit_softcap=cfg.positive("final_logit_softcapping", 0.0),
        **read_activation(cfg, "hidden_activation", "gelu_pytorch_tanh"),
    )
    return Parts(config, _names(cfg), unused=BUFFERS)


def _sizes(cfg: Reader) -> Sizes:
    # Multimodal configs leave out what equals the class defaults, so here sizes have them too.
    sizes = Sizes(
        hidden=cfg.size("hidden_size", 2304),
        vocab=cfg.size("vocab_size", 262208),
        ffn=cfg.size("intermediate_size", 9216),
        heads=cfg.size("num_attention_heads", 8),
        kv_heads=cfg.size("num_key_value_heads", 4),
        head_dim=cfg.size("head_dim", 256),
        layers=cfg.size("num_hidden_layers", 26),
        max_position=cfg.size("max_position_embeddings", 131072),
    )
    return check_sizes(cfg, sizes)


def _ropes(cfg: Reader, sizes: Sizes) -> tuple[Rope, Rope]:
    """Global and local rotation, from the older keys or from rope_parameters by layer type."""
    shape = sizes.head_dim, sizes.max_position
    bases = _base(cfg, "rope_theta", GLOBAL_BASE), _base(cfg, "rope_local_base_freq", LOCAL_BASE)
    scaling, nested = cfg.section("rope_scaling"), cfg.section("rope_parameters")
    if nested is None:
        return (
            from_section(scaling or Reader({}), *shape, bases[GLOBAL], 1.0),
            from_section(Reader({}), *shape, bases[LOCAL], 1.0),
        )
    if scaling is not None:
        cfg.refuse("rope_parameters", "its absence", "rope_scaling says the same in the older way")
    sections = [nested.section(kind) or Reader({}) for kind in LAYER_TYPES]
    nested.finish()
    return (
        read_nested_rope(sections[GLOBAL], *shape, bases[GLOBAL]),
        read_nested_rope(sections[LOCAL], *shape, bases[LOCAL]),
    )


def _base(cfg: Reader, key: str, default: float) -> float:
    base = cfg.positive(key, default)
    if base <= 1:
        cfg.refuse(key, "a number above 1")
    return base


def _layers(cfg: Reader, layers: int) -> tuple[LayerConfig, ...]:
    window = read_window(cfg, 4096)
    older = cfg.size("_sliding_window_pattern", 6)
    pattern = cfg.size("sliding_window_pattern", older)
    types = cfg.strings("layer_types", LAYER_TYPES, layers)
    if types is None:
        types = [LAYER_TYPES[(i + 1) % pattern > 0] for i in range(layers)]
    return tuple(
        LayerConfig(window=window, rope=LOCAL) if kind == "sliding_attention" else LayerConfig(rope=GLOBAL)
        for kind in types
    )


def _names(cfg: Reader) -> Names:
    tied, biases = cfg.flag("tie_word_embeddings", True), cfg.flag("attention_bias", False)
    return {
        **EMBEDDING,
        **({} if tied else HEAD),
        **NORMS,
        **ATTENTION,
        **(ATTENTION_BIAS if biases else {}),
        **QK_NORM,
        **GATED_FFN,
    }


def build_multimodal(cfg: Reader) -> Parts:
    """The language part of Gemma3ForConditionalGeneration: its text_config, tensors under language_model."""
    text = cfg.section("text_config")
    if text is None:
        cfg.refuse("text_config", "the section that describes the language model")
    text.only("model_type", "gemma3_text")
    cfg.only("tie_word_embeddings", True)
    parts = build(text)
    text.finish(INERT)
    return Parts(
        parts.config,
        {role: f"language_model.{name}" for role, name in parts.names.items()},
        unused=(
            *BUFFERS,
            "vision_tower.*",
            "multi_modal_projector.*",
            "model.vision_tower.*",
            "model.multi_modal_projector.*",
        ),
        prefixes=(("model.language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head.")),
        notes=("only the language model is used; images need the vision tower, which is left out",),
    )


def _extend_gguf(metadata: Reader, config: dict[str, Any]) -> None:
    hidden, heads, layers = (config[k] for k in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    config["hidden_activation"] = "gelu_pytorch_tanh"
    config["sliding_window"] = metadata.size("attention.sliding_window")
    config["sliding_window_pattern"] = metadata.size("attention.sliding_window_pattern", 6)
    config["rope_theta"] = metadata.positive("rope.freq_base", GLOBAL_BASE)
    config["rope_local_base_freq"] = metadata.positive("rope.freq_base_swa", LOCAL_BASE)
    config["final_logit_softcapping"] = metadata.positive("final_logit_softcapping", None)
    # The files do not say it: all sizes use the head size but the 27B, which is told by its number of layers.
    config["query_pre_attn_scalar"] = hidden // heads if layers == 62 else config["head_dim"]


VISION = frozenset({"vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index"})

FAMILY = Family(
    name="gemma3",
    architectures=("Gemma3ForCausalLM",),
    model_types=("gemma3_text",),
    build=build,
    gguf=GgufLayout(
        arch="gemma3",
        architecture="Gemma3ForCausalLM",
        model_type="gemma3_text",
        extend=_extend_gguf,
        shifted=True,
    ),
)
MULTIMODAL = Family(
    name="gemma3",
    architectures=("Gemma3ForConditionalGeneration",),
    model_types=("gemma3",),
    build=build_multimodal,
    inert=VISION,
)
