"""Falcon: attention and a plain FFN read the same hidden state; q, k and v are fused in the checkpoint.

Source: transformers models/falcon; arXiv:2311.16867. Of its variants, those with rotations (all published ones but
falcon-rw, which has ALiBi).
"""

from hotset.config import ModelConfig
from hotset.models.blocks import BUFFERS, HEAD, Sizes, check_sizes, context_of, read_activation, uniform_layers
from hotset.models.reader import Reader
from hotset.models.rope import read_rope
from hotset.models.spec import Family, Fused, Names, Parts

LAYER = "transformer.h.{}."
# role -> module; each has a weight, and a bias too (`bias`)
ATTENTION = {role: f"{LAYER}self_attention.{role}_proj" for role in "qkv"}  # in the store; checkpoints: fused
FUSED = LAYER + "self_attention.query_key_value"
LINEARS = {
    **ATTENTION,
    "o": LAYER + "self_attention.dense",
    "up": LAYER + "mlp.dense_h_to_4h",
    "down": LAYER + "mlp.dense_4h_to_h",
}
EMBEDDING: Names = {"embed": "transformer.word_embeddings.weight"}
UNNAMED = (
    "config.json names no activation, so it is GELU, Falcon's own; for a ReLU Falcon whose config leaves it out, "
    'add "activation": "relu"'
)


def build(cfg: Reader) -> Parts:
    cfg.only("alibi", False, why="hotset has no attention biases")
    cfg.only("apply_residual_connection_post_layernorm", False)
    newer = cfg.flag("new_decoder_architecture", False)  # of 40B and later
    parallel = cfg.flag("parallel_attn", True)
    if newer and not parallel:
        cfg.refuse("parallel_attn", "true", "blocks of the new decoder architecture are parallel")
    sizes = _sizes(cfg, newer)
    rope = read_rope(cfg, sizes.head_dim, sizes.max_position)
    config = ModelConfig(
        **sizes.common(),
        context=context_of(cfg, sizes, [rope]),
        attention_scale=sizes.head_dim**-0.5,
        layers=uniform_layers([0] * sizes.layers),
        ropes=(rope.config,),
        norm="layer",
        norm_eps=cfg.positive("layer_norm_epsilon", 1e-5),
        parallel=parallel,
        gated=False,
        **read_activation(cfg, "activation", "gelu"),
    )
    tied, biases = cfg.flag("tie_word_embeddings", True), cfg.flag("bias", False)
    return Parts(
        config,
        {**EMBEDDING, **({} if tied else HEAD), **_names(_norms(cfg, newer, parallel), biases)},
        fused={**_fused(sizes, "weight"), **(_fused(sizes, "bias") if biases else {})},
        unused=BUFFERS,
        notes=() if cfg.found("activation") else (UNNAMED,),
    )


def _sizes(cfg: Reader, newer: bool) -> Sizes:
    hidden, heads = cfg.size("hidden_size"), cfg.size("num_attention_heads")
    if hidden % heads:
        cfg.refuse("num_attention_heads", f"a divisor of hidden_size, {hidden}")
    return check_sizes(
        cfg,
        Sizes(
            hidden=hidden,
            vocab=cfg.size("vocab_size"),
            ffn=cfg.size("ffn_hidden_size", 4 * hidden),
            heads=heads,
            kv_heads=_kv_heads(cfg, heads, newer),
            head_dim=hidden // heads,
            layers=cfg.size("num_hidden_layers"),
            max_position=cfg.size("max_position_embeddings", 2048),
        ),
    )


def _kv_heads(cfg: Reader, heads: int, newer: bool) -> int:
    """As transformers has it: older models have one, whatever num_kv_heads says, or one for each head."""
    given, one = cfg.size("num_kv_heads", heads), cfg.flag("multi_query", True)
    if newer and heads % given:
        cfg.refuse("num_kv_heads", f"a divisor of num_attention_heads, {heads}")
    if not newer and not one and given != heads:
        cfg.refuse("num_kv_heads", f"num_attention_heads, {heads}", "multi_query and new_decoder_architecture are off")
    return given if newer or not one else 1


def _norms(cfg: Reader, newer: bool, parallel: bool) -> Names:
    """role -> module. A parallel block has one norm, or one for attention and one for the FFN."""
    count = cfg.size("num_ln_in_parallel_attn", 2 if newer else 1)
    if count > (2 if newer else 1):
        cfg.refuse("num_ln_in_parallel_attn", "1 or 2" if newer else "1, without new_decoder_architecture")
    final = {"final_norm": "transformer.ln_f"}
    if count == 2:
        return final | {"attn_norm": LAYER + "ln_attn", "ffn_norm": LAYER + "ln_mlp"}
    own = {} if parallel else {"ffn_norm": LAYER + "post_attention_layernorm"}
    return final | {"attn_norm": LAYER + "input_layernorm"} | own


def _names(norms: Names, biases: bool) -> Names:
    return {
        **{role: f"{module}.weight" for role, module in {**norms, **LINEARS}.items()},
        **{f"{role}_bias": f"{module}.bias" for role, module in {**norms, **(LINEARS if biases else {})}.items()},
    }


def _fused(sizes: Sizes, what: str) -> dict[str, Fused]:
    """For each KV head in turn: the rows of its query heads, of its key, of its value."""
    d = sizes.head_dim
    queries = sizes.heads // sizes.kv_heads * d
    spans = {"q": (0, queries), "k": (queries, d), "v": (queries + d, d)}
    suffix = "_bias" if what == "bias" else ""
    return {role + suffix: Fused(f"{FUSED}.{what}", queries + 2 * d, *span) for role, span in spans.items()}


FAMILY = Family(
    name="falcon",
    architectures=("FalconForCausalLM",),
    model_types=("falcon",),
    build=build,
    inert=frozenset({"auto_map"}),
)
