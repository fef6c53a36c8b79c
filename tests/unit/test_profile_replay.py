"""Replays of cache policies: against the engine's own cache, against one step at a time, and against the optimum."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hotset import _core
from hotset.errors import UsageError
from hotset.planner.replay import replay, replay_belady, replay_static, replay_window
from hotset.planner.sizes import POLICIES
from tests.sparse_models import SparseModel, make_sparse_model, tiny_config

Active = NDArray[np.bool_]
NEURONS, LAYERS = 300, 3
TINY = float(np.finfo(np.float32).tiny)


def sticky(seed: int, tokens: int, layers: int, neurons: int) -> Active:
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((tokens, layers, neurons))
    for t in range(1, tokens):
        noise[t] = 0.8 * noise[t - 1] + 0.6 * noise[t]
    return noise > rng.uniform(-0.5, 2.5, (layers, neurons))


class OneByOne:
    """native/cache again, neuron by neuron."""

    def __init__(self, slots: int, policy: str) -> None:
        self.most = {"lru": 0, "clock": 1, "lfu": 15, "window": 0}[policy]
        self.whole_tokens = policy == "window"
        self.slots, self.hand = slots, 0
        self.free: list[int] = []
        self.owner: list[tuple[int, int]] = []
        self.uses, self.time = [0] * slots, [-1] * slots
        self.order: list[int] = []  # slots, least recently used first

    def touch(self, slot: int, now: int, fresh: bool) -> None:
        self.uses[slot] = 1 if fresh else min(self.uses[slot] + 1, max(self.most, 1))
        self.time[slot] = now
        if slot in self.order:
            self.order.remove(slot)
        self.order.append(slot)

    def victim(self, now: int) -> int | None:
        if self.most == 0:
            return self.order[0] if self.order and self.time[self.order[0]] != now else None
        for _ in range(8 * self.slots):
            slot = self.hand
            self.hand = (self.hand + 1) % self.slots
            if self.time[slot] == now:
                continue
            if self.uses[slot] == 0:
                return slot
            self.uses[slot] //= 2
        return None

    def give_up(self, now: int) -> list[int]:
        """What the oldest token used and no later one did."""
        token = lambda slot: (self.time[slot] - 1) // 2  # noqa: E731
        idle = [slot for slot in self.order if self.time[slot] != now]
        gone = [slot for slot in idle if token(slot) == token(idle[0])]
        for slot in gone:
            self.owner[slot] = (-1, -1)
            self.order.remove(slot)
        return gone

    def ask(self, layer: int, neurons: list[int], now: int) -> int:
        missing = []
        for neuron in neurons:
            if (layer, neuron) in self.owner:
                self.touch(self.owner.index((layer, neuron)), now, False)
            else:
                missing.append(neuron)
        for neuron in missing:
            if len(self.owner) < self.slots:
                self.owner.append((layer, neuron))
                self.touch(len(self.owner) - 1, now, True)
            elif self.whole_tokens:
                self.free = self.free or self.give_up(now)
                if self.free:
                    slot = self.free.pop()
                    self.owner[slot] = (layer, neuron)
                    self.touch(slot, now, True)
            elif (slot := self.victim(now)) is not None:
                self.owner[slot] = (layer, neuron)
                self.touch(slot, now, True)
        return len(missing)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("slots", [0, 1, 5, 17, 40, 90, 200])
def test_equals_one_by_one(policy: str, slots: int) -> None:
    active = sticky(slots, 60, 2, 60)
    hot = [3, 10]
    cache, now = OneByOne(slots, policy), 0
    want = np.zeros(active.shape[:2], np.int64)
    for t, token in enumerate(active):
        for layer in range(2):
            now += 1
            wanted = [int(k) for k in np.flatnonzero(token[layer]) if k >= hot[layer]]
            want[t, layer] = cache.ask(layer, wanted, now)
    assert (replay(active, hot, slots, policy) == want).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_no_policy_beats_belady(policy: str) -> None:
    active = sticky(1, 150, 3, 80)
    for slots in (20, 100, 180):
        best = replay_belady(active, [0, 5, 10], slots)
        got = replay(active, [0, 5, 10], slots, policy).sum(axis=1)
        assert best.sum() < got.sum()
        assert (best.cumsum() <= got.cumsum()).all()
    everything = replay(active, [0, 0, 0], 240, policy).sum()
    assert everything == active.any(axis=0).sum() == replay_belady(active, [0, 0, 0], 240).sum()


def test_window() -> None:
    active = sticky(2, 40, 2, 30)
    misses, held = replay_window(active, 3)
    for t in range(40):
        before = {(layer, k) for back in active[max(t - 3, 0) : t] for layer, k in np.argwhere(back)}
        now = {(layer, k) for layer, k in np.argwhere(active[t])}
        assert (misses[t], held[t]) == (len(now - before), len(before))


@pytest.mark.parametrize("slots", [0, 7, 31, 60])
def test_static(slots: int) -> None:
    active = sticky(3, 40, 2, 30)
    counts = active.sum(axis=0)
    ranked = sorted((-counts[layer, k], layer, k) for layer in range(2) for k in range(30))
    kept = {(layer, k) for _, layer, k in ranked[:slots]}
    want = [sum((layer, k) not in kept for layer, k in np.argwhere(token)) for token in active]
    assert replay_static(active, counts, slots).tolist() == want
    assert sum(want) >= replay_belady(active, [0, 0], slots).sum() - slots  # which begins with an empty cache


def test_unknown_policy() -> None:
    with pytest.raises(UsageError, match="'fifo'; there are lru, clock, lfu, window"):
        replay(sticky(0, 2, 1, 4), [0], 2, "fifo")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SparseModel:
    config = tiny_config(True, "relu", "none", hidden=64, ffn=NEURONS, layers=LAYERS)
    return make_sparse_model(Path(tmp_path_factory.mktemp("replay")), config, "q8_0")


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("hot", "slots"), [(0, 300), (100, 60), (40, 450), (0, 20)])
def test_equals_the_engines_counters(model: SparseModel, policy: str, hot: int, slots: int) -> None:
    least = [TINY] * LAYERS  # the gate predictor then asks for exactly the active neurons
    engine = model.sparse(_core.SparseOptions([hot] * LAYERS, slots, policy, "gate", least, least, depth=NEURONS))
    engine.record(activations=True)
    seq = engine.sequence_new()
    for token in range(80):
        step = np.array([token * 31 % 97], np.int32)
        engine.step(np.array([seq], np.int32), np.array([1], np.int32), step, np.zeros(1, np.uint8))
    stats = engine.sparse_stats
    bits, _ = engine.take_record()
    active = np.unpackbits(bits, axis=2, count=NEURONS, bitorder="little").view(np.bool_)
    assert stats["candidates"] == active.sum() > 0
    assert stats["missed"] == replay(active, [hot] * LAYERS, slots, policy).sum()
