"""What a plan takes from a store's profile, on the sparse model that lies in the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import hotset
from hotset.formats.profile import load_profile
from hotset.formats.store import Store, open_store
from hotset.models import Model, resolve
from hotset.planner.use import neuron_use
from hotset.tools.plan_profile import profiled


@pytest.fixture(scope="module")
def story() -> Store:
    return open_store(Path(hotset.__file__).parent / "data/stories-13m")


@pytest.fixture(scope="module")
def model(story: Store) -> Model:
    return resolve(story.config)


def test_neurons_are_in_the_order_of_the_store(story: Store, model: Model) -> None:
    found, profile, info = profiled(story, model, None, None), load_profile(story), story.neurons
    assert found is not None and info is not None
    for layer in range(info.layers):
        own = profile.counts[0][layer] / profile.steps[0][0]
        assert found.shares[0, layer] == pytest.approx(own[info.read_order(layer)])
    assert found.active == pytest.approx(float(profile.rates(1).sum()), rel=1e-5)


def test_gates_of_a_drelu_model_are_more_than_its_active_neurons(story: Store, model: Model) -> None:
    found = profiled(story, model, None, None)
    assert found is not None and found.both and set(found.finds) == {"gate", "read-gate"}
    gates = found.finds["gate"].computed
    assert gates == pytest.approx(float(np.sqrt(found.shares[0]).mean()))
    use = neuron_use(found.shares, found.finds["gate"])
    count = found.shares[0].size
    assert use.wanted(0) == pytest.approx(gates * count, rel=1e-3)
    assert use.wanted(0) > 1.2 * found.active
    assert found.tried(count) == pytest.approx((found.active * count) ** 0.5)


def test_a_store_without_profile_has_none(story: Store, model: Model, tmp_path: Path) -> None:
    for file in story.path.iterdir():
        if file.name != "profile.safetensors":
            (tmp_path / file.name).symlink_to(file)
    assert profiled(open_store(tmp_path), model, None, None) is None
