"""Sizes of the bundles that hold one neuron each. Mirrors native/quant/neuron.h, which describes the layout."""

from __future__ import annotations

from dataclasses import dataclass

from hotset.errors import UsageError

GROUP = 32  # weights that share a scale
LANE_GROUPS = 16  # groups in a block of a vector
_GROUP_BYTES = {"q4_0": 18, "q8_0": 34}  # scale and codes
NEURON_FORMATS: tuple[str, ...] = tuple(_GROUP_BYTES)


@dataclass(frozen=True, slots=True)
class NeuronLayout:
    """A bundle: up, down and gate vector of a neuron, each [hidden], then zeros up to the stride."""

    fmt: str
    hidden: int
    gated: bool

    @property
    def roles(self) -> tuple[str, ...]:
        """The vectors in their order."""
        return ("up", "down", "gate") if self.gated else ("up", "down")

    @property
    def vector_bytes(self) -> int:
        return -(-self.hidden // GROUP) * _GROUP_BYTES[self.fmt]

    @property
    def bytes(self) -> int:
        """Of the vectors, without the padding."""
        return len(self.roles) * self.vector_bytes


def neuron_format(name: str) -> str:
    """The name itself; UsageError if neurons are not stored in that format."""
    if name in NEURON_FORMATS:
        return name
    raise UsageError(f"neurons cannot be stored as {name[:40]!r}; there are {', '.join(NEURON_FORMATS)}")
