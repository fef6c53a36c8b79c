"""One layer's predictor: a low-rank linear map from the FFN's input to what each neuron is expected to contribute.

The engine keeps the neurons whose score is above a threshold, so scores must order neurons by contribution,
|product| ‖down‖, across neurons and tokens. In four steps, none of them iterative:

1. What a neuron contributes if its margins are known up to logistic noise: the logarithm of the expected product. It
   falls on below zero, so it also says how far an idle neuron is from being active.
2. That target as a linear function of the margins, and so of the input: least squares for each neuron by itself.
3. The directions of the best map of the rank for these functions under the inputs' covariance (planner/lowrank.py),
   rows weighted by how much their neurons contribute; then the regression of the input on these directions of what the
   predictor is given. That may be the input of the FFN before: reads then start a layer earlier.
4. The functions' constants: one row of the map is the linear function of the input that is nearest to 1.
docs/decisions/log.md has what else was tried.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotset import _core
from hotset.models.gate import ZERO_BELOW
from hotset.planner.lowrank import Moments, fit_low_rank
from hotset.tools.train_predictor_inputs import Floats, Neurons

FORMAT = "q4_0"  # half the bytes of q8_0, and asks for 7 % more neurons at equal loss
ROWS = 32  # ranks are multiples of it: columns that share a scale
LOSSES: Floats = np.geomspace(1e-6, 0.9, 128).astype(np.float32)  # shares of lost energy that thresholds are kept for
_SAMPLE = 512  # tokens from which the linear functions are found: three numbers a neuron
_NOISE = 0.588  # scale of the logistic noise for margins of spread 1: that of a normal distribution with spread 1
_RIDGE = 1e-3  # of the regression, to the variance of its features
_LEAST_REACH = 1e-3  # weight of a neuron that never was active, to that of the mean
_MISSES = (
    6  # a neuron asked for costs as much as so many from memory: one in 20 is read, and a read costs 100 times more
)


@dataclass(frozen=True, slots=True)
class Tried:
    """How well a map finds neurons on held-out tokens. Arrays: at each of LOSSES."""

    thresholds: Floats  # least score of a neuron that is kept
    predicted: Floats  # share of all neurons
    recall: Floats  # share of the active ones
    lost: Floats  # share of the energy, <= LOSSES
    active: float  # share of all neurons

    def at(self, loss: float) -> tuple[float, float, float, float]:
        """(threshold, share predicted, recall, share lost) where not more than about `loss` of the energy is lost."""
        i = max(int(np.searchsorted(LOSSES, np.float32(loss), side="right")) - 1, 0)
        return float(self.thresholds[i]), float(self.predicted[i]), float(self.recall[i]), float(self.lost[i])


@dataclass(frozen=True, slots=True)
class LayerFit:
    rank: int
    bytes: int
    tried: Tried
    predict_us: float  # time of one token's scores, one thread
    fit_seconds: float


@dataclass(frozen=True, slots=True)
class LayerInputs:
    """Inputs of one FFN, and what its predictor is given for them: the same, or the input of the FFN before it."""

    x: Floats  # [tokens, hidden]
    seen: Floats  # [tokens, hidden]


@dataclass(frozen=True, slots=True)
class TrainingInputs(LayerInputs):
    """With what takes long to find, and serves the next layer, too."""

    moments: Moments  # of x
    seen_moments: Moments


def fit_layer(
    neurons: Neurons, training: TrainingInputs, held_out: LayerInputs, ranks: Sequence[int], loss: float
) -> tuple[Floats, Floats, LayerFit]:
    """The cheapest map among `ranks`, fitted on some inputs and tried on others.

    loss: share of lost energy at which the ranks are compared. Cheapest: by what the predictor and the neurons that it
    asks for take to fetch, so a layer that has few active neurons gets a small one.
    Returns: down [rank, hidden], up [ffn, rank] in the order of the store, and what is to be said of them.
    """
    start = time.monotonic()
    energy = np.square(neurons.contributions(held_out.x))
    best = None
    for down, up in _maps(neurons, training, ranks):
        middle: Floats = held_out.seen @ rounded(down).T
        tried = try_scores(middle @ rounded(up).T, energy)
        wanted = tried.at(loss)[1] * len(up)
        cost = bytes_of(down, up) + wanted * _MISSES * 3 * _core.vector_bytes("q4_0", down.shape[1])
        if best is None or cost < best[0]:
            best = cost, down, up, tried
    assert best is not None
    _, down, up, tried = best
    took = time_us(down, up, held_out.seen[:1])
    return down, up, LayerFit(len(down), bytes_of(down, up), tried, took, time.monotonic() - start)


def _maps(neurons: Neurons, given: TrainingInputs, ranks: Sequence[int]) -> Iterator[tuple[Floats, Floats]]:
    """(down, up) of every rank. The leading rows of the largest map are those of the smaller ones."""
    rows, offset, weight = linear_functions(neurons, given.x[:: max(1, len(given.x) // _SAMPLE)])
    one = constant_row(given.seen_moments)
    into = fit_low_rank(rows * weight[:, None], given.moments, max(ranks) - 1).into
    middle = given.seen @ into.T
    into /= middle.std(axis=0)[:, None]  # q4_0 and q8_0 share scales within rows of `up`
    middle /= middle.std(axis=0)
    for rank in ranks:
        fitted, constant = _regression(middle[:, : rank - 1], given.x)
        out = rows @ fitted.T
        yield (
            np.concatenate([one[None], into[: rank - 1]]),
            np.concatenate([(offset + rows @ constant)[:, None], out], axis=1, dtype=np.float32),
        )


def _regression(features: Floats, x: Floats) -> tuple[Floats, Floats]:
    """x [tokens, hidden] is about features [tokens, n] @ the first, [n, hidden], + the second, [hidden]."""
    means = features.mean(axis=0), x.mean(axis=0)
    centred = features - means[0]
    gram = centred.T @ centred
    gram[np.diag_indices(len(gram))] += _RIDGE * len(x)
    slopes: Floats = np.linalg.solve(gram, centred.T @ x).astype(np.float32)
    return slopes, means[1] - means[0] @ slopes


def bytes_of(*matrices: Floats) -> int:
    """As the engine will have them."""
    return sum(_core.packed_bytes(FORMAT, *matrix.shape) for matrix in matrices)


def linear_functions(neurons: Neurons, x: Floats) -> tuple[Floats, Floats, Floats]:
    """Of each neuron: rows [ffn, hidden] and offset [ffn] of a linear function of the input, and its weight [ffn]."""
    margins = neurons.margins(x)
    spreads = [np.maximum(m.std(axis=0), 1e-20) for m in margins]
    share = neurons.contributions(x)
    weight = np.sqrt(np.sqrt(np.square(share).mean(axis=0)))
    weight = np.maximum(weight / max(float(weight.mean()), 1e-30), _LEAST_REACH).astype(np.float32)
    del share
    target = expected_log(margins, spreads, _cut_off(neurons)) + np.log(np.maximum(neurons.reach, 1e-20))
    slopes, offset = _regress([m / s for m, s in zip(margins, spreads, strict=True)], target)
    matrices = [neurons.up] if neurons.gate is None else [neurons.gate, neurons.up]
    limits = [neurons.up_limit] if neurons.gate is None else [neurons.gate_limit, neurons.up_limit]
    rows = np.zeros_like(neurons.up)
    for slope, spread, matrix, limit in zip(slopes, spreads, matrices, limits, strict=True):
        factor = (slope / spread).astype(np.float32)
        rows += factor[:, None] * matrix
        offset -= factor * limit
    # What is common to all neurons and tokens moves only the threshold, and would cost digits.
    return rows, (offset - offset.mean()).astype(np.float32), weight


def _cut_off(neurons: Neurons) -> list[bool]:
    """Of which branches a negative margin tells that the neuron adds little."""
    config = neurons.config
    return [True] if neurons.gate is None else [True, config.act_up in ZERO_BELOW]


def expected_log(margins: Sequence[Floats], spreads: Sequence[Floats], cut_off: Sequence[bool]) -> Floats:
    """log of the product of E[max(margin + noise, 0)], noise logistic of the margin's own spread.

    E[max(m + Z, 0)] = s log(1 + exp(m / s)) for Z logistic of scale s. Where a branch is not cut off below its limit,
    its size says nothing that a linear function could, and its spread stands for it.
    """
    total = np.zeros_like(margins[0])
    for margin, spread, cut in zip(margins, spreads, cut_off, strict=True):
        if cut:
            scale = np.float32(_NOISE) * spread
            total += np.log(np.log1p(np.exp(np.clip(margin / scale, -80, 80))))  # np.logaddexp is ten times slower
        total += np.log(spread)
    return total


def _regress(features: Sequence[Floats], target: Floats) -> tuple[list[NDArray[np.float64]], NDArray[np.float64]]:
    """Least squares of target [tokens, ffn] on features [tokens, ffn] each, neuron by neuron: slopes and offsets."""
    means = [f.mean(axis=0) for f in features]
    centred = [f - m for f, m in zip(features, means, strict=True)]
    gram = np.array([[np.einsum("tn,tn->n", a, b) for b in centred] for a in centred], np.float64).transpose(2, 0, 1)
    along = np.array([np.einsum("tn,tn->n", a, target) for a in centred], np.float64).T
    ridge = 1e-4 * len(target) * np.eye(len(features))  # two branches may be all but the same
    slopes = np.linalg.solve(gram + ridge, along[..., None])[..., 0].T
    offset = target.mean(axis=0) - sum(s * m for s, m in zip(slopes, means, strict=True))
    return list(slopes), np.asarray(offset, np.float64)


def constant_row(given: Moments) -> Floats:
    """[hidden]: the linear function of an input that is nearest to 1, in mean square.

    It is M^-1 m for the second moments M = C + m m^T; by Sherman and Morrison a multiple of C^-1 m.
    """
    towards = np.linalg.solve(given.covariance, given.mean.astype(np.float64))
    return (towards / (1 + float(given.mean @ towards))).astype(np.float32)


def try_scores(scores: Floats, energy: Floats) -> Tried:
    """scores, energy: [tokens, ffn]."""
    order = np.argsort(-scores, axis=None)
    kept = np.cumsum(energy.ravel()[order], dtype=np.float64)
    found = np.cumsum(energy.ravel()[order] > 0)
    # The first neuron at which not more than the allowed share is left over.
    last = np.searchsorted(kept, (1 - LOSSES.astype(np.float64)) * kept[-1])
    last = np.minimum(last, scores.size - 1)
    return Tried(
        thresholds=scores.ravel()[order[last]],
        predicted=((last + 1) / scores.size).astype(np.float32),
        recall=(found[last] / max(int(found[-1]), 1)).astype(np.float32),
        lost=((kept[-1] - kept[last]) / max(kept[-1], 1e-300)).astype(np.float32),
        active=float(found[-1]) / scores.size,
    )


def _packed(matrix: Floats) -> NDArray[np.uint8]:
    out = np.zeros(_core.packed_bytes(FORMAT, *matrix.shape), np.uint8)
    _core.encode(FORMAT, np.ascontiguousarray(matrix, np.float32), out)
    return out


def rounded(matrix: Floats) -> Floats:
    """As the engine will have it."""
    return _core.decode(FORMAT, _packed(matrix), *matrix.shape)


def time_us(down: Floats, up: Floats, x: Floats) -> float:
    """Of the scores for x [1, hidden], one thread; least of five."""
    isa, first, second = _core.select_isa(), _packed(down), _packed(up)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        middle = _core.matmul(isa, FORMAT, first, len(down), down.shape[1], x)
        _core.matmul(isa, FORMAT, second, len(up), up.shape[1], middle)
        times.append((time.perf_counter() - start) * 1e6)
    return min(times)
