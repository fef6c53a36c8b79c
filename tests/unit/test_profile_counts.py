"""Counts of a profile against brute force on the same bits."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from hotset.formats.profile import BATCHES, REUSE_WINDOWS
from hotset.planner.statistics import reuse, union_counts
from hotset.tools.profile_counts import CONSECUTIVE, INDEPENDENT, Counter, column_sums, ones
from hotset.tools.profile_neighbours import neighbours

LAYERS, FFN = 3, 77  # no multiple of 8
Active = NDArray[np.bool_]


def sticky(rng: np.random.Generator, tokens: int, layers: int = LAYERS, ffn: int = FFN) -> Active:
    """Neurons of unlike frequency that tend to stay what they are from token to token, [tokens, layers, ffn]."""
    threshold = rng.uniform(0, 3, (layers, ffn))
    noise = rng.standard_normal((tokens, layers, ffn))
    for t in range(1, tokens):
        noise[t] = 0.6 * noise[t - 1] + 0.8 * noise[t]
    return noise > threshold


def packed(active: Active) -> NDArray[np.uint8]:
    return np.packbits(active, axis=2, bitorder="little")


def counted(windows: list[Active], sample: int = 10, trace: int = 50) -> Counter:
    counter = Counter(LAYERS, FFN, sum(map(len, windows)), sample, trace)
    for window in windows:
        counter.add(packed(window))
    return counter


@pytest.fixture(scope="module")
def windows() -> list[Active]:
    rng = np.random.default_rng(1)
    return [sticky(rng, tokens) for tokens in (40, 300, 17, 63, 1, 511)]


@pytest.mark.parametrize("batch", BATCHES)
def test_consecutive(windows: list[Active], batch: int) -> None:
    counter = counted(windows)
    for layer in range(LAYERS):
        want = sum(union_counts(w[:, layer], batch) for w in windows)
        assert (counter.counts[CONSECUTIVE, batch - 1, layer] == want).all()
    assert counter.steps[CONSECUTIVE, batch - 1] == sum(len(w) // batch for w in windows)


@pytest.mark.parametrize("batch", BATCHES)
def test_independent(windows: list[Active], batch: int) -> None:
    want = np.zeros((LAYERS, FFN), np.int64)
    for window in windows:
        apart = len(window) // batch
        for step in range(apart):
            together = np.zeros((LAYERS, FFN), bool)
            for member in range(batch):
                together |= window[member * apart + step]
            want += together
    counter = counted(windows)
    assert (counter.counts[INDEPENDENT, batch - 1] == want).all()
    if batch > 1:  # tokens far apart have less in common
        assert want.sum() > counter.counts[CONSECUTIVE, batch - 1].sum()


def test_reuse_of_one_window() -> None:
    window = sticky(np.random.default_rng(2), 200)
    counter = counted([window])
    for place, back in enumerate(REUSE_WINDOWS):
        got = counter.reused[:, place] / counter.reusable[:, place]
        assert got == pytest.approx([reuse(window[:, layer], back) for layer in range(LAYERS)])


def test_reuse_does_not_cross_windows(windows: list[Active]) -> None:
    counter = counted(windows)
    for place, back in enumerate(REUSE_WINDOWS):
        later = before = 0
        for w in windows:
            for t in range(back, len(w)):
                later += int(w[t].sum())
                before += int((w[t] & w[t - back : t].any(axis=0)).sum())
        assert (counter.reusable[:, place].sum(), counter.reused[:, place].sum()) == (later, before)


def test_trace_and_sample(windows: list[Active]) -> None:
    counter = counted(windows, sample=10, trace=350)
    text = packed(np.concatenate(windows))
    assert (counter.trace == text[:350]).all()
    apart = len(text) // 10
    assert (counter.sample == text[::apart][: len(counter.sample)]).all()
    assert len(counter.sample) >= 10


def test_goes_on_from_its_state(windows: list[Active]) -> None:
    whole = counted(windows)
    first = Counter(LAYERS, FFN, whole.tokens, 10, 50)
    for window in windows[:3]:
        first.add(packed(window))
    second = Counter(LAYERS, FFN, whole.tokens, 10, 50)
    second.restore(first.state())
    for window in windows[3:]:
        second.add(packed(window))
    for name, array in whole.state().items():
        assert (second.state()[name] == array).all(), name


def test_refuses_the_state_of_another(windows: list[Active]) -> None:
    other = Counter(LAYERS, FFN + 8, 100, 10, 50)
    with pytest.raises(ValueError, match="counts"):
        other.restore(counted(windows).state())


def test_sums_of_many_rows() -> None:
    active = np.random.default_rng(3).random((1000, 1, 19)) < 0.9  # above what a byte holds
    bits = packed(active)[:, 0]
    assert (column_sums(bits, 19) == active[:, 0].sum(axis=0)).all()
    assert ones(bits) == active.sum()


def test_neighbours_against_brute_force() -> None:
    rng = np.random.default_rng(4)
    active = sticky(rng, 120, 1, 40)[:, 0]
    active[:, 7] = active[:, 3]  # twins
    active[:, 11] = False  # never active: nobody's neighbour
    ids, near = neighbours(active, 5)
    assert ids.shape == near.shape == (40, 5)
    for i in range(40):
        jaccard = [
            (active[:, i] & active[:, j]).sum() / max((active[:, i] | active[:, j]).sum(), 1) if i != j else 0.0
            for j in range(40)
        ]
        assert near[i] == pytest.approx(sorted(jaccard, reverse=True)[:5])
        for j, value in zip(ids[i], near[i], strict=True):
            assert value == pytest.approx(jaccard[j])
            assert (j == i) == (value == 0)
    assert (ids[3, 0], ids[7, 0]) == (7, 3) or not active[:, 3].any()
    assert (ids[11] == 11).all()


@pytest.mark.parametrize("neurons", [1, 3])
def test_neighbours_of_few(neurons: int) -> None:
    ids, near = neighbours(np.ones((5, neurons), bool), 8)
    assert ids.shape == (neurons, neurons - 1)
    assert (near == 1).all()
