"""Predictors that a checkpoint brings: kept by convert and pack, taken by train-predictor; against their formula."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import Arrays
from golden_vectors import FOLDER, load, read_tensors
from numpy.typing import NDArray
from packed_stores import profile_of, with_profile
from safetensors.numpy import save_file

from hotset import LLM, _core
from hotset.cli.main import main
from hotset.errors import FormatError, ModelError, UsageError
from hotset.formats.predictors import read_predictors
from hotset.formats.predictors_file import write_predictors
from hotset.formats.store import Store, open_store
from hotset.formats.thresholds import Thresholds
from hotset.loader import load_core, tensor_ref
from hotset.models import resolve
from hotset.planner.plan_file import write_plan
from hotset.reference.arithmetic import Array
from hotset.reference.forward import Forward
from hotset.tokenizer import Tokenizer
from hotset.tools.convert import convert
from hotset.tools.pack import pack
from hotset.tools.plan import Wishes, make_plan
from hotset.tools.profile_text import windows
from hotset.tools.train_predictor import TrainOptions, train_predictor
from hotset.tools.train_predictor_calibrate import Bench
from hotset.tools.train_predictor_published import check_published, published_maps
from hotset.tools.train_predictor_report import TrainReport

ROOT = Path(__file__).parent.parent.parent
TEXT = ROOT / "LICENSE"
STORIES = ROOT / "tests/golden/data/stories260k"
RANKS = (24, 40)  # neither fills groups of 32
BAMBOO = {"architectures": ["BambooForCausalLM"], "model_type": "bamboo", "hidden_act": "relu", "sliding_window": None}
OPTIONS = TrainOptions(tokens=1200, written=0, loss=0.05, measure=40, published=True)


def names(layer: int) -> tuple[str, str]:
    """In the checkpoint: [rank, hidden] and [ffn, rank]."""
    return tuple(f"model.layers.{layer}.mlp.predictor.fc{i}.weight" for i in (1, 2))  # type: ignore[return-value]


def random_predictors(hidden: int, ffn: int) -> Arrays:
    rng = np.random.default_rng(0)
    found: Arrays = {}
    for layer, rank in enumerate(RANKS):
        for name, shape in zip(names(layer), ((rank, hidden), (ffn, rank)), strict=True):
            found[name] = rng.standard_normal(shape).astype(np.float32)
    return found


def write_source(folder: Path, source: Path, predictors: Arrays, **config: object) -> Path:
    """A checkpoint again, with predictors."""
    folder.mkdir()
    for path in source.iterdir():
        if path.suffix == ".json":
            (folder / path.name).write_bytes(path.read_bytes())
    found = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(found | config))
    weights = read_tensors(source / "model.safetensors") | predictors
    save_file({name: np.ascontiguousarray(w) for name, w in weights.items()}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Bamboo with random predictors, every value kept."""
    folder = tmp_path_factory.mktemp("bamboo")
    write_source(folder / "source", FOLDER / "bamboo", random_predictors(64, 160))
    convert(folder / "source", folder / "dense", quant="f32")
    return folder / "dense"


@pytest.fixture(scope="module")
def packed(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed by frequency, so that the neurons' order is not the model's."""
    folder = tmp_path_factory.mktemp("packed")
    counts = np.random.default_rng(1).integers(1, 5000, (2, 160))
    profiled = with_profile(dense, profile_of(open_store(dense), counts), folder)
    return pack(profiled, folder / "packed", fmt="q8_0").dest


def kept(store: Store, name: str) -> NDArray[np.float32]:
    entry = store.published[name]
    data = np.fromfile(entry.path, np.uint8, entry.bytes, offset=entry.offset)
    return _core.decode(entry.fmt, data, entry.rows, entry.cols)


def test_convert_and_pack_keep_them(dense: Path, packed: Path, tmp_path: Path) -> None:
    without = open_store(convert(FOLDER / "bamboo", tmp_path / "without", quant="f32").dest)
    wanted = random_predictors(64, 160)
    for folder in (dense, packed):
        store = open_store(folder)
        store.verify()
        assert len(store.published) == 2 * len(RANKS)
        for layer in range(2):
            for role, name in zip(("in", "out"), names(layer), strict=True):
                np.testing.assert_array_equal(kept(store, f"hotset.layers.{layer}.predictor_{role}"), wanted[name])
    assert (open_store(dense).entries.keys(), without.published) == (without.entries.keys(), {})
    assert open_store(dense).weight_bytes == without.weight_bytes  # a run reads none of them


def test_format_of_their_own_class(dense: Path, tmp_path: Path) -> None:
    source = dense.parent / "source"
    for quant, fmt in (("auto", "q8_0"), ("ffn=q4_0,predictor=f16", "f16"), ("q4_0", "q4_0")):
        report = convert(source, tmp_path / fmt, quant=quant)
        assert {e.fmt for e in open_store(tmp_path / fmt).published.values()} == {fmt}
        assert [(c.tensors, c.formats) for c in report.classes if c.kind == "predictor"] == [(4, fmt)]


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (names(1)[1], None, r"fc2.weight' is missing"),
        (names(0)[0], None, r"fc1.weight' is missing"),
        (names(0)[1], (160, 25), r"has shape \[160, 25\], wanted \[160, 24\]"),
        (names(1)[0], (40, 65), r"has shape \[40, 65\], wanted \[40, 64\]"),
    ],
)
def test_damaged_ones_are_refused(name: str, shape: tuple[int, int] | None, message: str, tmp_path: Path) -> None:
    predictors = random_predictors(64, 160)
    del predictors[name]
    if shape:
        predictors[name] = np.zeros(shape, np.float32)
    source = write_source(tmp_path / "source", FOLDER / "bamboo", predictors)
    with pytest.raises(ModelError, match=message):
        convert(source, tmp_path / "store")


class States(Forward):
    """Keeps the hidden states before the FFNs' norms, and what comes out of these."""

    def __init__(self) -> None:
        vector = load("bamboo")
        super().__init__(vector.model.config, vector.weights)
        self.before: list[Array] = []
        self.after: list[Array] = []

    def _ffn(self, x: Array, layer: int) -> Array:
        self.before.append(x)
        self.after.append(self._norm(x, "ffn_norm", layer))
        return super()._ffn(x, layer)


@pytest.fixture(scope="module")
def twin() -> States:
    forward = States()
    forward.step(forward.cache(), load("bamboo").tokens)
    return forward


def logits(layer: int, state: Array) -> Array:
    """[tokens, ffn]: what the checkpoint's own code rounds the sigmoid of."""
    fc1, fc2 = (random_predictors(64, 160)[name].astype(np.float64) for name in names(layer))
    return np.maximum(state @ fc1.T, 0) @ fc2.T


def test_maps_give_the_checkpoints_logits_by_the_length_of_the_state(packed: Path, twin: States) -> None:
    store = open_store(packed)
    for layer, rank in enumerate(RANKS):
        down, up = published_maps(store, resolve(store.config), layer)
        assert (down.shape, up.shape) == ((-(-rank // 32) * 32, 64), (160, -(-rank // 32) * 32))
        wanted = logits(layer, twin.before[layer])
        length = np.sqrt(np.mean(twin.before[layer] ** 2, axis=1, keepdims=True) + 1e-5)
        scores = np.maximum(twin.after[layer] @ down.T, 0) @ up.T
        np.testing.assert_allclose(scores, wanted / length, atol=1e-4 * np.abs(wanted / length).max())


def test_engine_computes_the_neurons_with_positive_logits(packed: Path, twin: States, tmp_path: Path) -> None:
    """Layer by layer, the others whole, so that the engine's states stay those of the twin."""
    store = open_store(packed)
    model, tokens = resolve(store.config), np.array(load("bamboo").tokens, np.int32)
    info = store.neurons
    assert info is not None
    maps = [published_maps(store, model, layer) for layer in range(2)]
    tables = Thresholds(np.array([0.01], np.float32), *(np.zeros((2, 1), np.float32) for _ in range(3)))
    facts = {"relu": True, "ahead": False, "active": 0.5, "energy": 0.01, "perplexity_change": 0.1, "fetch": 1.0}
    write_predictors(tmp_path, info, maps, tables, [(0.01, 0.1)], facts, "f32")
    taken = read_predictors(tmp_path, info)
    assert taken is not None and taken.relu and not taken.ahead
    refs = [
        (tensor_ref("down", i, d), tensor_ref("up", i, u))
        for i, (d, u) in enumerate(zip(taken.down, taken.up, strict=True))
    ]

    def active(keep: list[float]) -> NDArray[np.bool_]:
        """[tokens, layers, ffn] in the model's own order."""
        sparse = _core.SparseOptions([160, 160], 0, "clock", "low-rank", keep, keep, refs, taken.relu)
        core = load_core(store, model, sparse, threads=1, kv_tokens=512, max_step_tokens=8)
        core.record(activations=True)
        seq = core.sequence_new()
        for token in tokens:
            core.step(np.array([seq], np.int32), np.ones(1, np.int32), np.array([token]), np.zeros(1, np.uint8))
        bits = core.take_record()[0]
        stored = np.unpackbits(bits, axis=2, count=160, bitorder="little").view(np.bool_)
        own = np.empty_like(stored)
        for layer in range(2):
            own[:, layer, info.read_order(layer)] = stored[:, layer]
        return own

    everything = [-np.inf, -np.inf]
    exact = active(everything)
    for layer in range(2):
        keep = list(everything)
        keep[layer] = 0.0
        chosen = logits(layer, twin.before[layer]) > 0
        got = active(keep)[:, layer]
        assert 0.2 < (exact[:, layer] & ~chosen).sum() / exact[:, layer].sum() < 0.8
        # Inputs are rounded to 8 bits, so that a logit near 0 may differ.
        assert (got != (exact[:, layer] & chosen)).mean() < 0.01


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stories260K with dReLU and predictors that are its gates: relu(x) - relu(-x) is x."""
    folder = tmp_path_factory.mktemp("stories")
    weights = read_tensors(STORIES / "model.safetensors")
    predictors: Arrays = {}
    for layer in range(5):
        gate = weights[f"model.layers.{layer}.mlp.gate_proj.weight"].astype(np.float32)
        norm = weights[f"model.layers.{layer}.post_attention_layernorm.weight"].astype(np.float32)
        fc1 = np.concatenate([np.eye(64), -np.eye(64)]).astype(np.float32)
        predictors |= dict(zip(names(layer), (fc1, np.concatenate([gate * norm, -gate * norm], axis=1)), strict=True))
    source = write_source(folder / "source", STORIES, predictors, **BAMBOO)
    convert(source, folder / "dense", quant="q8_0")
    return pack(folder / "dense", folder / "packed", fmt="q8_0").dest


@pytest.fixture(scope="module")
def report(stories: Path) -> TrainReport:
    return train_predictor(stories, [TEXT], OPTIONS)


def test_taken_and_calibrated(stories: Path, report: TrainReport) -> None:
    assert report.published and report.quality.surely <= report.allowed
    assert [layer.rank for layer in report.layers] == [128] * 5
    info = open_store(stories).neurons
    assert info is not None
    taken = read_predictors(stories, info)
    assert taken is not None
    assert (taken.relu, taken.ahead, taken.energy) == (True, False, report.quality.energy)
    # Gates tell which neurons can be active, and more than half cannot.
    assert all(layer.recall > 0.9 for layer in report.layers)
    assert report.quality.predicted < 0.7


def test_thresholds_that_leave_nothing_out_change_nothing(stories: Path, report: TrainReport) -> None:
    store = open_store(stories)
    bench = Bench(store, resolve(store.config), 0)
    taken = read_predictors(stories, bench.info)
    assert taken is not None
    scores = np.full_like(taken.tables.scores, -np.inf)
    text = bench.passages(bench.exact(), windows([TEXT], Tokenizer.load(stories), 200, 200), 30)
    q = bench.measure(replace(taken, tables=replace(taken.tables, scores=scores)), 0.01, text)
    assert (q.predicted, q.kl, q.perplexity) == (1, 0, q.exact_perplexity)


def test_a_loaded_model_uses_them(stories: Path, report: TrainReport, tmp_path: Path) -> None:
    store, settings = open_store(stories), {"predictor": "low-rank", "hot": 172, "cold_slots": 0}
    plan = make_plan(store, resolve(store.config), Wishes(predict="auto", context=256), settings)
    write_plan(plan, tmp_path / "plan.json")
    llm = LLM(stories, predict="auto", plan=tmp_path / "plan.json")
    assert llm.generate("Once upon a time", max_tokens=8, ignore_eos=True).text
    stats = llm.core.sparse_stats
    share = stats["candidates"] / (stats["layers"] * llm.config.ffn)
    assert share == pytest.approx(np.mean([layer.predicted for layer in report.layers]), rel=0.3)


def test_command(stories: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["train-predictor", str(stories), "--text", str(TEXT), "--published"]
    assert main([*given, "-n", "600", "--written", "0", "--measure", "10", "--loss", "20%", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["published"] is True
    assert main([*given, "--rank", "32"]) == 2
    assert "published ones have their own" in capsys.readouterr().err


def test_a_store_with_odd_ones(packed: Path) -> None:
    store = open_store(packed)
    model, first = resolve(store.config), store.published["hotset.layers.0.predictor_in"]
    check_published(store, model)
    for layer, changed in ((0, {"hotset.layers.0.predictor_in": replace(first, cols=63)}), (1, {})):
        left = {name: e for name, e in store.published.items() if f".{layer}." not in name} | changed
        with pytest.raises(FormatError, match=f"predictor of layer {layer} is not .*: convert again"):
            check_published(replace(store, published=left), model)


def test_a_store_without_them(tmp_path: Path) -> None:
    convert(FOLDER / "bamboo", tmp_path / "dense")
    with pytest.raises(UsageError, match="no predictors of its checkpoint; leave out --published"):
        train_predictor(pack(tmp_path / "dense", tmp_path / "packed").dest, [TEXT], OPTIONS)
