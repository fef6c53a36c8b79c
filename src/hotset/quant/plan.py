"""Which weight format each class of tensors gets."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from hotset.errors import UsageError
from hotset.quant.formats import format_named

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class QuantPlan:
    """A format, or "auto", for each class. Auto keeps what a GGUF has and takes HF_DEFAULT for anything else."""

    attention: str = AUTO
    ffn: str = AUTO
    embedding: str = AUTO
    head: str = AUTO
    predictor: str = AUTO  # of checkpoints that bring their own

    def of(self, kind: str) -> str:
        """The choice for a TensorSpec.kind; vectors (norms, biases) are always f32."""
        return "f32" if kind == "vector" else str(getattr(self, kind))

    def __str__(self) -> str:
        """The shortest text that parse_quant turns into this plan."""
        chosen = {name: self.of(name) for name in CLASSES}
        if len(set(chosen.values())) == 1:
            return self.attention
        return ",".join(f"{name}={fmt}" for name, fmt in chosen.items() if fmt != AUTO)


CLASSES: tuple[str, ...] = tuple(f.name for f in fields(QuantPlan))
# 4 bits where most bytes are; 8 for the matrices that turn tokens into numbers and back, which lose most by fewer.
# Predictors get theirs when they are taken over, so until then they lose little.
HF_DEFAULT = QuantPlan(attention="q4_0", ffn="q4_0", embedding="q8_0", head="q8_0", predictor="q8_0")


def parse_quant(text: str) -> QuantPlan:
    """Reads "auto", one format for all matrices ("q4_0"), or a list ("attention=q8_0,ffn=q4_0", the rest auto).

    Raises: UsageError naming what is wrong and what there is.
    """
    text = text.strip()
    if "=" not in text:
        name = _choice(text)
        return QuantPlan(*[name] * len(CLASSES))
    plan = QuantPlan()
    seen: set[str] = set()
    for part in text.split(","):
        name, _, fmt = (s.strip() for s in part.partition("="))
        if name not in CLASSES:
            raise UsageError(
                f"unknown tensor class {name[:40]!r} in quant {text[:80]!r}; there are {', '.join(CLASSES)}"
            )
        if name in seen:
            raise UsageError(f"tensor class {name} stands twice in quant {text[:80]!r}; give it once")
        seen.add(name)
        plan = replace(plan, **{name: _choice(fmt)})
    return plan


def _choice(name: str) -> str:
    return name if name == AUTO else format_named(name).name
