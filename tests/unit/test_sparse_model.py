"""Synthetic sparse models: the store is read back and run by the reference on other tokens than it was made on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hotset import LLM, _core
from hotset.errors import UsageError
from hotset.formats.store import StoreEntry, open_store
from hotset.models import resolve
from hotset.planner import statistics
from hotset.reference.arithmetic import Array
from hotset.reference.forward import Forward
from hotset.tools.random_model import ModelShape
from hotset.tools.sparse_model import sparse_model
from hotset.tools.sparse_model_attention import SHARPNESS, distance_weights
from hotset.tools.sparse_model_math import away_from, scale_for_correlation
from hotset.tools.sparse_model_report import WorkloadReport
from hotset.tools.sparse_model_workload import HARD, PUBLISHED, Workload

SHAPE = ModelShape(hidden=256, ffn=896, layers=4, heads=4, kv_heads=2, vocab=1000, context=1024)
TOKENS = 384


class Recorded(Forward):
    """Keeps what goes into every down projection."""

    hidden: dict[int, Array]

    def _linear(self, x: Array, role: str, layer: int) -> Array:
        if role == "down":
            self.hidden[layer] = x
        return super()._linear(x, role, layer)


def read(entry: StoreEntry) -> NDArray[np.float32]:
    data = np.fromfile(entry.path, np.uint8, entry.bytes, offset=entry.offset)
    return _core.decode(entry.fmt, data, entry.rows, entry.cols) if entry.cols else data.view("<f4")


def run(store: Path, tokens: Sequence[int]) -> dict[int, Array]:
    """Activations [tokens, ffn] of every layer."""
    opened = open_store(store)
    model = resolve(opened.config)
    forward = Recorded(
        model.config, {(spec.role, spec.layer): read(opened.entries[spec.name]) for spec in model.tensors}
    )
    forward.hidden = {}
    forward.step(forward.cache(), tokens)
    return forward.hidden


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WorkloadReport]:
    path = tmp_path_factory.mktemp("models") / "published"
    return path, sparse_model(path, SHAPE, tokens=TOKENS)


@pytest.fixture(scope="module")
def hidden(published: tuple[Path, WorkloadReport]) -> dict[int, Array]:
    return run(published[0], np.random.default_rng(1).integers(0, SHAPE.vocab, TOKENS).tolist())


def test_zeros_on_other_tokens_are_those_wanted(hidden: dict[int, Array]) -> None:
    wanted = PUBLISHED.zeros_by_layer(SHAPE.layers)
    assert wanted.mean() == pytest.approx(0.90)
    found = [statistics.zeros(hidden[i] > 0) for i in range(SHAPE.layers)]
    np.testing.assert_allclose(found, wanted, atol=0.02)


def test_the_report_is_what_other_tokens_show(published: tuple[Path, WorkloadReport], hidden: dict[int, Array]) -> None:
    for layer, measured in enumerate(published[1].layers):
        active = hidden[layer] > 0
        assert statistics.reuse(active, 1) == pytest.approx(measured.reuse_1, abs=0.04)
        assert statistics.reuse(active, 5) == pytest.approx(measured.reuse_5, abs=0.04)
        counts = statistics.union_counts(active, 1)
        assert statistics.concentration(counts) == pytest.approx(measured.concentration, abs=0.04)


def test_the_published_statistics_are_reached(published: tuple[Path, WorkloadReport]) -> None:
    model = published[1].model
    assert model.zeros == pytest.approx(0.90, abs=0.01)
    assert 0.24 < model.concentration < 0.31
    assert 0.74 < model.reuse_5 < 0.83
    assert 0.02 < model.lru_miss < 0.09  # the least sparse layer, 1 of 4 here, misses most
    assert model.recall is not None and 0.86 < model.recall < 0.97


def test_the_hard_statistics_are_reached(tmp_path: Path) -> None:
    model = sparse_model(tmp_path / "hard", SHAPE, hard=True, tokens=TOKENS).model
    assert model.zeros == pytest.approx(0.91, abs=0.01)
    assert 0.48 < model.concentration < 0.58
    assert 0.52 < model.reuse_5 < 0.67
    assert model.energy_half == pytest.approx(0.988, abs=0.005)
    assert 0.18 < model.lru_miss < 0.32


def test_the_engine_runs_it_and_greedy_text_ends_in_no_loop(published: tuple[Path, WorkloadReport]) -> None:
    open_store(published[0]).verify()
    with LLM(published[0], context=256) as llm:
        tokens = llm.generate("It was", max_tokens=200, temperature=0, ignore_eos=True).tokens
    assert len(set(tokens[-100:])) > 20  # of 1,000; what changes slowly makes tokens come back


def likeliest(store: Path) -> float:
    """Mean probability of the likeliest token after each of some random ones."""
    tokens = np.random.default_rng(3).integers(0, SHAPE.vocab, 200).astype(np.int32)
    found = []
    with LLM(store, context=256) as llm:
        seq, one = llm.core.sequence_new(), np.ones(1, np.int32)
        for token in tokens:
            llm.core.step(np.array([seq], np.int32), one, np.array([token], np.int32), np.ones(1, np.uint8))
            logits = llm.core.logits()[0].astype(np.float64)
            found.append(1 / np.exp(logits - logits.max()).sum())
    return float(np.mean(found))


def test_it_is_as_sure_of_the_next_token_as_real_models(
    published: tuple[Path, WorkloadReport],
) -> None:
    assert likeliest(published[0]) == pytest.approx(0.55, abs=0.08)  # 0.5 for the one that follows, or another one's


def test_the_report_lies_in_the_store(published: tuple[Path, WorkloadReport]) -> None:
    path, report = published
    found = json.loads((path / "workload.json").read_text())
    assert found == json.loads(json.dumps(report.to_json()))
    assert found["model"].keys() >= found["wanted"].keys()
    assert [layer["zeros"] for layer in found["layers"]] == [asdict(m)["zeros"] for m in report.layers]
    assert len(report.lines()) == SHAPE.layers + 4


def test_seeds_and_formats(tmp_path: Path) -> None:
    tiny = ModelShape(hidden=64, ffn=96, layers=2, heads=2, kv_heads=1, vocab=300, context=128)
    for name, seed, quant in (("a", 1, "q4_0"), ("b", 1, "auto"), ("c", 2, "q4_0"), ("d", 1, "f16")):
        sparse_model(tmp_path / name, tiny, seed=seed, quant=quant, tokens=64)
    a, b, c = ((tmp_path / name / "neurons.safetensors").read_bytes() for name in "abc")
    assert a == b != c
    assert {entry.fmt for entry in open_store(tmp_path / "d").entries.values()} == {"f16", "f32"}


def test_too_few_tokens_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 64"):
        sparse_model(tmp_path / "x", SHAPE, tokens=10)


@pytest.mark.parametrize("workload", [PUBLISHED, HARD])
@pytest.mark.parametrize("layers", [1, 2, 3, 8, 32])
def test_zeros_of_layers_keep_their_mean(workload: Workload, layers: int) -> None:
    zeros = workload.zeros_by_layer(layers)
    assert zeros.shape == (layers,)
    assert zeros.mean() == pytest.approx(workload.zeros)
    assert 0.75 < zeros.min() <= zeros.max() < 1


@pytest.mark.parametrize("decay", [1.5, 6.0, 24.0])
@pytest.mark.parametrize(("pairs", "far"), [(32, 0.1), (64, 0.05)])  # few frequencies come back together sooner
def test_attention_falls_with_the_distance_and_stays_low(decay: float, pairs: int, far: float) -> None:
    inv_freq = 10000.0 ** -(np.arange(pairs) / pairs)
    logits = SHARPNESS * np.cos(np.outer(np.arange(4096), inv_freq)) @ distance_weights(inv_freq, decay)
    weights = np.exp(logits - logits[0])
    near = int(3 * decay)
    assert (np.diff(weights[:near]) < 0).all()
    assert 0.03 < weights[near] < 0.2  # e^-3 is 0.05
    assert weights[10 * near :].sum() < far * weights.sum()


def test_the_scale_gives_the_correlation_wanted() -> None:
    rng = np.random.default_rng(0)
    fresh = rng.standard_normal((500, 64)).astype(np.float32)
    slow = np.cumsum(rng.standard_normal((500, 64)), axis=0).astype(np.float32) / 10
    scale = scale_for_correlation(fresh, slow, 0.5, 0.0, 100.0)
    assert statistics.autocorrelation(fresh + scale * slow, [1])[0] == pytest.approx(0.5, abs=0.005)
    assert scale_for_correlation(slow, fresh, 0.5, 0.1, 100.0) == 0.1  # already slower than wanted


def test_away_from_leaves_nothing_along_the_direction() -> None:
    rng = np.random.default_rng(0)
    rows, direction = (rng.standard_normal(n).astype(np.float32) for n in ((5, 32), 32))
    np.testing.assert_allclose(away_from(rows, direction) @ direction, 0, atol=1e-5)
