"""Sparsity without training: its parts against sorting and brute force, then whole on a small real model."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from hotset import LLM
from hotset.errors import FormatError, InputError, UsageError
from hotset.formats.sparsity import Sparsity, ffn_floors, norms_bytes, read_norms, read_sparsity
from hotset.formats.store import open_store
from hotset.models import resolve
from hotset.reference import ops
from hotset.tools.convert import convert
from hotset.tools.pack import pack
from hotset.tools.profile_text import windows
from hotset.tools.threshold import ThresholdOptions, ThresholdReport, threshold
from hotset.tools.threshold_scores import EDGES, Curve, Histogram, score_layer
from hotset.tools.threshold_spread import spread, threshold_at

ROOT = Path(__file__).parent.parent.parent
TEXT = ROOT / "LICENSE"
STORIES = ROOT / "tests/golden/data/stories260k"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stories260K, a SwiGLU model."""
    return convert(STORIES, tmp_path_factory.mktemp("dense") / "store", quant="f32").dest


def options(**changes: object) -> ThresholdOptions:
    return ThresholdOptions(**({"zeros": 0.4, "tokens": 1500, "measure": 200} | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def report(store: Path) -> ThresholdReport:
    return threshold(store, store.with_name("sparse"), [TEXT], options())


def test_curve_is_what_sorting_gives() -> None:
    rng = np.random.default_rng(0)
    scores = np.exp(rng.standard_normal((200, 50))).astype(np.float32)
    scores[:, 0] = 0
    histogram = Histogram()
    for part in np.split(scores, 4):
        histogram.add(part, np.square(part))
    curve = histogram.curve()
    for share in (0.1, 0.4, 0.9):
        limit = threshold_at(curve, share)
        below = scores < limit
        assert below.mean() <= share
        assert abs(below.mean() - share) < 0.01
        assert limit == pytest.approx(np.quantile(scores, share), rel=0.02)
        lost = float(np.square(scores)[below].sum()) / len(scores)
        assert curve.lost[curve.at(share)] == pytest.approx(lost, rel=1e-4)
    assert threshold_at(curve, 0.01) == 0  # fewer than the neurons that are 0 anyway: nothing to leave out


def test_spread_is_the_best_of_all() -> None:
    rng = np.random.default_rng(1)
    shares = np.linspace(0, 0.9, 10)
    curves = [Curve(shares, np.cumsum(np.sort(rng.uniform(0, 1, 10)))) for _ in range(3)]  # convex
    sensitivity = [0.2, 1.0, 5.0]
    cost = {
        picks: sum(s * c.lost[p] for s, c, p in zip(sensitivity, curves, picks, strict=True))
        for picks in itertools.product(range(10), repeat=3)
    }
    for zeros in (0.2, 0.45, 0.7):
        found = spread(curves, sensitivity, zeros)
        picks = tuple(np.searchsorted(shares, found - 1e-9).tolist())
        at_least_as_sparse = [c for p, c in cost.items() if shares[list(p)].mean() >= found.mean() - 1e-9]
        assert found.mean() <= zeros + 1e-9
        assert zeros - found.mean() < 0.12  # a step of one layer, or two with the same price
        assert cost[picks] == pytest.approx(min(at_least_as_sparse))
        assert found[0] >= found[2]


def test_scores_are_those_of_the_twin(store: Path) -> None:
    opened = open_store(store)
    model = resolve(opened.config)
    rng = np.random.default_rng(2)
    x = rng.standard_normal((70, model.config.hidden)).astype(np.float32)
    from hotset.reference.packed import decode

    w = {
        s.role: decode(e.fmt, np.fromfile(e.path, np.uint8, e.bytes, offset=e.offset), e.rows, e.cols)
        for s in model.tensors
        if s.layer == 1 and s.role in ("gate", "up", "down")
        for e in [opened.entries[s.name]]
    }
    gates = ops.activate("silu", x @ w["gate"].T)
    products = gates * (x @ w["up"].T)
    reach = np.linalg.norm(w["down"], axis=0)
    wanted = {"contribution": np.abs(products) * reach, "cats": np.abs(gates), "teal": np.abs(products)}
    for method, scores in wanted.items():
        found = score_layer(opened, model, 1, x, method)  # type: ignore[arg-type]
        assert found.norms == pytest.approx(reach, rel=1e-5)
        assert threshold_at(found.curve, 0.5) == pytest.approx(np.quantile(scores, 0.5), rel=0.03)
        assert found.curve.lost[-1] == pytest.approx(np.square(products * reach).sum() / len(x), rel=1e-3)
        assert (found.inputs is not None) == (method == "teal")


def test_wanted_zeros_are_reached_and_kept_in_the_store(store: Path, report: ThresholdReport) -> None:
    assert report.cost.zeros == pytest.approx(0.4, abs=0.01)
    assert 0 <= report.cost.change < 0.5
    kept = read_sparsity(open_store(report.path))
    assert kept == report.sparsity
    assert read_sparsity(open_store(store)) is None
    open_store(report.path).verify()
    with LLM(store, context=256) as exact, LLM(report.path, context=256) as sparse:
        tokens = windows([TEXT], exact.tokenizer, 200, 200)[0].tolist()
        sparse.core.record(activations=True)
        a, b = exact.logits(tokens), sparse.logits(tokens)
        left = np.unpackbits(sparse.core.take_record()[0], axis=2, bitorder="little").sum()
        assert 1 - left / (len(tokens) * len(exact.config.layers) * exact.config.ffn) == pytest.approx(0.4, abs=0.06)
        assert 0 < np.abs(a - b).max() < np.abs(a).max()


def test_packing_keeps_thresholds(report: ThresholdReport) -> None:
    packed = pack(report.path, fmt="q8_0", order="none")
    assert packed.notes == ()
    opened = open_store(packed.dest)
    sparsity = read_sparsity(opened)
    assert sparsity == report.sparsity
    with LLM(packed.dest, context=256) as sparse, LLM(report.path, context=256) as dense:
        tokens = windows([TEXT], dense.tokenizer, 100, 100)[0].tolist()
        a, b = dense.logits(tokens), sparse.logits(tokens)
        assert np.sqrt(np.mean((a - b) ** 2) / np.mean(a**2)) < 0.05
        sparse.generate("Once", max_tokens=20, ignore_eos=True)
        stats = sparse.stats
        assert 0.5 < stats["neuron_active"] / stats["neuron_candidates"] < 0.75


def test_contribution_beats_gates_and_evenness(store: Path, report: ThresholdReport) -> None:
    found = {}
    for name, changes in (("cats", {"method": "cats"}), ("teal", {"method": "teal"}), ("even", {"even": True})):
        found[name] = threshold(store, store.with_name(name), [TEXT], options(**changes))
        assert found[name].cost.zeros == pytest.approx(0.4, abs=0.03)
    others = {name: other.cost.divergence for name, other in found.items()}
    assert 2 * report.cost.divergence < min(others["cats"], others["teal"])
    assert report.cost.divergence < others["even"]
    assert len(found["teal"].sparsity.input_thresholds) == len(report.sparsity.thresholds)
    assert set(found["even"].sensitivity) == {1.0}
    assert len(set(report.sensitivity)) == len(report.sensitivity)


def test_wanted_loss_is_reached(store: Path, tmp_path: Path) -> None:
    found = threshold(store, tmp_path / "sparse", [TEXT], options(zeros=None, loss=0.05))
    assert found.cost.change == pytest.approx(0.05, abs=0.02)
    assert found.sparsity.perplexity_change == found.cost.change


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"zeros": 0.0}, "zeros is 0"),
        ({"zeros": 0.99}, "at most 0.95"),
        ({"zeros": None}, "either"),
        ({"loss": 0.1}, "either"),
        ({"zeros": None, "loss": -1.0}, "loss is -1"),
        ({"method": "gate"}, "choose one of contribution, cats, teal"),
        ({"tokens": 10}, "at least 256"),
        ({"measure": 0}, "at least 1"),
    ],
)
def test_values_out_of_range_are_refused(store: Path, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        threshold(store, tmp_path / "sparse", [TEXT], options(**changes))


def test_models_that_are_sparse_or_packed_are_refused(store: Path, report: ThresholdReport, tmp_path: Path) -> None:
    shutil.copytree(STORIES, tmp_path / "relu")
    config = json.loads((tmp_path / "relu/config.json").read_text())
    (tmp_path / "relu/config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    relu = convert(tmp_path / "relu", tmp_path / "relu-store").dest
    packed = pack(store, tmp_path / "packed").dest
    for source, message in ((relu, "sparse already"), (packed, "is packed"), (report.path, "has thresholds already")):
        with pytest.raises(UsageError, match=message):
            threshold(source, tmp_path / "sparse", [TEXT], options())
    with pytest.raises(UsageError, match="exists"):
        threshold(store, report.path, [TEXT], options())
    (tmp_path / "short").write_text("too short a text " * 20)
    with pytest.raises(InputError, match="give more text"):
        threshold(store, tmp_path / "sparse", [tmp_path / "short"], options())
    assert not (tmp_path / "sparse").exists()


def test_damaged_sections_are_refused(report: ThresholdReport, tmp_path: Path) -> None:
    for index, change in enumerate(
        ({"method": "best"}, {"thresholds": [1.0, -1.0]}, {"zeros": "many"}, {"thresholds": [1.0]}, {"more": 1})
    ):
        damaged = tmp_path / str(index)
        shutil.copytree(report.path, damaged)
        config = json.loads((damaged / "config.json").read_text())
        config["hotset"]["sparsity"] |= change
        (damaged / "config.json").write_text(json.dumps(config))
        with pytest.raises(FormatError, match=r"hotset.sparsity"):
            LLM(damaged, context=128)
    opened = open_store(report.path)
    bad = replace_norms(opened.path, tmp_path, np.full((5, 172), np.nan, np.float32))
    with pytest.raises(FormatError, match="no number"):
        read_norms(open_store(bad), 5, 172)
    with pytest.raises(FormatError, match="does not hold"):
        read_norms(opened, 4, 172)


def replace_norms(source: Path, tmp_path: Path, norms: np.ndarray) -> Path:
    shutil.copytree(source, tmp_path / "norms")
    (tmp_path / "norms/norms.safetensors").write_bytes(norms_bytes(norms))
    return tmp_path / "norms"


def test_floors_follow_the_order_of_the_store(report: ThresholdReport) -> None:
    dense = open_store(report.path)
    layers, ffn = len(report.sparsity.thresholds), 172
    norms = read_norms(dense, layers, ffn)
    floors = ffn_floors(dense, report.sparsity, layers, ffn)
    for layer, floor in enumerate(floors):
        assert floor["product"] * norms[layer] == pytest.approx(report.sparsity.thresholds[layer], rel=1e-5)
    cats = Sparsity("cats", report.sparsity.thresholds, (), 0.0, 0.0)
    assert [f["gate"] for f in ffn_floors(dense, cats, layers, ffn)] == list(report.sparsity.thresholds)
    with pytest.raises(FormatError, match="each of 9 layers"):
        ffn_floors(dense, report.sparsity, 9, ffn)
    assert EDGES[0] < 1e-14
