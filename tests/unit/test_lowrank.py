"""Low-rank predictors against the singular value decomposition and against counting."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from hotset.planner.lowrank import (
    LowRank,
    Moments,
    activity_scores,
    fit_low_rank,
    leading_eigenvectors,
    moments,
    report,
)


def inputs(n: int, cols: int, seed: int = 0) -> NDArray[np.float32]:
    """Correlated, of unequal size, around a mean that is not zero."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).standard_normal((cols, cols)) * np.geomspace(2, 0.2, cols)
    return (rng.standard_normal((n, cols)) @ mix + np.linspace(-1, 1, cols)).astype(np.float32)


def test_moments_of_many_inputs_are_those_of_their_distribution() -> None:
    x = inputs(20000, 12)
    found = moments(x)
    np.testing.assert_allclose(found.mean, x.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.covariance, np.cov(x.T, bias=True), atol=0.02 * np.abs(found.covariance).max())


def test_covariance_of_few_inputs_can_be_inverted_and_keeps_its_trace() -> None:
    x = inputs(20, 64)
    found = moments(x)
    assert np.linalg.eigvalsh(found.covariance).min() > 0
    assert np.trace(found.covariance) == pytest.approx(x.var(axis=0, dtype=np.float64).sum(), rel=1e-4)


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_no_map_of_the_rank_has_a_smaller_error(rank: int) -> None:
    x, weights = inputs(500, 16), np.random.default_rng(1).standard_normal((40, 16)).astype(np.float32)
    given = Moments(x.mean(axis=0), np.cov(x.T.astype(np.float64), bias=True))
    error = np.square(fit_low_rank(weights, given, rank)(x) - x @ weights.T).sum()
    # What the singular values beyond the rank leave over, of the outputs without their mean.
    left_over = np.linalg.svd((x - x.mean(axis=0)) @ weights.T, compute_uv=False)[rank:]
    assert error == pytest.approx(
        float(np.square(left_over).sum()), rel=1e-3, abs=1e-4 * float(np.square(x @ weights.T).sum())
    )


def test_leading_eigenvectors_of_a_large_matrix_are_those_of_the_whole_decomposition() -> None:
    rng = np.random.default_rng(3)
    turned = np.linalg.qr(rng.standard_normal((400, 400)))[0]
    values = np.concatenate([np.geomspace(100, 2, 20), np.full(380, 0.5)])  # a few directions above noise
    matrix = ((turned * values) @ turned.T).astype(np.float32)
    found = leading_eigenvectors(matrix, 20)
    assert np.abs(found.T @ turned[:, :20]).diagonal() == pytest.approx(np.ones(20), abs=1e-3)
    wanted = np.linalg.eigh(matrix)[0][-30:].sum()  # the last ten are any of the noise's directions
    assert np.trace(leading_eigenvectors(matrix, 30).T @ matrix @ leading_eigenvectors(matrix, 30)) >= 0.999 * wanted


def test_shapes_of_a_predictor() -> None:
    weights = np.random.default_rng(1).standard_normal((40, 16)).astype(np.float32)
    fitted = fit_low_rank(weights, moments(inputs(100, 16)), 5)
    assert isinstance(fitted, LowRank)
    assert (fitted.into.shape, fitted.out.shape, fitted.offset.shape) == ((5, 16), (40, 5), (40,))
    assert fitted(inputs(3, 16)).dtype == np.float32


def test_activity_scores_are_the_chance_that_both_are_positive() -> None:
    gate, up = np.meshgrid(np.linspace(-4, 4, 33, dtype=np.float32), np.linspace(-4, 4, 33, dtype=np.float32))
    gate_error, up_error = np.full(33, 0.5, np.float32), np.full(33, 2.0, np.float32)
    below = np.vectorize(lambda z: 0.5 * (1 + math.erf(z / math.sqrt(2))))
    wanted = below(gate / gate_error) * below(up / up_error)
    np.testing.assert_allclose(np.exp(activity_scores(gate, up, gate_error, up_error)), wanted, atol=0.02)


def test_report_counts_what_the_highest_scores_find() -> None:
    energy = np.array([[4.0, 0, 1, 0], [0, 2, 0, 0]], np.float32)  # three active
    scores = np.array([[0.9, 0.8, 0.1, 0.2], [0.3, 0.7, 0.6, 0.0]], np.float32)
    found = report(scores, energy, 4 / 3)  # the four highest: 0.9, 0.8, 0.7, 0.6, of which two are active
    assert (found.recall, found.precision, found.predicted) == (pytest.approx(2 / 3), 0.5, 0.5)
    assert found.lost_energy == pytest.approx(1 / 7)
    assert report(scores, energy, 100).recall == 1
    assert report(scores, np.zeros_like(energy), 2).predicted == 0
