"""Floors of the FFN: the engine, dense and sparse, against the NumPy twin with the same floors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from hotset import _core
from hotset.errors import UsageError
from hotset.reference.forward import Forward
from tests.sparse_models import SparseModel, make_sparse_model, run, tiny_config

PROMPT = [int(i * 7 % 97) for i in range(40)]
STEPS = [int(i * 31 % 97) for i in range(6)]
NEURONS, LAYERS, HIDDEN = 300, 2, 96
TOKENS = PROMPT + STEPS


@pytest.fixture(scope="module", params=["silu", "gelu", "plain"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SparseModel:
    act = "gelu_tanh" if request.param == "gelu" else "silu"
    config = tiny_config(request.param != "plain", act, "none", hidden=HIDDEN, ffn=NEURONS)
    return make_sparse_model(tmp_path_factory.mktemp(request.param), config, "q8_0", biased=not config.gated)


def floors_of(kind: str) -> list[Mapping[str, Any]]:
    rng = np.random.default_rng(3)
    if kind != "product":
        return [{kind: 0.3}, {kind: 0.1}]
    return [{"product": rng.uniform(0, 0.5, NEURONS).astype(np.float32)} for _ in range(LAYERS)]


def twin(model: SparseModel, floors: list[Mapping[str, Any]]) -> np.ndarray:
    """Logits after the prompt and each step, from the weights in the files."""
    forward = Forward(model.config, model.weights, floors=floors)
    return forward.step(forward.cache(), TOKENS)[len(PROMPT) - 1 :]


def apply(engine: _core.Engine, floors: list[Mapping[str, Any]]) -> _core.Engine:
    for layer, floor in enumerate(floors):
        engine.set_ffn_floor(layer, **floor)
    return engine


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2)))


@pytest.mark.parametrize("kind", ["product", "gate", "input"])
def test_dense_engine_equals_twin(model: SparseModel, kind: str) -> None:
    if kind == "gate" and not model.config.gated:
        pytest.skip("no gate")
    floors = floors_of(kind)
    want, without = twin(model, floors), twin(model, [])
    engine = apply(model.dense(), floors)
    got = run(engine, PROMPT, STEPS)
    assert relative(want, without) > 0.04  # the floors change a lot
    assert relative(got, want) < 0.01  # f16 keys and values, and a value at its floor may fall on the other side
    assert relative(run(apply(engine, [{}] * LAYERS), PROMPT, STEPS), without) < 2e-3  # and can be taken away


@pytest.mark.parametrize("kind", ["product", "gate", "input"])
@pytest.mark.parametrize(("hot", "slots"), [(NEURONS, 0), (50, 100)])
def test_sparse_engine_equals_dense_one(model: SparseModel, kind: str, hot: int, slots: int) -> None:
    if kind == "gate" and not model.config.gated:
        pytest.skip("no gate")
    floors = floors_of(kind)
    want = run(apply(model.dense(), floors), PROMPT, STEPS)
    engine = apply(model.sparse(_core.SparseOptions([hot] * LAYERS, slots)), floors)
    got = run(engine, PROMPT, STEPS)
    assert relative(got, want) < 0.05  # activations of 8 bits, and what lies at its floor
    assert relative(got, run(model.dense(), PROMPT, STEPS)) > relative(got, want)
    stats = engine.sparse_stats
    assert (stats["active"] < 0.95 * stats["candidates"]) == (kind != "input")


def test_record_counts_what_is_left(model: SparseModel) -> None:
    engine = apply(model.dense(), floors_of("product"))
    engine.record(activations=True)
    run(engine, PROMPT, [])
    left = np.unpackbits(engine.take_record()[0], axis=2, bitorder="little")[:, :, :NEURONS].mean()
    assert 0.2 < left < 0.95


@pytest.mark.parametrize(
    ("layer", "floor", "message"),
    [
        (2, {"gate": 0.1}, "the model has 2"),
        (0, {"gate": -0.1}, "not a finite number from 0"),
        (0, {"input": float("nan")}, "not a finite number from 0"),
        (0, {"product": np.ones(7, np.float32)}, "7 floors for 300 neurons"),
        (0, {"product": np.full(NEURONS, np.inf, np.float32)}, "not a finite number from 0"),
    ],
)
def test_wrong_floors_are_refused(model: SparseModel, layer: int, floor: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        model.dense().set_ffn_floor(layer, **floor)
