"""predictors.safetensors: what is written is read, used by the engine, and refused when it does not fit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hotset import LLM, _core
from hotset.errors import FormatError, UsageError
from hotset.formats import predictors_file
from hotset.formats.predictors import PREDICTORS_FILE, Predictors, read_predictors, verify_predictors
from hotset.formats.predictors_file import write_predictors
from hotset.formats.safetensors import read_header
from hotset.formats.store import Store, open_store
from hotset.formats.thresholds import Thresholds
from hotset.models import resolve
from hotset.planner.plan_file import write_plan
from hotset.tools.convert import convert
from hotset.tools.pack import pack
from hotset.tools.plan import Wishes, make_plan

ROOT = Path(__file__).parents[2]
FACTS = {"relu": False, "ahead": False, "active": 0.2, "energy": 0.01, "perplexity_change": 0.001}
Floats = NDArray[np.float32]
TABLES = Thresholds(
    np.array([0.01, 0.1], np.float32),
    np.array([[3.0, 4.0]] * 5, np.float32),
    np.array([[0.5, 0.25], *[[0.3, 0.15]] * 4], np.float32),
    np.array([[0.9, 0.8]] * 5, np.float32),
)

MEASURED = [(0.01, 0.001), (0.0025, 0.0005), (0.04, 0.004)]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("relu")
    shutil.copytree(ROOT / "tests/golden/data/stories260k", folder / "source")
    config = json.loads((folder / "source/config.json").read_text())
    (folder / "source/config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    convert(folder / "source", folder / "dense", quant="f32")
    return open_store(folder / "dense")


@pytest.fixture
def packed(dense: Store, tmp_path: Path) -> Store:
    return open_store(pack(dense.path, tmp_path / "packed", fmt="q8_0").dest)


def gates(dense: Store) -> list[Floats]:
    """[ffn, hidden] of each layer: a low-rank map of full rank is the gate itself."""
    found = []
    for spec in resolve(dense.config).tensors:
        if spec.role == "gate":
            entry = dense.entries[spec.name]
            data = np.fromfile(entry.path, np.uint8, entry.bytes, offset=entry.offset)
            found.append(_core.decode(entry.fmt, data, entry.rows, entry.cols))
    return found


def write(
    packed: Store,
    dense: Store,
    facts: dict[str, Any] = FACTS,
    limit: float = 1e-6,
    fmt: str = "f32",
    drafts: tuple[tuple[float, float], ...] = (),
) -> None:
    assert packed.neurons is not None
    maps = [(np.eye(packed.neurons.hidden, dtype=np.float32), gate) for gate in gates(dense)]
    layers = packed.neurons.layers
    scores = np.array([[limit, 2 * limit]] * layers, np.float32)
    tables = replace(TABLES, scores=scores)
    write_predictors(packed.path, packed.neurons, maps, tables, MEASURED, facts, fmt, drafts)


def read(packed: Store) -> Predictors | None:
    assert packed.neurons is not None
    return read_predictors(packed.path, packed.neurons)


def test_what_was_written_is_read(packed: Store, dense: Store) -> None:
    assert read(packed) is None
    write(packed, dense, limit=0.5)
    found = read(packed)
    assert found is not None and packed.neurons is not None
    assert not found.relu and not found.ahead
    assert (found.active, found.energy, found.perplexity_change) == (0.2, 0.01, 0.001)
    # 0.3, thirty times the energy, is given up where neurons are missing.
    assert found.limits(found.energy) == ((0.5,) * 5, (1.0,) * 5)
    assert found.limits(0.2) == ((1.0,) * 5, (1.0,) * 5)
    for loss, energy in [(0.001, 0.01), (0.002, 0.02), (0.00025, 0.0025 / 4), (0.004, 0.04), (1e-9, 1e-6), (0.9, 0.04)]:
        assert found.energy_at(loss) == pytest.approx(energy, rel=1e-4)
        assert found.energy_at(3 * loss, 3) == pytest.approx(energy, rel=1e-4)
        if 1e-6 < loss < 0.004:
            assert found.loss_at(energy, 3) == pytest.approx(3 * loss, rel=1e-4)
    assert found.energy_at(0.0005 * 2**0.5) == pytest.approx(0.005, rel=1e-4)  # half way in logarithms
    assert found.energy_at(None) == 0.01 and found.energy_at(None, 2) == pytest.approx(0.0025, rel=1e-4)
    assert found.candidates(found.energy) == pytest.approx(0.34 / 0.2)
    assert found.wanted(found.energy) == pytest.approx(0.17 / 0.2)
    tables = found.tables
    assert tables.at(0.01) == tables.at(0.05) == tables.at(0.001) == (0.5,) * 5
    assert tables.share(0.02) == pytest.approx(0.34) and tables.found(0.2) == pytest.approx(0.8)
    for layer, (entry, gate) in enumerate(zip(found.up, gates(dense), strict=True)):
        data = np.fromfile(entry.path, np.uint8, entry.bytes, offset=entry.offset)
        rows = _core.decode(entry.fmt, data, entry.rows, entry.cols)
        assert (rows == gate[packed.neurons.read_order(layer)]).all()


def test_missing_neurons_may_count_as_others_do(packed: Store, dense: Store) -> None:
    write(packed, dense, FACTS | {"fetch": 1.0}, limit=0.5)
    found = read(packed)
    assert found is not None and found.fetch == 1
    assert found.limits(found.energy) == ((0.5,) * 5, (0.5,) * 5)
    assert found.wanted(found.energy) == found.candidates(found.energy)


def test_how_often_drafts_hold_is_kept_where_it_was_measured(packed: Store, dense: Store) -> None:
    write(packed, dense)
    found = read(packed)
    assert found is not None and found.drafts == ()
    assert [found.drafts_hold(loss) for loss in (1e-4, 0.01, 9)] == pytest.approx([0.994, 0.94, 0.01])
    write(packed, dense, drafts=((0.01, 0.98), (0.04, 0.92)))
    found = read(packed)
    assert found is not None
    for loss, held in (
        (0.001, 0.98),  # lost where 0.01 of the energy is
        (0.004, 0.92),
        (0.002, 0.96),  # half way in logarithms
        (0.00025, 0.99),  # beyond what was tried failures go with the root of the loss
        (0.016, 0.84),
        (50, 0.01),
    ):
        assert found.drafts_hold(loss) == pytest.approx(held, abs=1e-4)
    for wrong in (((0.01, 1.0),), ((0.04, 0.9), (0.01, 0.9)), ((0.0, 0.9),)):
        write(packed, dense, drafts=wrong)
        with pytest.raises(FormatError, match="draft_holds"):
            read(packed)


def test_drafts_measured_again_leave_all_else_as_it_was(
    packed: Store, dense: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:  # what files of earlier versions have instead
        before.setattr(predictors_file, "DRAFTED", (predictors_file.OLD, "energies_of_these"))
        write(packed, dense, fmt="q8_0", drafts=((0.5, 0.9),))
    old = read(packed)
    assert old is not None and old.drafts == ()

    def data(found: Predictors) -> list[bytes]:
        return [Path(e.path).read_bytes()[e.offset : e.offset + e.bytes] for e in (*found.down, *found.up)]

    kept = data(old)
    for drafts in (((0.01, 0.98), (0.04, 0.92)), ((0.02, 0.75),)):
        predictors_file.write_drafts(packed.path, drafts)
        found = read(packed)
        assert found is not None and np.array(found.drafts) == pytest.approx(np.array(drafts))
        assert data(found) == kept and (found.tables.scores == old.tables.scores).all()
        assert (found.measured, found.energy, found.relu) == (old.measured, old.energy, old.relu)
        verify_predictors(packed.path)
        assert predictors_file.OLD not in str(read_header(packed.path / PREDICTORS_FILE).entries.keys())


def test_a_predictor_that_is_the_gate_changes_no_token(packed: Store, dense: Store, tmp_path: Path) -> None:
    write(packed, dense)
    tokens = []
    for predictor in ("low-rank", "gate"):
        settings = {"predictor": predictor, "hot": 20, "cold_slots": 300}
        plan = make_plan(packed, resolve(packed.config), Wishes(memory=4 << 30, predict="auto"), settings)
        write_plan(plan, tmp_path / "plan.json")
        with LLM(packed.path, plan=tmp_path / "plan.json") as llm:
            tokens.append(llm.generate("Once upon a time", max_tokens=60, temperature=0, ignore_eos=True).tokens)
            stats = llm.stats
        assert stats["neuron_candidates"] < 0.7 * stats["neuron_layers"] * llm.config.ffn
    assert tokens[0][:10] == tokens[1][:10], "8-bit gates in the bundles, 32-bit ones in the predictor"


def test_exact_never_takes_a_trained_one(packed: Store, dense: Store) -> None:
    write(packed, dense)
    model = resolve(packed.config)
    assert make_plan(packed, model, Wishes(memory=4 << 30), {"cold_slots": 9}).predictor == "gate"
    assert make_plan(packed, model, Wishes(memory=4 << 30, predict="auto"), {"cold_slots": 9}).predictor == "low-rank"


@pytest.mark.parametrize(
    "facts",
    [{}, FACTS | {"relu": 1}, FACTS | {"recall": None}, FACTS | {"candidates": "1"}, FACTS | {"more": 1.0}],
)
def test_facts_that_are_none(packed: Store, dense: Store, facts: dict[str, Any]) -> None:
    write(packed, dense, facts)
    with pytest.raises(FormatError, match="predictor"):
        read(packed)


def test_files_that_do_not_fit(packed: Store, dense: Store) -> None:
    write(packed, dense)
    path = packed.path / PREDICTORS_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError):
        read(packed)
    whole = whole.replace(b'"crc32c"', b'"crc32x"')  # of before there were checksums, which would tell first
    path.write_bytes(whole.replace(b"layers.3.predictor.up", b"layers.9.predictor.up"))
    with pytest.raises(FormatError, match="lacks predictors of some of 5 layers"):
        read(packed)
    assert packed.neurons is not None
    maps = [(np.eye(8, 64, dtype=np.float32), np.zeros((172, 8), np.float32))] * 5
    write_predictors(packed.path, packed.neurons, maps[:4], TABLES, MEASURED, FACTS)
    with pytest.raises(FormatError, match="layers"):
        read(packed)


def test_predictors_of_another_order_are_refused(packed: Store, dense: Store, tmp_path: Path) -> None:
    write(packed, dense)
    other = shutil.copytree(packed.path, tmp_path / "other")
    info = open_store(other).neurons
    assert info is not None
    order = info._orders[1]
    with Path(order.path).open("r+b") as file:
        file.seek(order.offset)
        file.write(np.roll(np.arange(info.ffn, dtype="<i4"), 1).tobytes())
    with pytest.raises(UsageError, match="another order"):
        read_predictors(other, info)


def test_a_failure_leaves_no_file(packed: Store, dense: Store) -> None:
    assert packed.neurons is not None
    maps = [(np.eye(64, dtype=np.float32), np.full((172, 64), np.nan, np.float32))] * 5
    with pytest.raises(FormatError):
        write_predictors(packed.path, packed.neurons, maps, TABLES, MEASURED, FACTS)
    assert not list(packed.path.glob("*predictors*"))
