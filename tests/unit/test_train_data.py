"""What training is given: documents of files, their tokens, the order of windows, the schedules. Needs no PyTorch."""

from __future__ import annotations

import gzip
import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from hotset.cli.main import main
from hotset.cli.sparsify import parse_count, steps_of
from hotset.errors import InputError, StorageError, UsageError
from hotset.formats.text import documents, files_of
from hotset.tokenizer import Tokenizer
from hotset.train.mixture import Mixture, make_source
from hotset.train.schedule import l1_weight, learning_rate, swap_share
from hotset.train.settings import DataSource, Settings
from hotset.train.tokens import Encoder, token_file

MODEL = Path(__file__).parent.parent / "golden/data/stories260k"


def settings(**changes: object) -> Settings:
    return Settings(**({"model": "m", "data": (DataSource(Path("a")),)} | changes))


# --- text --------------------------------------------------------------------------------------------------
def test_documents_of_every_kind_of_file(tmp_path: Path) -> None:
    texts = ["One day.", "A cat\nsat. ☂"]
    lines = "".join(json.dumps({"text": text}) + "\n\n" for text in texts)
    (tmp_path / "a.jsonl").write_text(lines)
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write(lines)
    assert list(documents(tmp_path / "a.jsonl")) == texts
    assert list(documents(tmp_path / "b.jsonl.gz")) == texts
    (tmp_path / "c.txt").write_text("".join(f"line {i}\n" for i in range(20000)))
    pieces = list(documents(tmp_path / "c.txt"))
    assert len(pieces) > 1 and all(piece.endswith("\n") for piece in pieces)
    assert "".join(pieces) == (tmp_path / "c.txt").read_text()
    assert [path.name for path in files_of(tmp_path)] == ["a.jsonl", "b.jsonl.gz", "c.txt"]


def test_documents_of_zstandard_and_parquet(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    (tmp_path / "a.txt.zst").write_bytes(zstandard.ZstdCompressor().compress(b"hello\n" * 9))
    assert "".join(documents(tmp_path / "a.txt.zst")) == "hello\n" * 9
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"text": ["a", None, "b"], "n": [1, 2, 3]}), tmp_path / "b.parquet")
    assert list(documents(tmp_path / "b.parquet")) == ["a", "b"]
    parquet.write_table(arrow.table({"body": ["a"]}), tmp_path / "c.parquet")
    with pytest.raises(InputError, match="no column 'text'; its columns are body"):
        list(documents(tmp_path / "c.parquet"))


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("a.jsonl", b'{"text": 3}\n', "line 1 has no text under the key 'text'"),
        ("a.jsonl", b"\n{text}\n", "line 2 is not JSON"),
        ("a.txt.gz", b"no archive", "cannot be unpacked"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=said) as caught:
        list(documents(tmp_path / name))
    assert name in str(caught.value)


def test_missing_and_empty_places(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="does not exist"):
        files_of(tmp_path / "nothing")
    with pytest.raises(InputError, match="holds no text"):
        files_of(tmp_path)


# --- tokens ------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.load(MODEL, 512)


def test_tokens_are_the_documents_each_with_its_end(tmp_path: Path, encoder: Encoder) -> None:
    texts = [f"Tom has {i} cats.\n" * 30 for i in range(500)] + [""]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = token_file(tmp_path / "a.jsonl", encoder, tmp_path / "tokens", 10)
    tokenizer = Tokenizer.load(MODEL)
    wanted = [i for text in texts[:-1] for i in (*tokenizer.encode(text, add_special=False), 2)]  # 2: </s>
    assert found.ids.tolist() == wanted
    stamp = found.path.stat().st_mtime_ns
    again = token_file(tmp_path / "a.jsonl", encoder, tmp_path / "tokens", 10)
    assert (again.fingerprint, again.path.stat().st_mtime_ns) == (found.fingerprint, stamp)
    assert not list((tmp_path / "tokens").glob("*.part"))


def test_tokens_are_made_again_when_the_text_changes(tmp_path: Path, encoder: Encoder) -> None:
    (tmp_path / "a.txt").write_text("One cat.")
    first = token_file(tmp_path / "a.txt", encoder, tmp_path, 10)
    (tmp_path / "a.txt").write_text("Two cats.")
    second = token_file(tmp_path / "a.txt", encoder, tmp_path, 10)
    assert first.fingerprint != second.fingerprint


def test_text_that_does_not_fit_the_model_is_refused(tmp_path: Path, encoder: Encoder) -> None:
    (tmp_path / "a.txt").write_text("cat " * 20)
    with pytest.raises(InputError, match="model has rows for 100; the tokenizer"):
        token_file(tmp_path / "a.txt", Encoder(encoder.tokenizer, 100, "x"), tmp_path, 10)
    (tmp_path / "b.txt").write_text("")
    with pytest.raises(InputError, match="gives no tokens"):
        token_file(tmp_path / "b.txt", encoder, tmp_path, 10)
    (tmp_path / "c.jsonl").write_text('{"text": "ok"}\n{"text": "\\ud800"}\n')
    with pytest.raises(InputError, match="lone surrogate"):
        token_file(tmp_path / "c.jsonl", encoder, tmp_path, 10)


def test_what_a_killed_process_had_encoded_is_removed(tmp_path: Path, encoder: Encoder) -> None:
    (tmp_path / "a.txt").write_text("One cat.")
    dead, alive, other = (tmp_path / f"a.tokens.{owner}.part" for owner in (2**22 + 1, os.getpid(), "some"))
    for part in (dead, alive, other):
        part.write_text("x")
    token_file(tmp_path / "a.txt", encoder, tmp_path, 10)
    assert (dead.exists(), alive.exists(), other.exists()) == (False, True, True)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, encoder: Encoder) -> None:
    (tmp_path / "a.txt").write_text("One cat.")
    with pytest.raises(StorageError, match=r"a-.*\.tokens cannot be written"):
        token_file(tmp_path / "a.txt", encoder, tmp_path / "a.txt", 10)


# --- mixture -----------------------------------------------------------------------------------------------
def sources(*windows: int, length: int = 4, share: float = 0.1) -> list:
    return [
        make_source(str(i), np.arange(n * length + 1, dtype=np.uint32) + 1000 * i, length, share, (7, i))
        for i, n in enumerate(windows)
    ]


def test_an_epoch_takes_every_window_once_and_none_that_is_held_out() -> None:
    (source,) = sources(50)
    assert (source.windows, source.held_out) == (45, 5)
    for epoch in range(2):
        drawn = [source.window(epoch * 45 + i) for i in range(45)]
        assert sorted(int(w[0]) for w in drawn) == [4 * i for i in range(45)]
        assert all(w.tolist() == list(range(int(w[0]), int(w[0]) + 5)) for w in drawn)
    assert [int(w[0]) for w in drawn] != sorted(int(w[0]) for w in drawn)
    assert sorted(int(w[0]) for w in source.measured(99)) == [4 * i for i in range(45, 50)]


def test_shares_hold_at_every_moment() -> None:
    mixture = Mixture(sources(40, 40, 40), [0.7, 0.2, 0.1])
    for n in range(1, 300):
        mixture.advance()
        assert np.all(np.abs(mixture.drawn - n * np.array([0.7, 0.2, 0.1])) < 1)
    free = Mixture(sources(30, 10, 20, share=0.0001), [None, None, 0.5])
    assert free.shares == pytest.approx([0.5 * 29 / 38, 0.5 * 9 / 38, 0.5])
    with pytest.raises(InputError, match="leaves nothing"):
        Mixture(sources(5, 5), [1.0, None])


def test_going_on_from_the_counts_gives_the_same_batches() -> None:
    whole = Mixture(sources(20, 9), [0.6, 0.4])
    batches = [whole.batch(6) for _ in range(12)]
    resumed = Mixture(sources(20, 9), [0.6, 0.4])
    for _ in range(5):
        resumed.batch(6)
    fresh = Mixture(sources(20, 9), [0.6, 0.4])
    fresh.drawn[:] = resumed.drawn
    for batch in batches[5:]:
        assert np.array_equal(fresh.batch(6), batch)


def test_processes_share_a_batch_out() -> None:
    whole = Mixture(sources(20, 9), [0.6, 0.4]).batch(6)
    parts = [Mixture(sources(20, 9), [0.6, 0.4]).batch(6, rank, 3) for rank in range(3)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_too_little_text_is_refused_with_what_is_wanted() -> None:
    with pytest.raises(InputError, match="has 8 tokens; wanted at least 9"):
        make_source("a.txt", np.arange(8, dtype=np.uint32), 4, 0.01, (0,))


# --- settings and schedules --------------------------------------------------------------------------------
def test_rates_at_the_marks() -> None:
    s = settings(lr=1.0, final_lr=0.1, warmup=10, steps=111)
    assert learning_rate(0, s) == pytest.approx(0.1)
    assert learning_rate(9, s) == learning_rate(10, s) == 1.0
    assert learning_rate(60, s) == pytest.approx(0.55)  # half way down
    assert learning_rate(110, s) == pytest.approx(0.1)
    rates = [learning_rate(i, s) for i in range(10, 111)]
    assert rates == sorted(rates, reverse=True)


def test_pull_and_swap_rise_to_their_ends() -> None:
    s = settings(steps=200, l1=0.5, l1_steps=100, swap_steps=50)
    assert l1_weight(0, s) == 0.0
    assert l1_weight(50, s) == pytest.approx(0.25)
    assert l1_weight(100, s) == l1_weight(199, s) == 0.5
    assert [swap_share(i, s) for i in (0, 25, 50, 80)] == [0, 0.5, 1, 1]
    assert swap_share(0, settings()) == 1.0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"activation": "selu"}, "--activation 'selu': want drelu, relu, fatrelu or keep"),
        ({"data": ()}, "at least one --data"),
        ({"steps": 0}, "--steps is 0; want at least 1"),
        ({"lr": math.nan}, "--lr is nan"),
        ({"distill": 1.5}, "--distill is 1.5; want a share"),
        ({"distill": 0.5, "from_scratch": True}, "drop one"),
        ({"held_out": 0.9}, "--held-out is 0.9"),
    ],
)
def test_settings_that_no_run_can_have(changes: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        settings(**changes).check()


def test_sources_with_and_without_weight(tmp_path: Path) -> None:
    assert DataSource.parse("a.txt") == DataSource(Path("a.txt"))
    assert DataSource.parse("a.txt=0.25") == DataSource(Path("a.txt"), 0.25)
    (tmp_path / "x=1").write_text("named so")
    assert DataSource.parse(str(tmp_path / "x=1")) == DataSource(tmp_path / "x=1")
    for text in ("a.txt=much", "a.txt=0", "a.txt=-1", "a.txt=inf"):
        with pytest.raises(UsageError, match="--data"):
            DataSource.parse(text)


def test_length_of_a_run_from_steps_or_tokens() -> None:
    assert steps_of(7, None, 100) == 7
    assert steps_of(None, "2.5M", 1000) == 2500
    assert steps_of(None, "1e3", 4096) == 1
    assert [parse_count(text) for text in ("12", "3k", "1B")] == [12, 3000, 10**9]
    for steps, tokens in ((None, None), (1, "2")):
        with pytest.raises(UsageError, match="--steps and --tokens; give one"):
            steps_of(steps, tokens, 1)
    with pytest.raises(UsageError, match="want a count"):
        parse_count("many")


def test_without_pytorch_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "hotset.train.sparsify", raising=False)
    assert main(["sparsify", str(MODEL), "-d", "x.txt", "-o", "run", "--steps", "1"]) == 9
    assert "pip install 'hotset[train]'" in capsys.readouterr().err


def test_differences_are_named() -> None:
    before = json.loads(json.dumps(settings().as_json()))
    assert settings().differences(before) == []
    assert settings(lr=1.0, seed=3).differences(before) == ["lr was 5e-05, is 1.0", "seed was 0, is 3"]
