"""Training of predictors: its parts against counting and sampling, then whole on a small real model with ReLUs."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.window_store import window_store
from hotset import LLM
from hotset.cli.main import main
from hotset.engine.draft_length import DraftLength
from hotset.errors import InputError, UsageError
from hotset.formats.predictors import read_predictors
from hotset.formats.progress import silent
from hotset.formats.store import open_store
from hotset.formats.thresholds import Thresholds, limits
from hotset.models import resolve
from hotset.planner.lowrank import moments
from hotset.planner.plan_file import write_plan
from hotset.tokenizer import Tokenizer
from hotset.tools.convert import convert
from hotset.tools.pack import pack
from hotset.tools.plan import Wishes, make_plan
from hotset.tools.profile_text import windows
from hotset.tools.train_predictor import TrainOptions, split, train_predictor
from hotset.tools.train_predictor_calibrate import STEP, Bench, Quality, calibrate
from hotset.tools.train_predictor_drafts import failed_drafts, measure_drafts, write_answers
from hotset.tools.train_predictor_fit import (
    LOSSES,
    LayerInputs,
    TrainingInputs,
    constant_row,
    expected_log,
    fit_layer,
    try_scores,
)
from hotset.tools.train_predictor_inputs import capture, read_neurons, run
from hotset.tools.train_predictor_report import TrainReport, as_json, lines
from hotset.tools.train_predictor_written import continuations, kv_tokens

ROOT = Path(__file__).parent.parent.parent
TEXT = ROOT / "LICENSE"
OPTIONS = TrainOptions(tokens=2000, loss=0.05, measure=60)


def make_store(folder: Path, source: Path, **changes: object) -> Path:
    """A packed store of a model whose config.json is changed."""
    shutil.copytree(source, folder / "source")
    config = json.loads((folder / "source/config.json").read_text())
    (folder / "source/config.json").write_text(json.dumps(config | changes))
    convert(folder / "source", folder / "dense", quant="q8_0")
    return pack(folder / "dense", folder / "packed", fmt="q8_0").dest


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stories260K with ReLU in place of SiLU."""
    return make_store(tmp_path_factory.mktemp("relu"), ROOT / "tests/golden/data/stories260k", hidden_act="relu")


@pytest.fixture(scope="module")
def report(store: Path) -> TrainReport:
    return train_predictor(store, [TEXT], OPTIONS)


def test_expected_product_is_that_of_margins_with_logistic_noise() -> None:
    rng = np.random.default_rng(0)
    gate, up = (np.array([[-1.0, -0.5, 0.0, 1.0]], np.float32) * f for f in (1, 3))
    spreads = [np.array([0.5, 1, 1, 2], np.float32), np.array([1, 3, 2, 0.7], np.float32)]
    noise = rng.logistic(size=(2, 2_000_000, 1))
    means = [
        np.maximum(m + 0.588 * s * n, 0).mean(axis=0)
        for m, s, n in zip((gate, up), spreads, noise.reshape(2, -1, 1), strict=True)
    ]
    got = np.exp(expected_log([gate, up], spreads, [True, True]))[0]
    # The spreads' own product is a factor that moves every expected product alike, per neuron.
    assert got * 0.588**2 == pytest.approx(means[0] * means[1], rel=0.03)
    one = np.exp(expected_log([gate, up], spreads, [True, False]))[0]
    assert one * 0.588 == pytest.approx(means[0] * spreads[1], rel=0.03)


def test_constant_row_is_the_linear_function_nearest_to_one() -> None:
    x = (np.random.default_rng(1).standard_normal((5000, 8)) + np.linspace(-1, 2, 8)).astype(np.float32)
    nearest = np.linalg.lstsq(x, np.ones(len(x)), rcond=None)[0]
    assert constant_row(moments(x)) == pytest.approx(nearest, abs=0.01)


def test_thresholds_lose_what_they_may() -> None:
    rng = np.random.default_rng(2)
    energy = np.square(np.maximum(rng.standard_normal((60, 40)), 0)).astype(np.float32)
    scores = (energy + 0.3 * rng.standard_normal(energy.shape)).astype(np.float32)
    tried = try_scores(scores, energy)
    assert tried.active == (energy > 0).mean()
    for loss in (0.003, 0.03, 0.3):
        threshold, predicted, recall, lost = tried.at(loss)
        kept = scores >= threshold
        assert energy[~kept].sum() / energy.sum() == pytest.approx(lost, abs=1e-6)
        assert 0.85 * loss < lost <= loss * 1.001  # of 128 levels, the nearest one below
        assert kept.mean() == pytest.approx(predicted)
        assert (kept & (energy > 0)).sum() / (energy > 0).sum() == pytest.approx(recall)
    tables = Thresholds(LOSSES, *(x[None] for x in (tried.thresholds, tried.predicted, tried.recall)))
    keep, fetch = limits(tables, 0.01)
    assert keep[0] == tried.at(0.01)[0] < fetch[0] == tried.at(0.3)[0]


def test_the_model_writes_as_it_gives_likelihoods(store: Path) -> None:
    """First tokens of many continuations of one text, counted, against the engine's own distribution."""
    opened = open_store(store)
    bench = Bench(opened, resolve(opened.config), 1)
    core = bench.exact(kv_tokens(19200, 32))
    text = windows([TEXT], Tokenizer.load(store), 64, 60)[0][:16]
    found = continuations(core, [text], 19200, [1], context=32, progress=silent)
    assert len(found) == 1200 and {len(each) for each in found} == {32}
    assert all((each[:16] == text).all() and 1 not in each[16:] for each in found)
    run(core, seq := core.sequence_new(), text, len(text), want=1)
    core.sequence_free(seq)
    logits = core.logits()[0].astype(np.float64)
    logits[1] = -np.inf
    right = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    counted = np.bincount([each[16] for each in found], minlength=len(right)) / 1200
    likely = right > 0.02
    assert likely.any()
    assert (abs(counted - right)[likely] < 4 * np.sqrt(right * (1 - right) / 1200)[likely]).all()


def quality(energy: float, kl: float) -> Quality:
    return Quality(energy, kl, 0.0, 10, 10, change_error=0.0, predicted=0.1, missed=0.01, tokens=100)


@pytest.mark.parametrize("slope", [0.003, 0.1, 2.0, 8.0])
@pytest.mark.parametrize("power", [0.6, 1.0, 1.5])
def test_calibration_finds_the_largest_share_within_the_loss(slope: float, power: float) -> None:
    runs = calibrate(lambda energy: quality(energy, slope * energy**power), 0.005)
    assert len(runs) <= 6
    assert runs[-1].surely <= 0.005
    most = min((0.005 / slope) ** (1 / power), 0.5)
    assert runs[-1].energy >= 0.4 * most


def test_calibration_that_nothing_satisfies_gives_the_least_loss() -> None:
    runs = calibrate(lambda energy: quality(energy, 1 + energy), 0.005)
    assert runs[-1].energy == min(run.energy for run in runs) < 0.001


SPARSE = ["bamboo", "prosparse", "minicpm_s", "opt", "nemotron", "llama_relu", "falcon_grouped"]


@pytest.mark.parametrize("name", SPARSE)
def test_contributions_are_the_engines(name: str, tmp_path: Path) -> None:
    """Which products are not zero, for every kind of sparse FFN: biases, thresholds, squares, no gate."""
    source = ROOT / "tests/golden/vectors" / name
    convert(source, tmp_path / "dense", quant="q8_0")
    found = open_store(pack(tmp_path / "dense", tmp_path / "packed", fmt="q8_0").dest)
    model = resolve(found.config)
    core = Bench(found, model, 0).exact()
    tokens = (np.arange(48) * 7 % model.config.vocab).astype(np.int32)
    core.record(activations=True, inputs=True)
    seq = core.sequence_new()
    core.step(np.array([seq], np.int32), np.array([48], np.int32), tokens, np.zeros(1, np.uint8))
    bits, inputs = core.take_record()
    active = np.unpackbits(bits, axis=2, count=model.config.ffn, bitorder="little").view(np.bool_)
    for layer in range(len(model.config.layers)):
        contributed = read_neurons(found, model, layer).contributions(np.ascontiguousarray(inputs[:, layer]))
        # The engine rounds its inputs to 8 bits, so a neuron at the border of zero may differ.
        assert np.mean((contributed > 0) != active[:, layer]) < 0.02
        assert 0.02 < (contributed > 0).mean() < 0.98


def test_map_finds_the_neurons_that_contribute(store: Path, tmp_path: Path) -> None:
    opened = open_store(store)
    model = resolve(opened.config)
    core = Bench(opened, model, 0).exact()
    llm = LLM(store)
    parts = windows([TEXT], llm.tokenizer, 400, 2400)
    inputs = capture(core, parts, tmp_path / "x.npy", model.config, STEP, lambda *_: None)
    for layer, ahead in ((0, 0), (1, 0), (1, 1)):
        neurons = read_neurons(opened, model, layer)
        x, held_out = np.array(inputs[layer, :1800]), np.array(inputs[layer, 1800:])
        seen = [np.array(part) for part in (inputs[layer - ahead, :1800], inputs[layer - ahead, 1800:])]
        training = TrainingInputs(x, seen[0], moments(x), moments(seen[0]))
        down, up, fit = fit_layer(neurons, training, LayerInputs(held_out, seen[1]), [32, 64], 0.01)
        assert (down.shape, up.shape) == ((fit.rank, 64), (model.config.ffn, fit.rank))
        energy = np.square(neurons.contributions(held_out))
        assert neurons.gate is not None
        gates_alone = try_scores(held_out @ neurons.gate.T - neurons.gate_limit, energy)
        chance = try_scores(np.random.default_rng(0).random(energy.shape, np.float32), energy)
        # At 3 % of the energy lost, about as many neurons as by the exact gates (up has no ReLU, so no linear function
        # says more), and far fewer than by chance.
        at = [t.at(0.03)[1] for t in (fit.tried, gates_alone, chance)]
        # The input of the layer before tells less, of these small layers that change everything.
        assert ahead or at[0] < 1.1 * at[1]
        assert at[1] < at[2]
        assert fit.tried.at(0.03)[1] < 0.6 * chance.at(0.03)[1]


def test_trained_predictors_keep_the_loss(store: Path, report: TrainReport) -> None:
    assert report.quality.surely <= report.allowed == 0.05
    assert not report.notes
    assert report.quality.kl > 0
    assert report.quality.predicted < 0.95
    # The engine computes about as many as the held-out tokens said; it takes fewer where neurons are missing.
    expected = np.mean([layer.predicted for layer in report.layers])
    assert report.quality.predicted == pytest.approx(expected, rel=0.25)
    opened = open_store(store)
    assert opened.neurons is not None
    trained = read_predictors(store, opened.neurons)
    assert trained is not None
    assert trained.candidates(trained.energy) == pytest.approx(report.candidates)
    assert trained.perplexity_change == pytest.approx(math.expm1(report.quality.kl))
    assert trained.energy == report.quality.energy
    assert np.array(trained.drafts) == pytest.approx(np.array([(d.energy, d.held) for d in report.drafts]))
    assert [d.energy for d in report.drafts] == sorted(d.energy for d in report.drafts)
    assert trained.drafts[0][0] == pytest.approx(trained.energy) and 0.2 < trained.drafts[-1][1] <= trained.drafts[0][1]
    assert all(math.isfinite(k) and k <= f for k, f in zip(*trained.limits(trained.energy), strict=True))
    assert [d.rows for d in trained.down] == [layer.rank for layer in report.layers]
    assert not list(store.glob(".train-predictor-*"))


def test_thresholds_that_leave_nothing_out_change_nothing(store: Path, report: TrainReport) -> None:
    opened = open_store(store)
    bench = Bench(opened, resolve(opened.config), 0)
    trained = read_predictors(store, bench.info)
    assert trained is not None
    scores = np.full_like(trained.tables.scores, -np.inf)
    everything = replace(trained, tables=replace(trained.tables, scores=scores))
    text = bench.passages(bench.exact(), windows([TEXT], LLM(store).tokenizer, 200, 200), 40)
    q = bench.measure(everything, 0.01, text)
    assert q.predicted == 1
    assert (q.kl, q.perplexity) == (0, q.exact_perplexity)  # to the last bit, in steps of one token and of eight
    assert q.exact_perplexity == pytest.approx(
        float(
            np.exp(
                -np.mean(
                    [_logprob(p.exact[i], p.tokens[p.prompt + i + 1]) for p in text for i in range(len(p.exact) - 1)]
                )
            )
        ),
        rel=1e-4,
    )


def _logprob(logits: np.ndarray, token: int) -> float:
    wide = logits.astype(np.float64)
    return float(wide[token] - np.log(np.exp(wide).sum()))


class Eight(DraftLength):
    """Always so many."""

    def pays(self, worth: float, sequences: int, survival: float, acceptance: float, done: int) -> bool:
        return done < 8


def test_drafts_are_measured_as_the_engine_makes_them(store: Path, report: TrainReport, tmp_path: Path) -> None:
    """Rounds of an engine that begin where the measured ones do fail at the same tokens."""
    opened = open_store(store)
    bench = Bench(opened, resolve(opened.config), 1)
    bench.hot, bench.slots = [bench.info.ffn] * bench.info.layers, 0  # what is in memory must not differ
    trained = read_predictors(store, bench.info)
    assert trained is not None
    tokenizer = Tokenizer.load(store)
    answers = write_answers(bench, windows([TEXT], tokenizer, 128, 300), 100, sorted(tokenizer.eos_ids))
    energy = 10 * report.drafts[-1].energy  # so that many fail
    (drafts,) = measure_drafts(bench, trained, [energy], answers, silent)
    assert 0.1 * drafts.tokens < drafts.failed < 0.9 * drafts.tokens and drafts.tokens >= 64
    rounds = [failed_drafts(bench.drafting(trained, energy), text, answers) for text in answers.texts]
    assert sum(f.sum() for f in rounds) == drafts.failed

    settings = {"predictor": "low-rank", "hot": bench.info.ffn, "cold_slots": 0}
    plan = make_plan(opened, bench.model, Wishes(memory=1 << 30), settings)
    write_plan(replace(plan, drafts=True, energy=energy), tmp_path / "plan.json")
    with LLM(store, plan=tmp_path / "plan.json") as llm:
        assert llm._engine is not None and llm._engine.speculator is not None
        llm._engine.speculator.length = Eight()
        held: list[int] = []  # of each round
        llm._engine.speculator.judged = lambda part, count, judged: held.append(count)  # type: ignore[method-assign]
        for text, failed in zip(answers.texts, rounds, strict=True):
            for i, start in enumerate(range(answers.prompt, len(text) - 8, 16)):
                llm.clear()
                held.clear()
                completion = llm.generate(text[: start - 1].tolist(), max_tokens=10, temperature=0, ignore_eos=True)
                assert completion.tokens[:9] == tuple(text[start - 1 : start + 8])
                one = failed[8 * i : 8 * i + 8]
                assert held[0] == (one.argmax() if one.any() else 8)


def test_drafts_that_compute_every_neuron_hold(store: Path, report: TrainReport) -> None:
    opened = open_store(store)
    bench = Bench(opened, resolve(opened.config), 0)
    trained = read_predictors(store, bench.info)
    assert trained is not None
    tokenizer = Tokenizer.load(store)
    answers = write_answers(bench, windows([TEXT], tokenizer, 128, 300), 100, sorted(tokenizer.eos_ids))
    for limit, failing in ((-np.inf, False), (np.inf, True)):
        tables = replace(trained.tables, scores=np.full_like(trained.tables.scores, limit))
        (drafts,) = measure_drafts(bench, replace(trained, tables=tables), [0.01], answers, silent)
        assert (drafts.failed > 0) == failing and 0 < drafts.held < 1


def test_drafts_are_measured_again_alone(store: Path, report: TrainReport, tmp_path: Path) -> None:
    again = shutil.copytree(store, tmp_path / "again")
    before = read_predictors(again, open_store(again).neurons)
    arguments = ["train-predictor", str(again), "--text", str(TEXT), "--drafts-only", "-n", "2000", "--measure", "60"]
    assert main(arguments) == 0
    after = read_predictors(again, open_store(again).neurons)
    assert before is not None and after is not None and after.drafts == pytest.approx(np.array(before.drafts), abs=0.01)
    (again / "predictors.safetensors").unlink()
    assert main(arguments) == 2


def test_maps_of_the_own_input_with_one_threshold(store: Path, report: TrainReport, tmp_path: Path) -> None:
    dest = tmp_path / "window"
    found = window_store(store, dest, TEXT, replace(OPTIONS, ahead=False, fetch=1.0, rank=32))
    neurons = open_store(dest).neurons
    assert neurons is not None and Path(neurons.path).samefile(store / "neurons.safetensors")
    own, ahead = read_predictors(dest, neurons), read_predictors(store, neurons)
    assert own is not None and ahead is not None
    assert (own.ahead, own.fetch, ahead.ahead, ahead.fetch) == (False, 1, True, 30)
    keep, fetch = own.limits(own.energy)
    assert keep == fetch
    # The own input tells more than that of the layer before: fewer neurons for each active one that is found.
    assert found.recall / found.candidates > 0.95 * report.recall / report.candidates
    with pytest.raises(UsageError, match="is no store"):
        window_store(tmp_path, dest, TEXT, OPTIONS)


def test_a_loaded_model_uses_them(store: Path, report: TrainReport, tmp_path: Path) -> None:
    opened = open_store(store)
    settings = {"predictor": "low-rank", "hot": 60, "cold_slots": 100}
    plan = make_plan(opened, resolve(opened.config), Wishes(predict="auto", context=256), settings)
    write_plan(plan, tmp_path / "plan.json")
    llm = LLM(store, predict="auto", plan=tmp_path / "plan.json")
    assert llm.generate("Once upon a time, there was a little girl", max_tokens=8, ignore_eos=True).text
    stats = llm.core.sparse_stats
    assert 0 < stats["candidates"] < stats["layers"] * llm.config.ffn


def test_report(report: TrainReport) -> None:
    shown = lines(report)
    assert shown[0].split()[:3] == ["layer", "rank", "active"]
    assert [row.split()[0] for row in shown[1:6]] == ["0", "1", "2", "3", "4"]
    found = json.loads(json.dumps(as_json(report)))
    assert found["quality"]["kl"] == report.quality.kl
    assert found["layers"][0]["precision"] == pytest.approx(
        report.layers[0].recall * report.layers[0].active / report.layers[0].predicted
    )


def test_split_holds_out_a_quarter() -> None:
    parts = [np.zeros(300, np.int32) for _ in range(8)]
    training, held_out = split(parts)
    assert (len(training), len(held_out)) == (6, 2)
    training, held_out = split(parts[:1])
    assert (len(training[0]), len(held_out[0])) == (225, 75)
    training, held_out = split([*parts[:3], np.zeros(7, np.int32)])  # a short rest
    assert [len(window) for window in (*training, *held_out)] == [300] * 3
    with pytest.raises(InputError, match="40 tokens"):
        split([np.zeros(40, np.int32)])


def test_command(store: Path, report: TrainReport, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["train-predictor", str(store), "--text", str(TEXT), "--tokens", "1000", "--loss", "20%", "--measure", "20"]
    assert main([*given, "--rank", "32", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert ([layer["rank"] for layer in found["layers"]], found["allowed"]) == ([32] * 5, 0.2)
    assert main([*given, "--rank", "many"]) == 2
    assert "--rank 'many'" in capsys.readouterr().err
    assert main([*given[:-3], "some"]) == 2
    assert "--loss 'some'" in capsys.readouterr().err


def test_wrong_use(store: Path, tmp_path: Path) -> None:
    for wrong, words in (
        (TrainOptions(rank=33), "rank is 33"),
        (TrainOptions(rank=96), "up to 64, the hidden size"),
        (TrainOptions(loss=0), "loss is 0"),
        (TrainOptions(tokens=10), "10 tokens"),
        (TrainOptions(measure=0), "0 tokens"),
        (TrainOptions(written=100), "100 tokens to be written; wanted 0 or at least 512"),
    ):
        with pytest.raises(UsageError, match=words):
            train_predictor(store, [TEXT], wrong)
    with pytest.raises(UsageError, match="not packed"):
        train_predictor(store.parent / "dense", [TEXT])
    (tmp_path / "short.txt").write_text("Too short a text, as it has not many words in it. " * 6)
    with pytest.raises(InputError, match="give more text"):
        train_predictor(store, [tmp_path / "short.txt"])
    assert not list(store.glob(".train-predictor-*"))
