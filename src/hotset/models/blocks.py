"""What decoder-only families share: keys for sizes, windows and activations, tensor names, the shape of each role."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from hotset.config import Activation, LayerConfig, ModelConfig
from hotset.models.reader import LIMIT, Reader
from hotset.models.rope import Rope
from hotset.models.spec import Kind, Names, Parts, TensorSpec

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}

# The names that most families share; each family adds what it has besides.
EMBEDDING: Names = {"embed": "model.embed_tokens.weight", "final_norm": "model.norm.weight"}
ATTENTION: Names = {role: f"model.layers.{{}}.self_attn.{role}_proj.weight" for role in "qkvo"}
ATTENTION_BIAS: Names = {f"{role}_bias": f"model.layers.{{}}.self_attn.{role}_proj.bias" for role in "qkvo"}
QK_NORM: Names = {f"{role}_norm": f"model.layers.{{}}.self_attn.{role}_norm.weight" for role in "qk"}
GATED_FFN: Names = {role: f"model.layers.{{}}.mlp.{role}_proj.weight" for role in ("gate", "up", "down")}
GATED_FFN_BIAS: Names = {f"{role}_bias": f"model.layers.{{}}.mlp.{role}_proj.bias" for role in ("gate", "up", "down")}
PRE_NORMS: Names = {
    "attn_norm": "model.layers.{}.input_layernorm.weight",
    "ffn_norm": "model.layers.{}.post_attention_layernorm.weight",
}
HEAD: Names = {"head": "lm_head.weight"}
# Buffers that old checkpoints carry; a tied head may be stored too, as a copy of the embedding.
BUFFERS = ("*.rotary_emb.inv_freq", "*.rotary_emb.cos_cached", "*.rotary_emb.sin_cached", "*.masked_bias")
MOST_HEAD_DIM = 1 << 16  # published models have 256 at most; each two need a frequency
WHOLE_MODEL = frozenset({"embed", "position", "final_norm", "final_norm_bias", "head", "head_bias"})


@dataclass(frozen=True, slots=True)
class Sizes:
    hidden: int
    vocab: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    layers: int
    max_position: int

    def common(self) -> dict[str, Any]:
        """The fields that ModelConfig takes over unchanged."""
        names = ("hidden", "vocab", "ffn", "heads", "kv_heads", "head_dim")
        return {name: getattr(self, name) for name in names}


def read_sizes(
    cfg: Reader,
    *,
    max_position: int,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    ffn: str = "intermediate_size",
) -> Sizes:
    """Sizes by their usual keys; `kv_heads` and `head_dim` are the family's defaults (None: heads, hidden / heads)."""
    hidden, heads = cfg.size("hidden_size"), cfg.size("num_attention_heads")
    if cfg.has("num_key_value_heads"):
        kv_heads = None  # null there means as many as heads, in every family
    return check_sizes(
        cfg,
        Sizes(
            hidden=hidden,
            vocab=cfg.size("vocab_size"),
            ffn=cfg.size(ffn),
            heads=heads,
            kv_heads=cfg.size("num_key_value_heads", kv_heads or heads),
            head_dim=cfg.size("head_dim", head_dim or derived_head_dim(cfg, hidden, heads)),
            layers=cfg.size("num_hidden_layers"),
            max_position=cfg.size("max_position_embeddings", max_position),
        ),
    )


def derived_head_dim(cfg: Reader, hidden: int, heads: int) -> int:
    """hidden / heads; an error if that is not whole and the config does not give head_dim itself."""
    if cfg.found("head_dim") is None and hidden % heads:
        cfg.refuse("num_attention_heads", f"a divisor of hidden_size, {hidden}")
    return max(hidden // heads, 1)


def check_sizes(cfg: Reader, sizes: Sizes) -> Sizes:
    """Raises ModelError for shapes that no tensor could have or that the forward pass cannot index."""
    if sizes.heads % sizes.kv_heads:
        cfg.refuse("num_key_value_heads", f"a divisor of num_attention_heads, {sizes.heads}")
    if sizes.head_dim > MOST_HEAD_DIM:
        cfg.refuse("head_dim", f"at most {MOST_HEAD_DIM}, or a hidden size that is no more for each head")
    if sizes.heads * sizes.head_dim >= LIMIT:
        cfg.refuse("head_dim", f"less than 2^31 / num_attention_heads, {LIMIT // sizes.heads}")
    if sizes.layers > 4096:
        cfg.refuse("num_hidden_layers", "at most 4096")
    return sizes


def read_activation(cfg: Reader, key: str = "hidden_act", default: str = "silu") -> dict[str, Any]:
    """The fields of ModelConfig that say what is applied to the FFN's gate (in a plain FFN: to up).

    "fatrelu" is ProSparse's shifted ReLU (arXiv:2402.13516), its threshold in hidden_act_param.
    """
    name, threshold = cfg.text(key, default), cfg.number("hidden_act_param", None)
    if name == "fatrelu":
        if threshold is None or threshold < 0:
            cfg.refuse("hidden_act_param", "a number from 0, the threshold of fatrelu")
        return {"act_gate": "shifted_relu", "gate_threshold": threshold}
    if name not in ACTIVATIONS:
        cfg.refuse(key, " or ".join([*ACTIVATIONS, "fatrelu"]))
    return {"act_gate": ACTIVATIONS[name]}


def read_window(cfg: Reader, default: int) -> int:
    """sliding_window: null means none (0), absence means the family's default."""
    if cfg.has("sliding_window") and cfg.found("sliding_window") is None:
        return 0
    return cfg.size("sliding_window", default)


LAYER_TYPES = ("full_attention", "sliding_attention")


def read_qwen_windows(cfg: Reader, layers: int) -> list[int]:
    """Windows of Qwen 2 and 3: layer_types if given, else full attention below max_window_layers."""
    given = read_window(cfg, 4096)
    window = given if cfg.flag("use_sliding_window", False) else 0
    first = cfg.count("max_window_layers", 28)
    types = cfg.strings("layer_types", LAYER_TYPES, layers)
    if types is None:
        return [window if i >= first else 0 for i in range(layers)]
    if not window and "sliding_attention" in types:
        cfg.refuse("layer_types", "full_attention everywhere", "use_sliding_window or sliding_window turns windows off")
    return [window if kind == "sliding_attention" else 0 for kind in types]


def context_of(cfg: Reader, sizes: Sizes, ropes: Iterable[Rope]) -> int:
    """How many tokens the model may see."""
    context = max([sizes.max_position, *(rope.context for rope in ropes)])
    if context >= LIMIT:
        cfg.refuse("max_position_embeddings", "a context below 2^31 tokens after RoPE scaling")
    return context


def uniform_layers(windows: Iterable[int], rope: int = 0) -> tuple[LayerConfig, ...]:
    """Layers that all use the same rotation (-1: none)."""
    return tuple(LayerConfig(window=window, rope=rope) for window in windows)


def tensor_specs(parts: Parts) -> tuple[TensorSpec, ...]:
    """Every tensor by the family's names; the shape follows from the role."""
    whole = [_spec(parts, role, -1) for role in parts.names if role in WHOLE_MODEL]
    each = [role for role in parts.names if role not in WHOLE_MODEL]
    return (*whole, *(_spec(parts, role, i) for i in range(len(parts.config.layers)) for role in each))


def _spec(parts: Parts, role: str, layer: int) -> TensorSpec:
    rows, cols, kind = shape_of(role, parts.config, parts.positions)
    fused = parts.fused.get(role)
    if fused is not None:
        fused = replace(fused, name=fused.name.format(layer))
    return TensorSpec(parts.names[role].format(layer), role, layer, rows, cols, kind, fused)


def shape_of(role: str, c: ModelConfig, positions: int = 0) -> tuple[int, int, Kind]:
    """Rows, columns (0: vector) and kind of a role. `positions`: rows of learned positions."""
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    per_head = c.qk_norm == "per_head"
    matrices: dict[str, tuple[int, int, Kind]] = {
        "embed": (c.vocab, c.hidden, "embedding"),
        "position": (positions, c.hidden, "embedding"),
        "head": (c.vocab, c.hidden, "head"),
        "q": (q, c.hidden, "attention"),
        "k": (kv, c.hidden, "attention"),
        "v": (kv, c.hidden, "attention"),
        "o": (c.hidden, q, "attention"),
        "gate": (c.ffn, c.hidden, "ffn"),
        "up": (c.ffn, c.hidden, "ffn"),
        "down": (c.hidden, c.ffn, "ffn"),
    }
    if role in matrices:
        return matrices[role]
    norms = {"q_norm": c.head_dim if per_head else q, "k_norm": c.head_dim if per_head else kv}
    bias_of = role.removesuffix("_bias")
    if role in norms:
        return norms[role], 0, "vector"
    return matrices[bias_of][0] if role != bias_of and bias_of in matrices else c.hidden, 0, "vector"
