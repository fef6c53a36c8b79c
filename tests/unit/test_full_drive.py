"""Tools on a drive that has no room left: one documented error, and no file that is not whole."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packed_stores import dense_stores, neurons_of

from hotset.errors import StorageError
from hotset.formats.gguf_writer import GgufWriter, NewTensor
from hotset.formats.predictors import PREDICTORS_FILE, read_predictors
from hotset.formats.predictors_file import write_drafts, write_predictors
from hotset.formats.progress import silent
from hotset.formats.store import Store, open_store
from hotset.formats.thresholds import Thresholds
from hotset.models import resolve
from hotset.tools.evaluate_journal import Journal
from hotset.tools.pack import pack
from hotset.tools.train_predictor_calibrate import Bench
from hotset.tools.train_predictor_inputs import capture

FULL = Path("/dev/full")  # every write to it fails with ENOSPC
NO_SPACE = "No space left on device"
FACTS = {"relu": False, "ahead": False, "active": 0.2, "energy": 0.01, "perplexity_change": 0.001, "fetch": 1.0}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("full")
    return open_store(pack(dense_stores(root)("llama_relu", "q8_0"), root / "packed", fmt="q8_0").dest)


def failing(real: Callable[..., Any], after: int, code: int = errno.ENOSPC) -> Callable[..., Any]:
    """A call of the system that fails once there were so many."""
    calls = 0

    def call(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError(code, os.strerror(code))
        return real(*args)

    return call


# --- inputs that predictors are fitted on ---------------------------------------------------------------


def captured(packed: Store, path: Path) -> np.ndarray:
    model = resolve(packed.config)
    window = np.arange(40, dtype=np.int32)
    return capture(Bench(packed, model, 1).exact(), [window], path, model.config, 512, silent)


def test_inputs_have_their_room_before_they_are_written(
    packed: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mapping of a file with holes would end the process where the drive has no room for one."""
    path = tmp_path / "x.npy"
    real, blocks = os.posix_fallocate, list[int]()

    def reserve(*args: int) -> None:
        real(*args)
        blocks.append(path.stat().st_blocks)

    monkeypatch.setattr(os, "posix_fallocate", reserve)
    x = captured(packed, path)
    assert x.shape[1] == 39 and (np.abs(x).max(axis=(0, 2)) > 0).all()
    assert blocks[0] * 512 >= path.stat().st_size > x.nbytes


def test_no_room_for_inputs(packed: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", failing(os.posix_fallocate, 0))
    with pytest.raises(StorageError, match=rf"x\.npy cannot be written \(\d+ bytes; fewer tokens .*{NO_SPACE}"):
        captured(packed, tmp_path / "x.npy")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL])
def test_file_systems_that_cannot_reserve(
    packed: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", failing(os.posix_fallocate, 0, code))
    assert np.abs(captured(packed, tmp_path / "x.npy")).max() > 0


# --- predictors -----------------------------------------------------------------------------------------


def write(packed: Store, folder: Path) -> Path:
    info = neurons_of(packed)
    rng = np.random.default_rng(0)
    shapes = ((32, info.hidden), (info.ffn, 32))
    maps = [tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes) for _ in range(info.layers)]
    tables = Thresholds(np.array([0.01], np.float32), *(np.ones((info.layers, 1), np.float32) for _ in range(3)))
    return write_predictors(folder, info, maps, tables, [(0.01, 0.1)], FACTS)  # type: ignore[arg-type]


@pytest.mark.parametrize("after", [0, 3])  # the header; what follows it
def test_no_room_for_predictors(packed: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    with monkeypatch.context() as full, pytest.raises(StorageError, match=rf"{PREDICTORS_FILE} cannot be .*{NO_SPACE}"):
        full.setattr(os, "pwrite", failing(os.pwrite, after))
        write(packed, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("after", [0, 3])
def test_no_room_for_drafts(packed: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    before = write(packed, tmp_path).read_bytes()
    with monkeypatch.context() as full, pytest.raises(StorageError, match=rf"{PREDICTORS_FILE} cannot be .*{NO_SPACE}"):
        full.setattr(os, "pwrite", failing(os.pwrite, after))
        write_drafts(tmp_path, [(0.01, 0.9)])
    assert [path.name for path in tmp_path.iterdir()] == [PREDICTORS_FILE]
    assert (tmp_path / PREDICTORS_FILE).read_bytes() == before
    assert read_predictors(tmp_path, neurons_of(packed)) is not None


def test_a_folder_that_is_none(packed: Store, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written: No such file or directory"):
        write(packed, tmp_path / "none")


# --- files that are buffered: closing them writes, too ---------------------------------------------------


def test_no_room_for_a_journal(tmp_path: Path) -> None:
    path = Journal(tmp_path, "key", fresh=True).path
    path.unlink()
    path.symlink_to(FULL)
    with pytest.raises(StorageError, match=NO_SPACE), Journal(tmp_path, "key", fresh=True) as journal:
        journal.put(0, {"acc": 1.0})
    with pytest.raises(RuntimeError, match="another"), Journal(tmp_path, "key", fresh=True) as journal:
        with pytest.raises(StorageError):
            journal.put(0, {"acc": 1.0})
        raise RuntimeError("another")
    with pytest.raises(StorageError, match=NO_SPACE), Journal(tmp_path, "key", fresh=True) as journal:
        assert journal._file is not None
        journal._file.write("what closing writes")


@pytest.mark.parametrize("values", [32, 1 << 16])  # written when the file is closed; at once
def test_no_room_for_a_gguf(tmp_path: Path, values: int) -> None:
    (tmp_path / "x.gguf.partial").symlink_to(FULL)
    with (
        pytest.raises(StorageError, match=rf"x\.gguf\.partial cannot be written: {NO_SPACE}"),
        GgufWriter(tmp_path / "x.gguf", {}, [NewTensor("a", "F32", (values,))]) as writer,
    ):
        writer.write([np.zeros(values, np.float32)])
    assert not list(tmp_path.iterdir())


def test_no_room_for_the_header_of_a_gguf(tmp_path: Path) -> None:
    (tmp_path / "x.gguf.partial").symlink_to(FULL)
    writer = GgufWriter(tmp_path / "x.gguf", {"tokens": ["x" * 100] * 1000}, [])
    with pytest.raises(StorageError, match=NO_SPACE):
        writer.__enter__()
    assert not list(tmp_path.iterdir())


def test_another_error_is_not_hidden_by_a_full_drive(tmp_path: Path) -> None:
    (tmp_path / "x.gguf.partial").symlink_to(FULL)
    with pytest.raises(RuntimeError), GgufWriter(tmp_path / "x.gguf", {"a": 1}, []):
        raise RuntimeError
    assert not list(tmp_path.iterdir())
