"""GGUF metadata to the config.json of the model's family, GGUF tensor names to Hugging Face names.

Source: the GGUF specification (ggml/docs/gguf.md) and what llama.cpp's convert_hf_to_gguf.py writes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotset.errors import ModelError
from hotset.models.reader import Reader
from hotset.models.registry import FAMILIES, resolve, unknown
from hotset.models.rope import llama3_divisors, plain
from hotset.models.spec import Family, GgufLayout, TensorSpec

ROPE_DIVISORS = "rope_freqs.weight"
# role -> GGUF name without ".weight"; a role "x_bias" is the ".bias" beside x's weight
WHOLE = {"embed": "token_embd", "final_norm": "output_norm", "head": "output"}
LAYER = {
    "attn_norm": "attn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "attn_post_norm": "post_attention_norm",
    "ffn_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
    "ffn_post_norm": "post_ffw_norm",
}
INERT = frozenset({"vocab_size", "rope.scaling.finetuned", "expert_used_count", "attention.layer_norm_epsilon"})
LAYOUTS = {family.gguf.arch: (family, family.gguf) for family in FAMILIES if family.gguf is not None}


@dataclass(frozen=True, slots=True)
class GgufImport:
    """A GGUF file's model in Hugging Face's terms."""

    config: dict[str, Any]  # keys of the family's config.json
    names: dict[str, str]  # GGUF tensor name -> Hugging Face name
    permuted: dict[str, int]  # Hugging Face names whose rows `row_order` puts back, with their number of heads
    shifted: frozenset[str]  # Hugging Face names of norms that hold 1 + w: subtract 1
    unused: frozenset[str]  # tensors of the file that need not be converted
    rope_divisors: str | None = None  # tensor (f32 [rotary_dim / 2]) whose values `with_rope_divisors` needs

    def with_rope_divisors(self, values: NDArray[np.float32]) -> GgufImport:
        """Completes `config` with the frequencies' divisors, as the parameters of llama3 RoPE where those fit."""
        from dataclasses import replace

        config = {**self.config, "rope_scaling": _llama3_scaling(self.config, [float(v) for v in values])}
        return replace(self, config=config, rope_divisors=None)


def from_gguf(
    metadata: Mapping[str, Any], tensor_shapes: Mapping[str, tuple[int, ...]], *, ignore_keys: Collection[str] = ()
) -> GgufImport:
    """Translates the metadata and names of a GGUF file.

    Args:
        tensor_shapes: of all tensors, in either order of dimensions.
        ignore_keys: metadata keys to treat as absent, with their arch: "llama.rope.scaling.type".
    Raises: ModelError for an unknown arch, an unknown, missing or unsupported key.
    """
    file = Reader(metadata, source="GGUF metadata", ignore=ignore_keys)
    arch = file.text("general.architecture")
    if arch not in LAYOUTS:
        raise unknown(arch, LAYOUTS, "GGUF architecture")
    family, layout = LAYOUTS[arch]
    own = {key.removeprefix(f"{arch}."): value for key, value in metadata.items() if key.startswith(f"{arch}.")}
    reader = Reader(own, source="GGUF metadata", prefix=f"{arch}.", ignore=ignore_keys)
    config = _common(reader, layout, tensor_shapes)
    layout.extend(reader, config)
    reader.finish(INERT)
    config.update(_token_ids(file))
    config = {key: value for key, value in config.items() if value is not None}
    return _tensors(family, layout, config, tensor_shapes)


def _common(reader: Reader, layout: GgufLayout, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The keys that all families share. A value of None means absent."""
    hidden = reader.size("embedding_length")
    heads = _uniform(reader, "attention.head_count")
    if heads > hidden:
        reader.refuse("attention.head_count", f"at most {hidden}, the size of a hidden vector")
    head_dim = reader.size("attention.key_length", hidden // heads)
    reader.only("attention.value_length", head_dim, why="keys and values must have the same size")
    reader.only("expert_count", 0, why="mixtures of experts are not supported")
    reader.only("attention.causal", True)
    rotated = reader.size("rope.dimension_count", head_dim)
    config = {
        "architectures": [layout.architecture],
        "model_type": layout.model_type,
        "vocab_size": _vocab(reader, hidden, shapes),
        "hidden_size": hidden,
        "intermediate_size": _uniform(reader, "feed_forward_length"),
        "num_hidden_layers": reader.size("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _uniform(reader, "attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": reader.size("context_length"),
        "rms_norm_eps": reader.positive("attention.layer_norm_rms_epsilon"),
        "rope_theta": reader.positive("rope.freq_base", 10000.0),
        "rope_scaling": _scaling(reader),
        "partial_rotary_factor": None if rotated == head_dim else rotated / head_dim,
        "tie_word_embeddings": "output.weight" not in shapes,
    }
    if "blk.0.attn_output.bias" in shapes:
        config["attention_bias"] = True
    return config


def _uniform(reader: Reader, key: str, default: int | None = None) -> int:
    """A size that may be listed per layer, if it is the same in all layers."""
    value = reader.found(key)
    if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str) and len(value) > 0:
        if any(item != value[0] for item in value):
            reader.refuse(key, "the same number for every layer")
        first = value[0].item() if isinstance(value[0], np.generic) else value[0]
        return Reader({key: first}, source=reader.source, prefix=reader.prefix).size(key)
    return reader.size(key) if default is None else reader.size(key, default)


def _vocab(reader: Reader, hidden: int, shapes: Mapping[str, tuple[int, ...]]) -> int:
    if "token_embd.weight" not in shapes:
        raise ModelError(f"{reader.source}: the file has no tensor token_embd.weight; take a complete GGUF")
    return math.prod(shapes["token_embd.weight"]) // hidden


def _scaling(reader: Reader) -> dict[str, Any] | None:
    """rope_scaling from the rope.scaling.* keys."""
    kind = reader.text("rope.scaling.type", "linear" if reader.has("rope.scale_linear") else "none")
    older = reader.positive("rope.scale_linear", 1.0)
    factor = reader.positive("rope.scaling.factor", older)
    original = reader.count("rope.scaling.original_context_length", None)
    stretch = {key: reader.positive(f"rope.scaling.{name}", None) for key, name in _YARN.items()}
    attention = stretch.pop("attention_factor")
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        reader.refuse("rope.scaling.type", "none, linear or yarn")
    if attention is not None and factor > 1:
        attention *= 1.0 + 0.1 * math.log(factor)  # llama.cpp multiplies the two
    given = {"original_max_position_embeddings": original, "attention_factor": attention, **stretch}
    return {"rope_type": "yarn", "factor": factor, **{k: v for k, v in given.items() if v}}


_YARN = {"attention_factor": "attn_factor", "beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"}


def _token_ids(file: Reader) -> dict[str, int]:
    ids = {name: file.count(f"tokenizer.ggml.{name}_token_id", None) for name in ("bos", "eos")}
    return {f"{name}_token_id": value for name, value in ids.items() if value is not None}


def _tensors(
    family: Family, layout: GgufLayout, config: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> GgufImport:
    model = resolve(config)
    heads = {"q": model.config.heads, "k": model.config.kv_heads}
    permuted = {s.name: heads[s.role[0]] for s in model.tensors if s.role in layout.interleaved}
    norms = (s.name for s in model.tensors if s.role.endswith("_norm"))
    divisors = ROPE_DIVISORS if ROPE_DIVISORS in shapes else None
    return GgufImport(
        config=config,
        names={gguf_name(spec): spec.name for spec in model.tensors},
        permuted=permuted,
        shifted=frozenset(norms) if layout.shifted else frozenset(),
        unused=frozenset({ROPE_DIVISORS}) & shapes.keys(),
        rope_divisors=divisors,
    )


def gguf_name(spec: TensorSpec) -> str:
    """The name llama.cpp gives to a tensor."""
    suffix = "bias" if spec.role.endswith("_bias") else "weight"
    role = spec.role.removesuffix("_bias")
    return f"{WHOLE[role]}.{suffix}" if spec.layer < 0 else f"blk.{spec.layer}.{LAYER[role]}.{suffix}"


def row_order(rows: int, heads: int) -> NDArray[np.int64]:
    """Indices that put the rows of a permuted tensor back: huggingface = gguf[row_order(rows, heads)].

    llama.cpp rotates neighbours (2i, 2i + 1) of a head, Hugging Face halves (i, i + head_dim / 2).
    """
    half = rows // heads // 2
    return np.arange(rows, dtype=np.int64).reshape(heads, half, 2).swapaxes(1, 2).reshape(rows)


def _llama3_scaling(config: Mapping[str, Any], divisors: list[float]) -> dict[str, Any]:
    """Keys of llama3 RoPE if its published constants give these divisors, else the divisors themselves."""
    dim = int(config["head_dim"] * config.get("partial_rotary_factor", 1.0))
    published = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    freq, factor = plain(config["rope_theta"], dim), max(divisors, default=1.0)
    expected = llama3_divisors(freq, factor, 1.0, 4.0, 8192) if 1 <= factor < 1e5 else []
    if len(divisors) == len(expected) and np.allclose(divisors, expected, rtol=1e-5):
        return {"rope_type": "llama3", "factor": factor, **published, "original_max_position_embeddings": 8192}
    return {"rope_type": "llama3", "factors": divisors}
