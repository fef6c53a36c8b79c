"""The best low-rank predictor that takes no training: a linear map of a given rank, best for given inputs.

Also how good any predictor's scores are. Pure functions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
_SURPLUS = 32  # more vectors than are wanted, which make those that are converge
_ITERATIONS = 8


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
    leading = leading_eigenvectors(root.T @ (weights.T @ weights) @ root, rank)
    into = np.linalg.solve(root.T, leading).T
    out = weights @ (root @ leading)
    missed = weights - out @ into
    offset: Floats = missed @ inputs.mean
    return LowRank(into, out, offset)


def leading_eigenvectors(matrix: Floats, count: int) -> Floats:
    """Of a symmetric matrix [n, n] with no eigenvalue below 0, those of the largest, first the largest: [n, count].

    Where few of many are wanted by subspace iteration (Halko, Martinsson and Tropp, SIAM Review 53(2), 2011, algorithm
    4.4), a fifth of the time at n = 4096. Of eigenvalues that are nearly equal it may take one for the other, which
    changes the error of a map little.
    """
    wide = count + _SURPLUS
    if wide * 4 > len(matrix):
        every: Floats = np.linalg.eigh(matrix)[1]
        return every[:, : -count - 1 : -1]
    basis = np.random.default_rng(0).standard_normal((len(matrix), wide), np.float32)
    for _ in range(_ITERATIONS):
        basis = np.linalg.qr(matrix @ basis)[0]
    within: Floats = np.linalg.eigh(basis.T @ matrix @ basis)[1]
    found: Floats = basis @ within[:, : -count - 1 : -1]
    return found


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
