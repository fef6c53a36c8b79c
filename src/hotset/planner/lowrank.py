"""The best low-rank predictor that takes no training: a linear map of a given rank, best for given inputs.

Also how good any predictor's scores are. Pure functions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and covariance of a layer's inputs."""

    mean: Floats  # [cols]
    covariance: NDArray[np.float64]  # [cols, cols], positive definite


@dataclass(frozen=True, slots=True)
class LowRank:
    """W x is about offset + out (into x)."""

    into: Floats  # [rank, cols]
    out: Floats  # [rows, rank]
    offset: Floats  # [rows]

    def __call__(self, x: Floats) -> Floats:
        """x [tokens, cols] -> [tokens, rows]."""
        return np.add((x @ self.into.T) @ self.out.T, self.offset, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class PredictorReport:
    recall: float  # share of the truly active neurons that are predicted
    precision: float  # share of the predicted neurons that are active
    predicted: float  # share of all neurons that are predicted
    over_prediction: float  # predicted neurons for each truly active one
    lost_energy: float  # share of the output's energy that the neurons missed would have carried


def moments(x: Floats) -> Moments:
    """Mean and covariance of inputs [tokens, cols], which may be fewer than columns.

    The covariance is drawn towards a sphere by the oracle approximating shrinkage of Chen, Wiesel, Eldar and Hero,
    IEEE Trans. Signal Processing 58(10), 2010.
    """
    n, cols = x.shape
    mean = x.mean(axis=0)
    centred = x - mean
    sample = (centred.T @ centred).astype(np.float64) / n
    trace, squares = float(np.trace(sample)), float(np.square(sample).sum())
    spread = (n + 1 - 2 / cols) * (squares - trace**2 / cols)
    shrink = min(1.0, ((1 - 2 / cols) * squares + trace**2) / spread) if spread > 0 else 1.0
    sample *= 1 - shrink
    sample[np.diag_indices(cols)] += shrink * trace / cols
    return Moments(mean, sample)


def fit_low_rank(weights: Floats, inputs: Moments, rank: int) -> LowRank:
    """The map of `rank` with the least mean squared error of W x over inputs with these moments.

    weights: [rows, cols]; 1 <= rank <= cols.
    With C = S S^T the error of M is |(W - M) S|^2, so M S is the best approximation of W S: its projection onto the
    leading right singular vectors (Eckart and Young 1936), found as eigenvectors of S^T (W^T W) S.
    """
    root = np.linalg.cholesky(inputs.covariance).astype(np.float32)
    leading = np.linalg.eigh(root.T @ (weights.T @ weights) @ root)[1][:, : -rank - 1 : -1]  # [cols, rank]
    into = np.linalg.solve(root.T, leading).T
    out = weights @ (root @ leading)
    return LowRank(into, out, weights @ inputs.mean - out @ (into @ inputs.mean))


def activity_scores(gate: Floats, up: Floats, gate_error: Floats, up_error: Floats) -> Floats:
    """How likely relu(gate) * relu(up) is above zero: the log of the product of the two chances.

    gate, up: predictions [tokens, neurons]; errors: their standard deviations [neurons]. The normal distribution is
    taken as a logistic one of scale 0.588, which is within 0.01 of it.
    """
    scale = np.float32(0.588)
    chances: Floats = -np.logaddexp(0, -gate / (scale * gate_error)) - np.logaddexp(0, -up / (scale * up_error))
    return chances


def report(scores: Floats, energy: Floats, over_prediction: float) -> PredictorReport:
    """How well the highest scores find the active neurons, with one threshold for all tokens.

    scores: [tokens, neurons]; energy: of each neuron's contribution, (a ‖down‖)^2, above 0 where it is active.
    over_prediction: how many neurons are predicted for each truly active one.
    """
    active = energy > 0
    wanted = min(round(over_prediction * int(active.sum())), scores.size)
    chosen = np.zeros(scores.shape, bool)
    if wanted:
        chosen.flat[np.argpartition(scores, scores.size - wanted, axis=None)[scores.size - wanted :]] = True
    right = int((chosen & active).sum())
    return PredictorReport(
        recall=right / max(int(active.sum()), 1),
        precision=right / max(wanted, 1),
        predicted=wanted / scores.size,
        over_prediction=wanted / max(int(active.sum()), 1),
        lost_energy=float(energy[~chosen].sum(dtype=np.float64) / max(float(energy.sum(dtype=np.float64)), 1e-300)),
    )
