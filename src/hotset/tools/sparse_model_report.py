"""What a synthetic model's activations are like, measured while it is made, beside what was wanted."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from hotset.planner import statistics
from hotset.planner.lowrank import PredictorReport, activity_scores, fit_low_rank, moments, report
from hotset.tools.sparse_model_ffn import down_norms
from hotset.tools.sparse_model_math import Floats
from hotset.tools.sparse_model_stream import Layer
from hotset.tools.sparse_model_workload import Workload

WARM_UP = 0.25  # share of the tokens that fills the cache before misses count
RANK = 1 / 8  # of the measured predictor, as a share of the hidden size: 7.4 % of a 7B's parameters (published: 5-9 %)
OVER_PREDICTION = 2.0


@dataclass(frozen=True, slots=True)
class Measured:
    """One layer; of a model the mean over activations or, for zeros and correlation, over layers."""

    zeros: float
    concentration: float  # share of neurons that 80 % of the activations come from
    reuse_1: float  # share of active neurons that were active in the token before
    reuse_5: float
    reuse_20: float
    lru_miss: float  # of a cache with room for half of the neurons
    energy_half: float  # share of the output's energy from the stronger half of the active neurons
    correlation: float  # of the FFN's input with that of the next token
    recall: float | None = None  # of a low-rank predictor
    over_prediction: float | None = None


@dataclass(slots=True)
class WorkloadReport:
    workload: Workload
    tokens: int
    layers: list[Measured] = field(default_factory=list)
    _counts: list[statistics.Counts] = field(default_factory=list)

    def add(self, layer: Layer, with_predictor: bool) -> None:
        """Measures the next layer."""
        active = layer.activations > 0
        self._counts.append(statistics.union_counts(active, 1))
        self.layers.append(_measure(layer, active, _predictor(layer) if with_predictor else None))

    @property
    def model(self) -> Measured:
        """All layers; concentration as the mean over layers."""
        weights = np.array([1 - layer.zeros for layer in self.layers])
        mean: dict[str, Any] = {}
        for name in (f.name for f in fields(Measured)):
            values = [getattr(layer, name) for layer in self.layers]
            known = np.array([value is not None for value in values])
            each = np.ones_like(weights) if name in ("zeros", "concentration", "correlation") else weights
            given = np.array([value for value in values if value is not None])
            mean[name] = float(np.average(given, weights=each[known])) if known.any() else None
        return Measured(**mean)

    @property
    def model_wide_concentration(self) -> float:
        """The share of all neurons of all layers that 80 % of the activations come from."""
        return statistics.concentration(np.array(self._counts))

    def to_json(self) -> dict[str, Any]:
        return {
            "workload": self.workload.name,
            "tokens": self.tokens,
            "wanted": self.workload.targets,
            "model": asdict(self.model) | {"model_wide_concentration": self.model_wide_concentration},
            "layers": [asdict(layer) for layer in self.layers],
        }

    def lines(self) -> list[str]:
        """A table: a row for each layer, then the model and what was wanted."""
        names = [f.name for f in fields(Measured)]
        rows = [("layer", names)]
        rows += [(str(i), _cells(asdict(layer), names)) for i, layer in enumerate(self.layers)]
        rows += [("model", _cells(asdict(self.model), names)), ("wanted", _cells(self.workload.targets, names))]
        widths = [max(len(cells[i]) for _, cells in rows) for i in range(len(names))]
        table = [
            f"{head:<7}" + "  ".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True)) for head, cells in rows
        ]
        return [*table, f"80 % of all activations come from {self.model_wide_concentration:.1%} of all neurons"]


def _cells(values: dict[str, Any], names: list[str]) -> list[str]:
    return ["" if values.get(name) is None else f"{values[name]:.3f}" for name in names]


def _measure(layer: Layer, active: statistics.Active, predictor: PredictorReport | None) -> Measured:
    misses = statistics.lru_misses(active, active.shape[1] // 2)
    return Measured(
        zeros=statistics.zeros(active),
        concentration=statistics.concentration(statistics.union_counts(active, 1)),
        reuse_1=statistics.reuse(active, 1),
        reuse_5=statistics.reuse(active, 5),
        reuse_20=statistics.reuse(active, 20),
        lru_miss=statistics.miss_rate(misses, active, int(WARM_UP * len(active))),
        energy_half=statistics.energy_kept(layer.activations * down_norms(layer.weights["down"])),
        correlation=statistics.autocorrelation(layer.inputs, [1])[0],
        recall=predictor.recall if predictor else None,
        over_prediction=predictor.over_prediction if predictor else None,
    )


def _predictor(layer: Layer) -> PredictorReport:
    """A low-rank map of gate and up together, fitted on the first half of the tokens, tried on the second."""
    half, ffn = len(layer.inputs) // 2, layer.activations.shape[1]
    weights = np.concatenate([layer.weights["gate"], layer.weights["up"]])
    rank = max(1, round(RANK * weights.shape[1]))
    predict = fit_low_rank(weights, moments(layer.inputs[:half]), rank)
    errors = _errors(weights, layer.inputs[:half], predict(layer.inputs[:half]))
    predicted = predict(layer.inputs[half:])
    scores = activity_scores(predicted[:, :ffn], predicted[:, ffn:], errors[:ffn], errors[ffn:])
    energy = np.square(layer.activations[half:] * down_norms(layer.weights["down"]))
    return report(scores, energy, OVER_PREDICTION)


def _errors(weights: Floats, x: Floats, predicted: Floats) -> Floats:
    errors: Floats = np.sqrt(np.square(x @ weights.T - predicted).mean(axis=0))
    return errors
