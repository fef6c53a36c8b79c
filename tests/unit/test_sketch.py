"""Sketches: their code against brute force, the engine's choice against NumPy, then whole on a small real model."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from hotset import LLM, _core
from hotset.errors import FormatError, HotsetError, StorageError, UsageError
from hotset.formats.sketch import SKETCH_FILE, read_sketch
from hotset.formats.store import open_store
from hotset.reference import ops
from hotset.tools.convert import convert
from hotset.tools.pack import pack
from hotset.tools.sketch import SketchOptions, SketchReport, make_sketch
from hotset.tools.threshold import ThresholdOptions, threshold
from tests.sparse_models import SparseModel, make_sparse_model, run, tiny_config

ROOT = Path(__file__).parent.parent.parent
TEXT = ROOT / "LICENSE"
NEURONS, LAYERS, HIDDEN = 300, 2, 96


def encoded(bits: int, w: np.ndarray, importance: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    data = np.zeros(_core.sketch_bytes(bits, *w.shape), np.uint8)
    counts = np.ones(w.shape[1], np.float32) if importance is None else importance
    _core.encode_sketch(bits, w, counts, data)
    return data, _core.decode_sketch(bits, data, *w.shape)


# --- the code -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3])
def test_every_group_has_odd_multiples_of_one_scale(bits: int) -> None:
    w = np.random.default_rng(0).standard_normal((37, 96)).astype(np.float32)
    w[5, 32:64] = 0
    got = encoded(bits, w)[1]
    top = 2**bits - 1
    for row, col in itertools.product(range(37), range(0, 96, 32)):
        group = got[row, col : col + 32]
        if (row, col) == (5, 32):
            assert (group == 0).all()
            continue
        levels = group / np.abs(group).min()
        assert np.abs(levels).max() <= top
        assert np.allclose(levels, np.round(levels))
        assert (np.round(levels).astype(int) % 2 == 1).all()
    assert _core.sketch_bytes(bits, 37, 96) == 37 * 3 * (2 + 4 * bits)


@pytest.mark.parametrize("bits", [2, 3])
def test_scales_are_nearly_the_best_there_are(bits: int) -> None:
    rng = np.random.default_rng(1)
    w, importance = rng.standard_normal((20, 32)).astype(np.float32), rng.uniform(0.1, 5, 32).astype(np.float32)
    top = 2**bits - 1
    got = (importance * (w - encoded(bits, w, importance)[1]) ** 2).sum(axis=1)
    for row in range(20):
        scales = np.linspace(0.05, 2, 2000)[:, None]
        levels = np.clip(2 * np.floor(w[row] / (2 * scales)) + 1, -top, top)
        best = (importance * (w[row] - scales * levels) ** 2).sum(axis=1).min()
        assert got[row] < 1.05 * best
    assert got.sum() < (importance * (w - encoded(bits, w)[1]) ** 2).sum()  # weights matter


def test_wrong_sketches_are_refused() -> None:
    w = np.ones((4, 8), np.float32)
    with pytest.raises(UsageError, match="2 or 3 bits, not 4"):
        _core.sketch_bytes(4, 4, 8)
    w[2, 3] = np.nan
    with pytest.raises(HotsetError, match="row 2, column 3"):
        encoded(3, w)


# --- the predictor --------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["silu", "relu", "plain"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SparseModel:
    acts = ("relu", "relu") if request.param == "relu" else ("silu", "none")
    config = tiny_config(request.param != "plain", *acts, hidden=HIDDEN, ffn=NEURONS)
    return make_sparse_model(tmp_path_factory.mktemp(request.param), config, "q8_0", biased=not config.gated)


def sketched(model: SparseModel, bits: int) -> tuple[_core.SketchFile, list[dict[str, np.ndarray]]]:
    """A sketch file of the model and what it says, by layer."""
    path, said, data, offsets = model.path.with_name(f"sketch{bits}.bin"), [], b"", []
    for layer in range(LAYERS):
        w = {r: model.weights[r, layer] for r in ("gate", "up") if (r, layer) in model.weights}
        codes = {role: encoded(bits, np.ascontiguousarray(m)) for role, m in w.items()}
        reach = np.linalg.norm(model.weights["down", layer], axis=0)
        bias = model.weights.get(("up_bias", layer), np.zeros(NEURONS, np.float32))
        at = {}
        for role, (code, _) in codes.items():
            at[role] = len(data)
            data += code.tobytes() + bytes(-code.nbytes % 4096)
        noise = np.linspace(0, 0.5, 2 * NEURONS, dtype=np.float32).reshape(2, -1)
        most = np.linspace(0.2, 3, NEURONS, dtype=np.float32)  # small ones are reached
        first = np.zeros(NEURONS, np.float32) if "gate" in w else bias
        vectors = np.stack([first, bias, reach, *noise, most]).astype("<f4")
        offsets.append((at.get("gate", 0), at["up"], len(data)))
        data += vectors.tobytes() + bytes(-vectors.nbytes % 4096)
        said.append(
            {role: decoded for role, (_, decoded) in codes.items()}
            | {"bias": bias, "reach": reach, "noise": noise, "most": most}
        )
    path.write_bytes(data)
    return _core.SketchFile(str(path), bits, offsets), said


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("isa", [i.name for i in _core.isa_list() if i.compiled and i.supported])
@pytest.mark.parametrize("limit", [0.1, 0.4])
def test_engine_chooses_as_numpy_does(model: SparseModel, bits: int, isa: str, limit: float) -> None:
    file, said = sketched(model, bits)
    options = _core.SparseOptions([NEURONS] * LAYERS, 0, "clock", "sketch", [limit] * 2, [limit] * 2, sketch=file)
    engine = model.sparse(options, isa=isa)
    engine.record(activations=False, inputs=True)
    run(engine, [1, 5, 9], [3, 4, 7, 70, 8, 2])
    inputs = engine.take_record()[1]
    stats = engine.sparse_stats
    scores = np.array(_scores(said, inputs, model.config.act_gate, model.config.act_up))
    # The prompt of 3 tokens is one step: it computes what any of them needs.
    wanted = int((scores[3:] >= limit).sum() + (scores[:3].max(axis=0) >= limit).sum())
    assert abs(stats["candidates"] - wanted) < 0.02 * wanted  # activations of 8 bits
    assert 0.02 < wanted / ((len(scores) - 2) * LAYERS * NEURONS) < 0.95


def _scores(said: list[dict[str, np.ndarray]], inputs: np.ndarray, act: str, act_up: str) -> list[list[np.ndarray]]:
    """[tokens][layers][neurons]."""
    found = []
    for token in inputs:
        found.append([])
        for layer, sketch in enumerate(said):
            up = sketch["up"] @ token[layer] + sketch["bias"]
            if "gate" in sketch:
                product = _mean(act, sketch["gate"] @ token[layer], sketch["noise"][0])
                product = product * np.minimum(_mean(act_up, up, sketch["noise"][1]), sketch["most"])
            else:
                product = _mean(act, up, sketch["noise"][0])
            found[-1].append(np.abs(product) * sketch["reach"])
    return found


def _mean(act: str, x: np.ndarray, noise: np.ndarray) -> np.ndarray:
    return ops.activate(act, x) if act == "silu" else ops.expected(act, x, noise)


def test_leaving_nothing_out_changes_no_bit(model: SparseModel) -> None:
    file, _ = sketched(model, 2)
    options = _core.SparseOptions([50] * LAYERS, 70, "clock", "sketch", [0.0] * 2, [0.0] * 2, sketch=file)
    want = run(model.sparse(_core.SparseOptions([NEURONS] * LAYERS, 0)), [1, 5, 9], [3, 4, 7])
    assert (run(model.sparse(options), [1, 5, 9], [3, 4, 7]) == want).all()


def test_wrong_use(model: SparseModel) -> None:
    with pytest.raises(UsageError, match="together"):
        _core.SparseOptions([0] * 2, 0, "clock", "sketch", [0.0] * 2, [0.0] * 2)
    with pytest.raises(UsageError, match="1 sketches for 2 layers"):
        one = _core.SketchFile(str(model.path), 2, [(0, 0, 0)])
        model.sparse(_core.SparseOptions([0] * 2, 0, "clock", "sketch", [0.0] * 2, [0.0] * 2, sketch=one))


# --- whole ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stories260K with thresholds at 40 % zeros, packed."""
    folder = tmp_path_factory.mktemp("sketch")
    dense = convert(ROOT / "tests/golden/data/stories260k", folder / "dense", quant="f32").dest
    threshold(dense, folder / "sparse", [TEXT], ThresholdOptions(zeros=0.4, tokens=1500, measure=100))
    return pack(folder / "sparse", folder / "packed", fmt="q8_0").dest


def options(**changes: object) -> SketchOptions:
    return SketchOptions(**({"tokens": 1500, "measure": 60} | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def report(packed: Path) -> SketchReport:
    return make_sketch(packed, [TEXT], options(loss=0.05))


def test_more_bits_choose_better(packed: Path) -> None:
    found = {bits: make_sketch(packed, [TEXT], options(bits=bits, zeros=0.4)) for bits in (2, 3)}
    for made in found.values():
        assert made.facts.candidates == pytest.approx(0.6, abs=0.06)
        assert made.facts.keep == made.facts.fetch == made.facts.limits(0.4)
    assert found[3].quality.kl < 0.7 * found[2].quality.kl
    assert found[2].bytes < found[3].bytes


def test_loss_stays_within_what_is_allowed(report: SketchReport) -> None:
    assert report.quality.surely < 0.05
    assert 0.5 < report.facts.candidates < 1
    assert report.facts.perplexity_change == report.quality.change


def test_a_damaged_sketch_is_told_when_it_is_loaded(packed: Path, report: SketchReport, tmp_path: Path) -> None:
    store = shutil.copytree(packed, tmp_path / "store")
    data = bytearray((store / SKETCH_FILE).read_bytes())
    data[-4000] ^= 1  # of the last layer's vectors
    (store / SKETCH_FILE).write_bytes(data)
    with LLM(store, context=256) as exact:  # does without
        assert exact.generate("Once", max_tokens=3).tokens
    with pytest.raises(StorageError, match=r"tensor hotset\.layers\.4\.sketch\.vectors .* again with `hotset sketch`"):
        LLM(store, context=256, predict="auto")


def test_models_run_by_their_sketch(packed: Path, report: SketchReport) -> None:
    info = open_store(packed).neurons
    assert info is not None
    kept = read_sketch(packed, info)
    assert kept is not None
    assert kept.facts == report.facts
    assert 0.5 < kept.facts.up_share < 1
    ups = info.layers * -(-_core.sketch_bytes(3, info.ffn, info.hidden) // 4096) * 4096
    assert kept.bytes - kept.bytes_read == pytest.approx((1 - kept.facts.up_share) * ups, abs=1)
    with LLM(packed, context=256, predict="auto") as guessed, LLM(packed, context=256) as exact:
        assert guessed.plan is not None and guessed.plan.predictor == "sketch"
        assert exact.plan is not None and exact.plan.predictor == "all"
        text = [one.generate("Once upon a time", max_tokens=20).text for one in (guessed, exact)]
        assert text[0][:8] == text[1][:8]
        stats = guessed.stats
        assert stats["neuron_candidates"] < 0.98 * stats["neuron_layers"] * info.ffn


def test_bad_input(packed: Path, report: SketchReport, tmp_path: Path) -> None:
    for changes, message in (
        ({"bits": 4}, "wanted 2 or 3"),
        ({"zeros": 1.5}, "zeros is 1.5"),
        ({"loss": 0.0}, "loss is 0"),
        ({"measure": 0}, "at least 1"),
    ):
        with pytest.raises(UsageError, match=message):
            make_sketch(packed, [TEXT], options(**changes))
    with pytest.raises(UsageError, match="is not packed"):
        make_sketch(packed.with_name("dense"), [TEXT], options())
    whole = report.path.read_bytes()
    old = whole.replace(b'"crc32c"', b'"crc32x"')  # of before there were checksums, which would tell first
    info = open_store(packed).neurons
    assert info is not None
    for bad, message in (
        (old.replace(b'\\"bits\\": 3', b'\\"bits\\": 5'), "make it again"),
        (old.replace(b"sketch.up", b"sketch.ap"), "lacks the up"),
        (old.replace(b"order_crc32c", b"order_crc32d"), "exactly"),
    ):
        assert bad not in (whole, old)
        try:
            report.path.write_bytes(bad)
            with pytest.raises(FormatError, match=message):
                read_sketch(packed, info)
        finally:
            report.path.write_bytes(whole)
    section = json.loads((packed / "config.json").read_text())["hotset"]
    assert section["sparsity"]["method"] == "contribution"
