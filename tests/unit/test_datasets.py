"""Datasets of the Hugging Face hub as training text; what of it needs no network, with the library or a stand-in."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hotset.cli.main import main
from hotset.errors import DownloadError, HostError, InputError, UsageError
from hotset.formats.datasets import Dataset
from hotset.formats.text import documents
from hotset.tokenizer import Tokenizer
from hotset.train.settings import DataSource, Settings
from hotset.train.tokens import Encoder, token_file

MODEL = Path(__file__).parent.parent / "golden/data/stories260k"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("hf:roneneldan/TinyStories", Dataset("roneneldan/TinyStories", None, "train")),
        ("hf:Salesforce/wikitext/wikitext-2-raw-v1:test", Dataset("Salesforce/wikitext", "wikitext-2-raw-v1", "test")),
        ("hf:imdb:test", Dataset("imdb", None, "test")),
    ],
)
def test_names_of_datasets(text: str, wanted: Dataset) -> None:
    assert Dataset.parse(text) == wanted


@pytest.mark.parametrize("text", ["hf:", "hf:a//b", "hf:a/b/c/d", "hf::train"])
def test_what_names_no_dataset(text: str) -> None:
    with pytest.raises(UsageError, match=r"want hf:OWNER/NAME\[/CONFIG\]\[:SPLIT\]"):
        Dataset.parse(text)


def test_a_source_may_have_a_weight() -> None:
    assert DataSource.parse("hf:a/b:train=0.25") == DataSource(Path("hf:a/b:train"), 0.25)


def stand_in(monkeypatch: pytest.MonkeyPatch, rows: Iterator[dict[str, Any]]) -> list[Any]:
    """A library `datasets` that gives these rows; returns what it is asked for."""
    asked: list[Any] = []

    def load_dataset(*names: str | None, **options: Any) -> Iterator[dict[str, Any]]:
        asked.append((names, options))
        return rows

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return asked


def test_an_endless_dataset_is_read_as_far_as_the_run_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = stand_in(monkeypatch, ({"text": f"One day, {i} cats sat. " * 2000, "id": i} for i in itertools.count()))
    encoder, path = Encoder(Tokenizer.load(MODEL), 512, "x"), Path("hf:a/b:train")
    data = (DataSource(path, 0.2), DataSource(Path("hf:c/d"), 0.2))  # half each
    settings = Settings("m", data, steps=10, batch=8, sequence=64, ffn_sequences=20)
    found = token_file(path, encoder, tmp_path, settings.tokens_from(settings.data[0]))
    assert asked == [(("a/b", None), {"split": "train", "streaming": True})]
    assert len(found.ids) > (10 * 8 + 20) * 64 / 2
    assert encoder.tokenizer.decode(found.ids[:12].tolist()).startswith("One day, 0 cats")
    assert token_file(path, encoder, tmp_path, settings.tokens_from(settings.data[0])).path == found.path
    assert len(asked) == 1  # and not fetched again


def test_what_is_wrong_with_a_dataset_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, iter([{"content": "x", "id": 1}]))
    with pytest.raises(InputError, match="no text in a column 'text'; its columns are content, id"):
        list(documents(Path("hf:a/b")))

    def broken() -> Iterator[dict[str, Any]]:
        yield {"text": "x"}
        raise ConnectionError("Name resolution failed\nand more")

    stand_in(monkeypatch, broken())
    with pytest.raises(DownloadError, match=r"hf:a/b cannot be read: Name resolution failed\. Check its name"):
        list(documents(Path("hf:a/b")))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(HostError, match=r"pip install 'hotset\[train\]'"):
        list(documents(Path("hf:a/b")))


def test_the_library_itself_streams(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "own/texts").mkdir(parents=True)
    (tmp_path / "own/texts/train.jsonl").write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(9)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert list(documents(Path("hf:own/texts:train"))) == [f"text {i}" for i in range(9)]
    with pytest.raises(DownloadError, match=r"cannot be read: .*validation"):
        list(documents(Path("hf:own/texts:validation")))
    with pytest.raises(DownloadError, match="hf:own/others cannot be read"):
        list(documents(Path("hf:own/others")))


def test_gguf_files_are_not_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    (tmp_path / "model.gguf").touch()
    arguments = ["sparsify", str(tmp_path / "model.gguf"), "-d", "x.txt", "-o", str(tmp_path / "out"), "--steps", "1"]
    assert main(arguments) == 2
    assert "is a GGUF file, whose weights are rounded; give the folder or hub id" in capsys.readouterr().err
