"""OPT: LayerNorm with biases, learned positions, a plain ReLU FFN, the embedding as head.

Source: transformers models/opt; arXiv:2205.01068. Of its variants, those that norm before the block and embed in the
hidden size (all published ones but opt-350m and Galactica).
"""

from typing import Any

from hotset.config import ModelConfig
from hotset.models.blocks import HEAD, Sizes, check_sizes, read_activation, uniform_layers
from hotset.models.reader import Reader
from hotset.models.spec import Family, Names, Parts

LAYER = "model.decoder.layers.{}."
OFFSET = 2  # rows before position 0; the padding token once had one of them
# role -> module; each has a weight, and a bias too (`enable_bias` for the linear ones)
LINEARS = {
    "q": LAYER + "self_attn.q_proj",
    "k": LAYER + "self_attn.k_proj",
    "v": LAYER + "self_attn.v_proj",
    "o": LAYER + "self_attn.out_proj",
    "up": LAYER + "fc1",
    "down": LAYER + "fc2",
}
NORMS = {
    "attn_norm": LAYER + "self_attn_layer_norm",
    "ffn_norm": LAYER + "final_layer_norm",
    "final_norm": "model.decoder.final_layer_norm",
}
EMBEDDINGS = {"embed": "model.decoder.embed_tokens", "position": "model.decoder.embed_positions"}


def build(cfg: Reader) -> Parts:
    sizes = _sizes(cfg)
    _refuse_variants(cfg, sizes)
    config = ModelConfig(
        **sizes.common(),
        context=sizes.max_position,
        attention_scale=sizes.head_dim**-0.5,
        layers=uniform_layers([0] * sizes.layers, rope=-1),
        norm="layer",
        norm_eps=1e-5,  # torch.nn.LayerNorm's own
        position_offset=OFFSET,
        gated=False,
        **read_activation(cfg, "activation_function", "relu"),
    )
    tied = cfg.flag("tie_word_embeddings", True)
    return Parts(
        config,
        {**_names(cfg.flag("enable_bias", True)), **({} if tied else HEAD)},
        positions=sizes.max_position + OFFSET,
        prefixes=(("decoder.", "model.decoder."),),
    )


def _sizes(cfg: Reader) -> Sizes:
    hidden, heads = cfg.size("hidden_size"), cfg.size("num_attention_heads")
    if hidden % heads:
        cfg.refuse("num_attention_heads", f"a divisor of hidden_size, {hidden}")
    sizes: dict[str, Any] = {
        "hidden": hidden,
        "vocab": cfg.size("vocab_size"),
        "ffn": cfg.size("ffn_dim"),
        "heads": heads,
        "kv_heads": heads,
        "head_dim": hidden // heads,
        "layers": cfg.size("num_hidden_layers"),
        "max_position": cfg.size("max_position_embeddings", 2048),
    }
    return check_sizes(cfg, Sizes(**sizes))


def _refuse_variants(cfg: Reader, sizes: Sizes) -> None:
    cfg.only("do_layer_norm_before", True, why="opt-350m norms after the block, which hotset does not compute")
    cfg.only("word_embed_proj_dim", sizes.hidden, why="hotset has no projection between embedding and hidden size")
    cfg.only("_remove_final_layer_norm", False)
    cfg.only("layer_norm_elementwise_affine", True, why="hotset's norms have weights")


def _names(biases: bool) -> Names:
    weighted = {**EMBEDDINGS, **NORMS, **LINEARS}
    biased = {**NORMS, **(LINEARS if biases else {})}
    return {
        **{role: f"{module}.weight" for role, module in weighted.items()},
        **{f"{role}_bias": f"{module}.bias" for role, module in biased.items()},
    }


FAMILY = Family(
    name="opt",
    architectures=("OPTForCausalLM",),
    model_types=("opt",),
    build=build,
    inert=frozenset({"dropout", "layerdrop", "init_std", "activation_dropout", "prefix"}),
)
