"""What a family's descriptor file hands out: shapes and names, no forward code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from hotset.config import ModelConfig
from hotset.models.reader import Reader

Kind = Literal["embedding", "attention", "ffn", "head", "predictor", "vector"]
Names = Mapping[str, str]  # role -> Hugging Face tensor name, "{}" standing for the layer


@dataclass(frozen=True, slots=True)
class Fused:
    """Where checkpoints have a tensor: `rows` rows, from `first` on, of every `period` rows of a larger one."""

    name: str  # of the larger one; in a family's descriptor "{}" stands for the layer
    period: int
    first: int
    rows: int


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a model. Roles: docs/reference/store.md."""

    name: str  # in the store; Hugging Face's unless the tensor is part of a fused one
    role: str
    layer: int  # -1: of the whole model
    rows: int
    cols: int  # 0: a vector of `rows` values
    kind: Kind  # chooses the weight format; "ffn" goes to neurons.safetensors
    fused: Fused | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rows, self.cols) if self.cols else (self.rows,)

    @property
    def source_name(self) -> str:
        """The checkpoint's tensor that holds it."""
        return self.fused.name if self.fused else self.name

    @property
    def source_shape(self) -> tuple[int, ...]:
        if self.fused is None:
            return self.shape
        return (self.rows // self.fused.rows * self.fused.period, *self.shape[1:])


@dataclass(frozen=True, slots=True)
class Model:
    """A config.json understood: how to compute it, and which tensors it needs."""

    family: str
    config: ModelConfig
    tensors: tuple[TensorSpec, ...]
    unused: tuple[str, ...] = ()  # patterns of tensors that checkpoints carry and the forward pass does not need
    prefixes: tuple[tuple[str, str], ...] = ()  # (spelling in some checkpoints, spelling in `tensors`)
    notes: tuple[str, ...] = ()  # what the user should be told, e.g. that the vision part is left out
    predictor: Names = field(default_factory=dict)  # of activations, where checkpoints may bring one; not in `tensors`

    def canonical(self, name: str) -> str | None:
        """The source_name that `tensors` uses for a checkpoint's tensor; None if it is known and not needed.

        A name unknown to the family comes back unchanged, so that the caller can refuse it.
        """
        known = {spec.source_name for spec in self.tensors}
        if name in known:
            return name
        for found, wanted in self.prefixes:
            if name.startswith(found) and (renamed := wanted + name.removeprefix(found)) in known:
                return renamed
        return None if any(fnmatchcase(name, pattern) for pattern in self.unused) else name


@dataclass(frozen=True, slots=True)
class Parts:
    """What a family reads out of a config."""

    config: ModelConfig
    names: Names
    positions: int = 0  # rows of learned positions
    fused: Mapping[str, Fused] = field(default_factory=dict)  # by role, those of `names` that checkpoints have so
    unused: tuple[str, ...] = ()
    prefixes: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    predictor: Names = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GgufLayout:
    """How llama.cpp's converter writes a family: what differs from Hugging Face's layout.

    extend: adds the family's own keys to the config.json that the common keys gave, from the metadata.
    """

    arch: str
    architecture: str  # architectures[0] of the config.json to write
    model_type: str
    extend: Callable[[Reader, dict[str, Any]], None] = lambda metadata, config: None
    interleaved: frozenset[str] = frozenset()  # roles whose rows are stored for interleaved RoPE pairs
    shifted: bool = False  # norm weights are stored with the 1 of (1 + w) added


@dataclass(frozen=True, slots=True)
class Family:
    """One descriptor: what `config.json` may say, and how to read it."""

    name: str
    architectures: tuple[str, ...]
    model_types: tuple[str, ...]
    build: Callable[[Reader], Parts]
    inert: frozenset[str] = field(default_factory=frozenset)  # own keys that do not change the result
    gguf: GgufLayout | None = None
