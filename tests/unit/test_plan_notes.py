"""What plans say beside their numbers: of a wish that nothing can fulfil, of reads that memory budgets do not hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import hotset
from hotset import _core
from hotset.formats.store import Store, open_store
from hotset.models import resolve
from hotset.planner.rates import Rates
from hotset.tools.convert import convert
from hotset.tools.pack import pack
from hotset.tools.plan import Wishes, make_plan
from hotset.tools.plan_host import file_system, storage_remarks

ROOT = Path(__file__).parents[2]
STORY = next((Path(hotset.__file__).parent / "data").glob("stories-*"))
RATES = Rates(2, 1e9, {4096: 2e3}, {4096: 64}, {4096: 3.0}, {2: 80e9}, {2: 600.0})


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("relu")
    shutil.copytree(ROOT / "tests/golden/data/stories260k", folder / "source")
    config = json.loads((folder / "source/config.json").read_text())
    (folder / "source/config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    convert(folder / "source", folder / "dense", quant="q8_0")
    return folder / "dense"


@pytest.fixture
def packed(dense: Path, tmp_path: Path) -> Store:
    return open_store(pack(dense, tmp_path / "packed", fmt="q8_0").dest)


def notes(store: Store, wishes: Wishes, **settings: object) -> str:
    return " ".join(make_plan(store, resolve(store.config), wishes, settings).notes)


def test_auto_says_where_there_is_nothing_to_predict_with(packed: Store) -> None:
    told = "neither predictors nor a sketch"
    assert told in notes(packed, Wishes(predict="auto"))
    assert told in notes(packed, Wishes(predict="auto", loss=0.01))
    assert told not in notes(packed, Wishes())
    assert told not in notes(packed, Wishes(predict="auto"), predictor="gate")
    assert told not in notes(open_store(STORY), Wishes(predict="auto"))


def buffered(store: Store, rates: Rates | None = None) -> str:
    return " ".join(note for note in storage_remarks(store, rates) if "page cache" in note)


def test_reads_through_the_page_cache_are_told_of(packed: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    if _core.direct_alignment(str(packed.path / "neurons.safetensors")) <= 1:
        pytest.skip("no direct I/O here")
    assert not buffered(packed)
    monkeypatch.setattr(_core, "direct_alignment", lambda _: 1)
    assert "no direct I/O" in buffered(packed), "though nobody probed this host"
    assert "no direct I/O" in notes(packed, Wishes())


def test_a_store_for_another_drive_is_told_of(dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed for direct reads of 64 bytes; drives ask for 512 at least."""
    monkeypatch.setattr("hotset.tools.pack_plan.direct_alignment", lambda _: 64)
    store = open_store(pack(dense, tmp_path / "packed", fmt="q8_0").dest)
    assert store.neurons is not None and store.neurons.stride % 512
    alignment = _core.direct_alignment(store.neurons.path)
    if alignment <= 1:
        pytest.skip("no direct I/O here")
    for rates in (None, RATES):
        said = buffered(store, rates)
        assert f"multiples of {alignment} bytes, and neurons lie {store.neurons.stride} apart" in said
        assert "hotset pack" in said


def test_a_drive_with_larger_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    if file_system(STORY) in ("tmpfs", "ramfs"):
        pytest.skip("the store lies in memory")
    story = open_store(STORY)
    assert story.neurons is not None and story.neurons.stride == 1024
    for alignment, fits in ((512, True), (1024, True), (4096, False)):
        monkeypatch.setattr(_core, "direct_alignment", lambda _, a=alignment: a)
        assert (buffered(story) == "") == fits
