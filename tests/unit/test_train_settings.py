"""What a run of `hotset sparsify` may be asked to do, and how strong its pull to zero gets. Needs no PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hotset.errors import UsageError
from hotset.train.pull import Pull, goals
from hotset.train.schedule import ffn_learning_rate, free_share, swap_share, wanted_zeros
from hotset.train.settings import DataSource, Settings


def settings(**changes: object) -> Settings:
    return Settings(**({"model": "m", "data": (DataSource(Path("a")),)} | changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"zeros": 0.85, "l1": 0.1}, "--zeros finds the weight that --l1 would give"),
        ({"zeros": 0.85, "activation": "keep"}, "are for a new activation"),
        ({"ffn_sequences": 10, "activation": "keep"}, "are for a new activation"),
        ({"ffn_sequences": 10, "from_scratch": True}, "--from-scratch has none"),
        ({"distill": 0.5, "from_scratch": True}, "drop one, or give a --teacher"),
        ({"teacher": "other"}, "--teacher is what --distill learns from"),
        ({"ffn_sequences": 10, "swap_steps": 5}, "--swap-steps would mix"),
        ({"zeros": 0.85, "steps": 40, "swap_steps": 39}, "--zeros pulls when --swap-steps"),
        ({"seed": -1}, "--seed is -1; want at least 0"),
        ({"zeros": 85.0}, "--zeros is 85.0; want a share below 1"),
        ({"zeros": float("nan")}, "--zeros is nan; want a share below 1"),
        ({"ffn_batch": 0}, "--ffn-batch is 0; want at least 1"),
        ({"ffn_lr": 0.0}, "--ffn-lr is 0.0; want a number above 0"),
    ],
)
def test_settings_that_no_run_can_have(changes: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        settings(**changes).check()


def test_a_single_step_may_ask_for_zeros() -> None:
    """Behind a first stage, which has them already."""
    settings(zeros=0.85, steps=1, ffn_sequences=10).check()


def test_random_weights_may_learn_from_a_teacher() -> None:
    settings(distill=0.5, from_scratch=True, teacher="other").check()


def test_a_checkpoint_from_before_a_setting_existed_has_its_default() -> None:
    before = settings().as_json()
    del before["teacher"]
    assert settings().differences(before) == []
    assert settings(distill=0.5, teacher="other").differences(before) == [
        "distill was 0.0, is 0.5",
        "teacher was , is other",
    ]


def test_the_pull_settles_where_the_zeros_are_as_wanted() -> None:
    """Zeros that answer to the weight's logarithm, within some steps and with noise, as measured ones do."""
    random, pull, zeros, found = np.random.default_rng(0), Pull(), 0.75, []
    for _ in range(300):
        zeros += 0.1 * (0.9 + 0.05 * np.log10(pull.weight) - zeros)
        pull.follow(zeros + random.normal(scale=0.003), 0.85)
        found.append((zeros, np.log10(pull.weight)))
    settled, weight = np.mean(found[-50:], 0)
    assert (settled, weight) == (pytest.approx(0.85, abs=0.003), pytest.approx(-1, abs=0.05))


@pytest.mark.parametrize("answer", [0.001, 0.004, 0.008])
def test_zeros_that_move_as_long_as_they_are_pulled_do_not_swing(answer: float) -> None:
    """As weights do in training: without damping they swing beyond 0.97, from where no neuron comes back."""
    random, pull, zeros, found = np.random.default_rng(0), Pull(), 0.75, []
    for step in range(400):
        zeros = min(zeros + answer * np.log(pull.weight / 0.05), 1.0)
        pull.follow(zeros + random.normal(scale=0.004), wanted_zeros(step / 400, 0.75, 0.9))
        found.append(zeros)
    assert max(found) < 0.915
    assert np.mean(found[-50:]) == pytest.approx(0.9, abs=0.005)


def test_a_pull_that_nothing_answers_to_stays_finite() -> None:
    pull = Pull()
    for _ in range(10_000):
        pull.follow(0.0, 0.9)
    assert pull.weight == 1e3
    for _ in range(10_000):
        pull.follow(1.0, 0.1)
    assert pull.weight == 1e-5


def test_wanted_zeros_rise_and_stay() -> None:
    found = [wanted_zeros(done, 0.6, 0.9) for done in (0.0, 0.3, 0.6, 0.8, 1.0)]
    assert found == pytest.approx([0.6, 0.75, 0.9, 0.9, 0.9])
    later = [wanted_zeros(done, 0.6, 0.9, 0.2) for done in (0.1, 0.2, 0.4, 0.6, 1.0)]
    assert later == pytest.approx([0.6, 0.6, 0.75, 0.9, 0.9])


@pytest.mark.parametrize(("swap_steps", "from_scratch"), [(50, False), (500, False), (900, True), (50, True)])
def test_nothing_is_pulled_while_some_of_the_old_activation_is_left(swap_steps: int, from_scratch: bool) -> None:
    s = settings(steps=1000, swap_steps=swap_steps, zeros=0.85, from_scratch=from_scratch)
    s.check()
    free = free_share(s)
    first = next(step for step in range(1, 1001) if step / s.steps >= free)  # after it, zeros are looked at
    assert swap_share(first - 1, s) == 1.0
    assert free == max(0.15 * from_scratch, (swap_steps + 1) / 1000)
    wanted = [wanted_zeros(step / 1000, 0.6, 0.85, free) for step in range(1, 1001)]
    assert np.all(np.diff(wanted) >= 0) and wanted[first - 1] == pytest.approx(0.6)
    assert wanted[-1] == pytest.approx(0.85) and max(np.diff(wanted)) < 0.01


def test_rate_of_a_layers_updates_rises_then_falls() -> None:
    s = settings(ffn_lr=2e-3, final_lr=0.1)
    rates = [ffn_learning_rate(done, s) for done in np.linspace(0, 1, 101)]
    assert max(rates) == pytest.approx(2e-3) and 9 <= int(np.argmax(rates)) <= 11
    assert rates[0] < 1e-4 and rates[-1] == pytest.approx(2e-4)
    assert np.all(np.diff(rates[11:]) < 0)


def test_layers_keep_their_distances_on_the_way_to_the_wanted_zeros() -> None:
    assert goals([0.6, 0.7, 0.8], 0.85) == pytest.approx([0.75, 0.85, 0.95])
    assert goals([0.75] * 4, 0.86) == pytest.approx([0.86] * 4)


def test_no_layer_is_asked_for_nearly_all_zeros_nor_for_few() -> None:
    assert goals([0.2, 0.7, 0.9], 0.85) == pytest.approx([0.5, 0.95, 0.97])
    assert goals([0.7, 0.7], 0.99) == pytest.approx([0.99, 0.99])  # unless that is what was asked for
    assert goals([0.3, 0.5], 0.2) == pytest.approx([0.2, 0.3])
