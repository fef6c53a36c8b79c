"""What the training of predictors found, for people and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hotset.formats.thresholds import fetch_energy
from hotset.tools.train_predictor_calibrate import Quality
from hotset.tools.train_predictor_drafts import Drafts
from hotset.tools.train_predictor_fit import LayerFit


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One layer at the threshold for neurons in memory, on held-out tokens."""

    rank: int
    active: float  # share of all neurons
    predicted: float  # share of all neurons
    recall: float  # share of the active neurons that are predicted
    precision: float  # share of the predicted neurons that are active
    lost_energy: float  # share of the outputs' energy, sum of (product ‖down‖)^2, that is given up
    bytes: int
    predict_us: float  # one token's scores, one thread
    fit_seconds: float


@dataclass(frozen=True, slots=True)
class TrainReport:
    layers: list[LayerReport]
    quality: Quality
    others: list[Quality]  # of the other thresholds that were tried
    drafts: list[Drafts]  # by energy
    allowed: float
    fetch: float  # share of energy given up where neurons are missing, to that where they are in memory
    published: bool  # the checkpoint's own
    tokens: int
    seconds: float
    path: Path = Path()

    @property
    def bytes(self) -> int:
        return sum(layer.bytes for layer in self.layers)

    @property
    def candidates(self) -> float:
        """Neurons predicted for each active one."""
        return sum(layer.predicted for layer in self.layers) / max(self._active, 1e-9)

    @property
    def recall(self) -> float:
        return sum(layer.recall * layer.active for layer in self.layers) / max(self._active, 1e-9)

    @property
    def _active(self) -> float:
        return sum(layer.active for layer in self.layers)

    @property
    def facts(self) -> dict[str, float]:
        """As the file of predictors has them."""
        return {
            "active": self._active / len(self.layers),
            "energy": self.quality.energy,
            "perplexity_change": self.quality.change,
        }

    @property
    def measured(self) -> list[tuple[float, float]]:
        """(energy, change of perplexity) of all that was tried."""
        return [(q.energy, max(q.change, 1e-9)) for q in (*self.others, self.quality)]

    @property
    def notes(self) -> list[str]:
        if self.quality.surely <= self.allowed:
            return []
        remedy = "leave out --published to train some" if self.published else "train on more text, raise --rank"
        return [
            f"no thresholds keep the loss within {self.allowed:.2%}: these lose {self.quality.surely:.2%}; "
            f"{remedy} or allow more --loss"
        ]


def layer_report(fit: LayerFit, energy: float) -> LayerReport:
    """energy: share that the threshold may give up."""
    tried = fit.tried
    _, predicted, recall, lost = tried.at(energy)
    precision = recall * tried.active / predicted if predicted else 0.0
    return LayerReport(
        fit.rank, tried.active, predicted, recall, precision, lost, fit.bytes, fit.predict_us, fit.fit_seconds
    )


def lines(report: TrainReport) -> list[str]:
    """A table: a row for each layer, then the model; then what the predictors cost in quality."""
    head = ("layer", "rank", "active", "predicted", "recall", "precision", "lost energy", "MiB", "us", "fit s")
    rows = [_cells(str(i), layer) for i, layer in enumerate(report.layers)]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    shown = ["  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True)) for row in (head, *rows)]
    q = report.quality
    grown = q.perplexity / q.exact_perplexity - 1
    return [
        *shown,
        f"model: {report.candidates:.2f} neurons predicted for each active one, {report.recall:.1%} of these found; "
        f"{report.bytes / 2**20:.1f} MiB, {sum(layer.predict_us for layer in report.layers) / 1e3:.2f} ms a token",
        f"allowed lost energy {q.energy:.3%} in memory, {fetch_energy(q.energy, report.fetch):.3%} where neurons are "
        "missing",
        f"on {q.tokens} held-out tokens, half of the neurons in memory, {q.predicted:.1%} of all computed, "
        f"{q.missed:.2%} read:",
        f"  divergence from exact  {q.kl:.5f} +- {q.kl_error:.5f} nats: perplexity of the model's own text "
        f"{q.change:+.2%}, allowed {report.allowed:+.2%}",
        f"  perplexity of the text {q.exact_perplexity:.3f} exact, {q.perplexity:.3f} predicted: {grown:+.2%} "
        f"+- {math.expm1(q.change_error):.2%}",
        draft_line(report.drafts),
    ]


def draft_line(drafts: Sequence[Drafts]) -> str:
    shares = ", ".join(f"{d.held:.1%} (lost energy {d.energy:.3%})" for d in drafts)
    return f"greedy drafts of {drafts[0].tokens} tokens that the model writes hold: {shares}"


def _cells(name: str, layer: LayerReport) -> tuple[str, ...]:
    shares = (layer.active, layer.predicted, layer.recall, layer.precision)
    return (
        name,
        str(layer.rank),
        *(f"{share:.1%}" for share in shares),
        f"{layer.lost_energy:.3%}",
        f"{layer.bytes / 2**20:.2f}",
        f"{layer.predict_us:.0f}",
        f"{layer.fit_seconds:.1f}",
    )


def as_json(report: TrainReport) -> dict[str, Any]:
    more: dict[str, Any] = {"bytes": report.bytes, "candidates": report.candidates, "recall": report.recall}
    more |= {"notes": report.notes, "drafts": drafts_as_json(report.drafts)}
    return asdict(report) | {"path": str(report.path), "perplexity_change": report.quality.change} | more


def drafts_as_json(drafts: Sequence[Drafts]) -> list[dict[str, Any]]:
    return [asdict(d) | {"held": d.held} for d in drafts]
