"""What the forward pass must know about a model, as data. Mirrors `ModelDesc` in native/model/descriptor.h."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Activation = Literal["none", "silu", "gelu", "gelu_tanh", "relu", "relu2", "shifted_relu"]


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """One set of rotary frequencies; halves paired, as Hugging Face does."""

    inv_freq: tuple[float, ...]  # [rotary_dim / 2], float32 values
    attention_factor: float = 1.0  # YaRN's mscale: multiplies cos and sin
    dynamic_factor: float = 0.0  # dynamic NTK: 0 = off
    dynamic_base: float = 0.0
    original_context: int = 0


@dataclass(frozen=True, slots=True)
class LayerConfig:
    window: int = 0  # tokens a query may look back, itself included; 0 = all
    rope: int = -1  # index into ModelConfig.ropes; -1 = no rotation


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Field by field what native/model/descriptor.h documents."""

    hidden: int
    vocab: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    attention_scale: float
    layers: tuple[LayerConfig, ...]
    ropes: tuple[RopeConfig, ...] = ()
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-5
    norm_offset: float = 0.0
    qk_norm: Literal["none", "per_head", "full"] = "none"
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float = 0.0
    residual_scale: float = 1.0
    position_offset: int = -1
    parallel: bool = False
    gated: bool = True
    act_gate: Activation = "silu"
    act_up: Activation = "none"
    gate_threshold: float = 0.0
    up_threshold: float = 0.0

    @property
    def dynamic_rope(self) -> bool:
        """Keys depend on the length of the whole text, so none can be kept for another one."""
        return any(rope.dynamic_factor > 0 for rope in self.ropes)

    def to_native(self) -> dict[str, object]:
        """The dict that `_core.Engine` takes."""
        return asdict(self)
