"""Predictors that look a layer ahead: neurons are chosen and read while the layer before is computed."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from hotset import _core
from hotset.errors import FormatError, UsageError
from tests.sparse_models import SparseModel, make_sparse_model, random_maps, run, tiny_config

PROMPT = [int(i * 7 % 97) for i in range(20)]
STEPS = [int(i * 31 % 97) for i in range(24)]
NEURONS, LAYERS = 200, 5
EVERY = [-1e30] * LAYERS
SOME = [0.5] * LAYERS


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SparseModel:
    config = tiny_config(True, "relu", "relu", hidden=544, ffn=NEURONS, layers=LAYERS)
    return make_sparse_model(tmp_path_factory.mktemp("drelu"), config, "q4_0")


@pytest.fixture(scope="module")
def maps(model: SparseModel, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return random_maps(tmp_path_factory.mktemp("maps"), model.config)


def options(maps: Any, hot: int, slots: int, policy: str = "clock", least: list[float] = EVERY) -> _core.SparseOptions:
    return _core.SparseOptions([hot] * LAYERS, slots, policy, "low-rank", least, least, maps[1], depth=16, ahead=True)


@pytest.mark.parametrize(("hot", "slots"), [(0, 0), (0, 250), (100, 100), (180, 7), (0, 1000)])
@pytest.mark.parametrize("policy", ["lru", "clock", "lfu", "window"])
def test_choosing_every_neuron_is_to_compute_all(
    model: SparseModel, maps: Any, hot: int, slots: int, policy: str
) -> None:
    want = run(model.sparse(_core.SparseOptions([NEURONS] * LAYERS, 0)), PROMPT, STEPS)
    for threads in (1, 3):
        engine = model.sparse(options(maps, hot, slots, policy), threads=threads)
        assert (run(engine, PROMPT, STEPS) == want).all()
        assert engine.sparse_stats["candidates"] == len(STEPS) * LAYERS * NEURONS


def test_memory_changes_nothing_where_nothing_is_skipped(model: SparseModel, maps: Any) -> None:
    want = run(model.sparse(options(maps, NEURONS, 0, least=SOME)), PROMPT, STEPS)
    for hot, slots in [(0, 0), (0, 300), (50, 20)]:
        engine = model.sparse(options(maps, hot, slots, least=SOME))
        assert (run(engine, PROMPT, STEPS) == want).all()
        stats = engine.sparse_stats
        assert 0.2 < stats["candidates"] / (len(STEPS) * LAYERS * NEURONS) < 0.4  # of a normal distribution, 31 %


def test_missing_neurons_without_a_place_are_skipped(model: SparseModel, maps: Any) -> None:
    hot, spill, never = 40, 25, [1e30] * LAYERS
    known = model.sparse(_core.SparseOptions([hot + spill] * LAYERS, 0, "lru", "low-rank", EVERY, never, maps[1]))
    want = run(known, PROMPT, STEPS)  # what is not hot is not fetched
    tight = _core.SparseOptions(
        [hot] * LAYERS, 0, "lru", "low-rank", EVERY, EVERY, maps[1], depth=16, ahead=True, spill=spill
    )
    engine = model.sparse(tight)
    assert (run(engine, PROMPT, STEPS) == want).all()
    stats = engine.sparse_stats
    assert stats["candidates"] == len(STEPS) * LAYERS * (hot + spill)
    assert stats["skipped"] == len(STEPS) * LAYERS * (NEURONS - hot - spill)


def test_a_layer_is_chosen_by_the_input_of_the_one_before(model: SparseModel, maps: Any) -> None:
    engine = model.sparse(options(maps, 30, 100, least=SOME))
    engine.record(activations=True, inputs=True)
    run(engine, PROMPT[:1], STEPS)
    active, inputs = engine.take_record()
    fired = np.unpackbits(active, axis=2, bitorder="little")[:, :, :NEURONS].astype(bool)
    for layer, (down, up) in enumerate(maps[0]):
        scores = inputs[:, max(layer - 1, 0)] @ down.T @ up.T
        assert not (fired[:, layer] & (scores < SOME[layer] - 0.02)).any()  # inputs are rounded to 8 bits
        assert fired[:, layer].mean() > 0.03
        if layer > 0:
            own = inputs[:, layer] @ down.T @ up.T
            assert (fired[:, layer] & (own < SOME[layer] - 0.02)).any()


def test_a_step_that_failed_leaves_nothing_unchecked(model: SparseModel, maps: Any) -> None:
    want = run(model.sparse(options(maps, 0, 300)), PROMPT, STEPS)
    whole = model.path.read_bytes()
    data = bytearray(whole)
    for layer in range(LAYERS):
        data[model.offsets[layer] + 17 * model.stride + 3] ^= 4
    engine = model.sparse(options(maps, 0, 300))
    seq = engine.sequence_new()
    step = np.array([seq], np.int32), np.array([1], np.int32), np.array([5], np.int32), np.ones(1, np.uint8)
    try:
        model.path.write_bytes(data)
        for _ in range(2):
            with pytest.raises(FormatError, match=r"neuron 17 of layer 0"):  # and what was read ahead for layer 1?
                engine.step(*step)
        assert engine.sequence_length(seq) == 0
        engine.sequence_free(seq)
    finally:
        model.path.write_bytes(whole)
    assert (run(engine, PROMPT, STEPS) == want).all()


def test_steps_of_few_and_of_many_tokens_in_turn(model: SparseModel, maps: Any) -> None:
    engine = model.sparse(options(maps, 20, 250, least=SOME))
    alone = [run(model.sparse(options(maps, 0, 1000, least=SOME)), PROMPT, STEPS[:n]) for n in (3, 5)]
    for want in (alone[0], alone[1], alone[0]):
        assert (run(engine, PROMPT, STEPS[: len(want) - 1]) == want).all()


def test_only_low_rank_maps_look_ahead() -> None:
    with pytest.raises(UsageError, match="low-rank"):
        _core.SparseOptions([1], 4, predictor="gate", ahead=True)


def test_a_cancelled_step_changes_no_later_one(model: SparseModel, maps: Any) -> None:
    slow = _core.SparseOptions(
        [0] * LAYERS, 250, "lru", "low-rank", SOME, SOME, maps[1], backend="fault:slow:1:1", depth=16, ahead=True
    )
    engine = model.sparse(slow)
    want = run(model.sparse(options(maps, 0, 1000, least=SOME)), PROMPT, STEPS)
    seq = engine.sequence_new()
    step = np.array([seq], np.int32), np.array([1], np.int32), np.array([5], np.int32), np.ones(1, np.uint8)
    cancelled = 0
    for delay in np.linspace(0.001, 0.03, 8):
        timer = threading.Timer(float(delay), engine.cancel)
        timer.start()
        try:
            engine.step(*step)
        except KeyboardInterrupt:
            cancelled += 1
        timer.join()
        assert (run(engine, PROMPT, STEPS[:4]) == want[:5]).all()
    assert cancelled > 0
