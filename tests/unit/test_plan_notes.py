"""What plans say beside their numbers: of a wish that nothing can fulfil."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import hotset
from hotset.formats.store import Store, open_store
from hotset.models import resolve
from hotset.tools.convert import convert
from hotset.tools.pack import pack
from hotset.tools.plan import Wishes, make_plan

ROOT = Path(__file__).parents[2]
STORY = next((Path(hotset.__file__).parent / "data").glob("stories-*"))


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
