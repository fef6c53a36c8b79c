"""What a conversion did, class by class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hotset.formats.files import Json
from hotset.quant import packed_bytes
from hotset.tools.convert_encode import ErrorSums, is_lossless
from hotset.tools.convert_source import SourceTensor


@dataclass(frozen=True, slots=True)
class ClassReport:
    """What became of one class of tensors."""

    kind: str  # "attention", "ffn", "embedding", "head" or "vector"
    formats: str  # "q4_0", or several: "q4_1+q8_0"
    sources: str  # types in the source, "Q4_K+Q6_K"
    tensors: int
    lossless: int  # tensors whose values are the source's
    weights: int
    bytes: int  # in the store
    relative_rms_error: float  # of the other tensors, against the source


@dataclass(frozen=True, slots=True)
class ConvertReport:
    dest: Path
    source: str
    family: str
    classes: tuple[ClassReport, ...]
    seconds: float
    resumed_bytes: int = 0  # of the source, done by an earlier conversion that was stopped
    unchanged: bool = False  # the destination was this store already
    notes: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Of all tensors in the store, without padding to 4 KiB."""
        return sum(c.bytes for c in self.classes)

    @property
    def weights(self) -> int:
        return sum(c.weights for c in self.classes)


def class_reports(
    tensors: Iterable[SourceTensor], formats: Mapping[str, str], notes: Mapping[str, Json]
) -> tuple[ClassReport, ...]:
    """Sums up by class, classes in the order of their first tensor.

    Args:
        formats: tensor name -> format in the store.
        notes: tensor name -> {"squared_error", "squared_weight"} of packing it.
    """
    classes: dict[str, list[SourceTensor]] = {}
    for tensor in tensors:
        classes.setdefault(tensor.spec.kind, []).append(tensor)
    return tuple(_class_report(kind, members, formats, notes) for kind, members in classes.items())


def _class_report(
    kind: str, tensors: list[SourceTensor], formats: Mapping[str, str], notes: Mapping[str, Json]
) -> ClassReport:
    sums = ErrorSums()
    for tensor in tensors:
        note = notes.get(tensor.spec.name, {})
        sums.add(note.get("squared_error", 0.0), note.get("squared_weight", 0.0))
    chosen = [(t, formats[t.spec.name]) for t in tensors]
    return ClassReport(
        kind=kind,
        formats="+".join(sorted({fmt for _, fmt in chosen})),
        sources="+".join(sorted({t.type for t in tensors})),
        tensors=len(tensors),
        lossless=sum(is_lossless(t, fmt) for t, fmt in chosen),
        weights=sum(t.rows * t.cols for t in tensors),
        bytes=sum(packed_bytes(fmt, t.spec.rows, t.spec.cols) for t, fmt in chosen),
        relative_rms_error=sums.relative_rms,
    )
