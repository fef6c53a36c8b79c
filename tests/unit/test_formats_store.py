"""The store: what is written is read, damage is found, and nothing half-done ever has the final name."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import patched
from numpy.typing import NDArray
from safetensors import safe_open

from hotset import _core
from hotset.errors import FormatError, HotsetError, StorageError, UsageError
from hotset.formats.store import ALIGNMENT, BLOCK_BYTES, NEURONS, RESIDENT, is_store, open_store
from hotset.formats.store_file import BlockSums, StoreTensor, WeightFile
from hotset.formats.store_writer import JOURNAL, StoreWriter, partial_folder

TENSORS = [
    StoreTensor("norm", "f32", 300, 0, neurons=False),
    StoreTensor("q", "q4_0", 100, 200, neurons=False),
    StoreTensor("up", "q8_0", 1000, 1300, neurons=True),  # more than a MiB
    StoreTensor("down", "q4_1", 130, 100, neurons=True),
]
CONFIG = json.dumps({"model_type": "llama", "hotset": {"format_version": 1}}).encode()


def contents(tensor: StoreTensor) -> NDArray[np.uint8]:
    return np.random.default_rng(len(tensor.name)).integers(0, 256, tensor.bytes, np.uint8)


def write_tensor(writer: StoreWriter, tensor: StoreTensor) -> None:
    writer.begin(tensor.name)
    for piece in np.array_split(contents(tensor), 3):
        writer.append(piece)
    writer.finish({"of": tensor.name})


def write(dest: Path, key: str = "key", replace: bool = False) -> None:
    with StoreWriter(dest, TENSORS, key) as writer:
        for tensor in TENSORS:
            if tensor.name not in writer.done:
                write_tensor(writer, tensor)
        writer.commit({"config.json": CONFIG, "tokenizer.json": b"{}"}, replace=replace)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write(tmp_path / "store")
    return tmp_path / "store"


def test_what_is_written_is_read(store: Path) -> None:
    opened = open_store(store)
    opened.verify()
    assert opened.config == json.loads(CONFIG)
    assert opened.weight_bytes == sum(t.bytes for t in TENSORS)
    for tensor in TENSORS:
        entry = opened.entries[tensor.name]
        assert (entry.fmt, entry.rows, entry.cols, entry.bytes) == (tensor.fmt, tensor.rows, tensor.cols, tensor.bytes)
        assert entry.offset % ALIGNMENT == 0
        assert Path(entry.path).name == (NEURONS if tensor.neurons else RESIDENT)
        assert np.array_equal(np.fromfile(entry.path, np.uint8, entry.bytes, offset=entry.offset), contents(tensor))
    assert not list(store.parent.glob("*.partial-*"))


@pytest.mark.parametrize("name", [RESIDENT, NEURONS])
def test_plain_safetensors_readers_can_open_it(store: Path, name: str) -> None:
    with safe_open(store / name, "numpy") as file:
        described = json.loads(file.metadata()["hotset"])["tensors"]
        assert set(described) == set(file.keys())
        for tensor in TENSORS:
            if tensor.name in described:
                data = file.get_tensor(tensor.name)
                assert data.nbytes % ALIGNMENT == 0
                assert np.array_equal(data[: tensor.bytes], contents(tensor))
                assert not data[tensor.bytes :].any()


def test_opening_is_quick(store: Path) -> None:
    start = time.perf_counter()
    for _ in range(10):
        open_store(store)
    assert (time.perf_counter() - start) / 10 < 0.01


def test_verify_names_file_offset_got_and_wanted(store: Path) -> None:
    path, offset = store / NEURONS, BLOCK_BYTES + 12345
    data = path.read_bytes()
    path.write_bytes(patched(data, offset, bytes([data[offset] ^ 1])))
    good, bad = (_core.crc32c(d[BLOCK_BYTES : 2 * BLOCK_BYTES]) for d in (data, path.read_bytes()))
    opened = open_store(store)
    with pytest.raises(StorageError, match=f"{NEURONS}: .*offset {BLOCK_BYTES} .*{bad:08x}, wanted {good:08x}"):
        opened.verify()


def test_verify_reports_progress_up_to_the_end(store: Path) -> None:
    seen: list[tuple[int, int]] = []
    open_store(store).verify(lambda done, total, what: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] == sum(p.stat().st_size for p in store.iterdir() if p.name != "manifest.json")


@pytest.mark.parametrize("name", [RESIDENT, NEURONS])
def test_a_cut_or_missing_file_is_found_on_opening(store: Path, name: str) -> None:
    size = (store / name).stat().st_size
    os.truncate(store / name, size - 1)
    with pytest.raises(StorageError, match=f"{name} has {size - 1} bytes, the manifest says {size}"):
        open_store(store)
    (store / name).unlink()
    with pytest.raises(StorageError, match="No such file"):
        open_store(store)


def test_a_changed_small_file_is_found_by_verify(store: Path) -> None:
    (store / "tokenizer.json").write_text("{ }")
    with pytest.raises(StorageError, match=r"tokenizer\.json has 3 bytes, the manifest says 2"):
        open_store(store).verify()


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("manifest.json", lambda m: m.update(format_version=2), "version '2'; this hotset reads 1"),
        ("manifest.json", lambda m: m.update(format_version=True), "version 'True'"),
        ("manifest.json", lambda m: m.update(block_bytes=1), "block_bytes"),
        ("manifest.json", lambda m: m.update(files=[]), "no list of files"),
        ("manifest.json", lambda m: m["files"].pop(NEURONS), "does not list"),
        ("manifest.json", lambda m: m["files"][NEURONS].pop("crc32c"), "does not list"),
        ("manifest.json", lambda m: m["files"][NEURONS]["crc32c"].pop(), "needs 2 checksums"),
        ("manifest.json", lambda m: m["files"][NEURONS]["crc32c"].__setitem__(0, 1 << 32), "needs 2 checksums"),
        ("manifest.json", lambda m: m["files"][NEURONS].update(bytes=1.5), "no size"),
        ("manifest.json", lambda m: m["files"].update({"../x": {"bytes": 1}}), "not a file name"),
        ("config.json", lambda c: c.pop("hotset"), "no section 'hotset'"),
        ("config.json", lambda c: c["hotset"].clear(), "version 'None'"),
    ],
)
def test_a_manifest_or_config_that_lies(store: Path, file: str, change: Callable[[Any], Any], message: str) -> None:
    edit(store / file, change)
    with pytest.raises(FormatError, match=message):
        open_store(store)


def rewrite_header(path: Path, change: Callable[[Any], Any]) -> None:
    """Changes the tensors' description inside a weight file, its size kept."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    section = json.loads(header["__metadata__"]["hotset"])
    change(section)
    header["__metadata__"]["hotset"] = json.dumps(section)
    path.write_bytes(data[:8] + json.dumps(header).encode().ljust(length) + data[8 + length :])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["tensors"]["up"].update(format="q5_0"), "format 'q5_0' is not one of"),
        (lambda s: s["tensors"]["up"].update(format=["q8_0"]), "is not one of"),
        (lambda s: s["tensors"]["up"].update(format="q4_0"), "takes U8"),
        (lambda s: s["tensors"]["up"].update(shape=[1000, 1 << 62]), "takes U8"),
        (lambda s: s["tensors"]["up"].update(shape=[1000, 0]), "neither"),
        (lambda s: s["tensors"]["up"].update(shape=[1000, -1]), "neither"),
        (lambda s: s["tensors"]["up"].update(shape=[5]), "vectors are f32"),
        (lambda s: s["tensors"]["up"].update(bytes=7), "takes U8"),
        (lambda s: s["tensors"]["up"].pop("bytes"), "exactly"),
        (lambda s: s["tensors"].pop("up"), "'up' is described but not stored, or stored but not described"),
        (lambda s: s["tensors"].update(x=s["tensors"]["up"]), "'x' is described"),
        (lambda s: s.update(format_version=9), "version '9'"),
        (lambda s: s.update(tensors=None), "no 'tensors'"),
    ],
)
def test_a_description_that_lies(store: Path, change: Callable[[Any], Any], message: str) -> None:
    rewrite_header(store / NEURONS, change)
    with pytest.raises(FormatError, match=message):
        open_store(store)


def test_no_store_here(tmp_path: Path) -> None:
    assert not is_store(tmp_path)
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(StorageError, match="hotset convert"):
            open_store(path)


def test_block_sums_do_not_depend_on_the_pieces() -> None:
    data = np.random.default_rng(0).integers(0, 256, 2 * BLOCK_BYTES + 5, np.uint8).tobytes()
    wanted = tuple(_core.crc32c(data[i : i + BLOCK_BYTES]) for i in range(0, len(data), BLOCK_BYTES))
    for sizes in ([len(data)], [1, BLOCK_BYTES - 1, 1], [BLOCK_BYTES] * 2, [777] * 2000):
        sums, view = BlockSums(), memoryview(data)
        for size in sizes:
            sums.add(view[:size])
            view = view[size:]
        sums.add(view)
        assert sums.sums() == wanted


def stop_after(dest: Path, count: int, then: bytes = b"") -> Path:
    """A conversion that ends after `count` tensors and a torn part of the next."""
    with StoreWriter(dest, TENSORS, "key") as writer:
        for tensor in TENSORS[:count]:
            write_tensor(writer, tensor)
        if then:
            writer.begin(TENSORS[count].name)
            writer.append(np.frombuffer(then, np.uint8))
    assert not dest.exists()
    return partial_folder(dest, "key")


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_goes_on_where_it_was_stopped(tmp_path: Path, store: Path, count: int) -> None:
    dest = tmp_path / "second"
    stop_after(dest, count, b"torn")
    with StoreWriter(dest, TENSORS, "key") as writer:
        assert writer.done == {t.name: {"of": t.name} for t in TENSORS[:count]}
    write(dest)
    for path in store.iterdir():
        assert path.read_bytes() == (dest / path.name).read_bytes()


def test_a_tensor_damaged_meanwhile_is_written_again(tmp_path: Path, store: Path) -> None:
    dest = tmp_path / "second"
    folder = stop_after(dest, 3)
    path = folder / RESIDENT
    path.write_bytes(patched(path.read_bytes(), 2 * ALIGNMENT + 7, b"bad"))  # in "q"
    with StoreWriter(dest, TENSORS, "key") as writer:
        assert list(writer.done) == ["norm"]
    write(dest)
    open_store(dest).verify()
    assert (dest / NEURONS).read_bytes() == (store / NEURONS).read_bytes()


@pytest.mark.parametrize("journal", [b"", b"\x00\xff", b'{"key": "key"}\n{"tensor": "norm"', b'{"key": "key"}\n[1]\n'])
def test_a_broken_journal_starts_over(tmp_path: Path, journal: bytes) -> None:
    dest = tmp_path / "second"
    (stop_after(dest, 2) / JOURNAL).write_bytes(journal)
    with StoreWriter(dest, TENSORS, "key") as writer:
        assert not writer.done
    write(dest)
    open_store(dest).verify()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_kill_while_the_store_gets_its_name_loses_nothing(tmp_path: Path, replaced: bool) -> None:
    dest = tmp_path / "store"
    if replaced:
        write(dest, "other")
    code = f"""
import os, sys
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}
from test_formats_store import *
Path.rename = lambda self, other: os.rename(self, other) if self.name == "store" else os.kill(os.getpid(), 9)
write(Path({str(dest)!r}), replace=True)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert not dest.exists()
    with StoreWriter(dest, TENSORS, "key") as writer:
        assert list(writer.done) == [tensor.name for tensor in TENSORS]
    write(dest)
    open_store(dest).verify()
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_a_journal_left_in_a_finished_store_harms_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("hotset.formats.store_writer.remove_journal", lambda store: None)  # as if killed just before
        write(tmp_path / "store")
    assert (tmp_path / "store" / JOURNAL).is_file()
    assert is_store(tmp_path / "store")
    open_store(tmp_path / "store").verify()
    with StoreWriter(tmp_path / "store", TENSORS, "key") as writer:  # its lock is another
        assert not writer.done
        writer.discard()
    write(tmp_path / "store", replace=True)
    assert not (tmp_path / "store" / JOURNAL).exists()


def test_other_options_do_not_resume(tmp_path: Path) -> None:
    stop_after(tmp_path / "second", 2)
    with StoreWriter(tmp_path / "second", TENSORS, "other") as writer:
        assert not writer.done


def test_a_killed_process_leaves_what_can_be_resumed(tmp_path: Path) -> None:
    code = f"""
import os, sys
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}
from test_formats_store import *
with StoreWriter(Path({str(tmp_path / "second")!r}), TENSORS, "key") as writer:
    for tensor in TENSORS[:3]:
        write_tensor(writer, tensor)
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    with StoreWriter(tmp_path / "second", TENSORS, "key") as writer:
        assert list(writer.done) == ["norm", "q", "up"]


def test_ctrl_c_while_the_finished_part_is_checked_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(tmp_path / "second", 3)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        checked = iter([True])
        patch.setattr(WeightFile, "accept", lambda *_: next(checked, None) or _interrupt())
        StoreWriter(tmp_path / "second", TENSORS, "key")
    with StoreWriter(tmp_path / "second", TENSORS, "key") as writer:
        assert list(writer.done) == ["norm", "q", "up"]


def _interrupt() -> bool:
    raise KeyboardInterrupt


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "second", TENSORS, "key"), pytest.raises(StorageError, match="another conversion"):
        StoreWriter(tmp_path / "second", TENSORS, "key")


@pytest.mark.parametrize("call", [1, 3, 5, 8])
def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    calls, pwrite = [0], os.pwrite

    def full(fd: int, data: Any, offset: int) -> int:
        calls[0] += 1
        if calls[0] > call:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageError, match=r"full; the unfinished store was removed"):
        write(tmp_path / "second")
    assert not list(tmp_path.iterdir())


def test_a_failing_drive_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stop_after(tmp_path / "second", 2)

    def failing(fd: int, data: Any, offset: int) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pwrite", failing)
    with pytest.raises(StorageError, match="Input/output error"):
        write(tmp_path / "second")
    assert folder.is_dir()


def test_too_little_space_is_noticed_before_writing(tmp_path: Path) -> None:
    huge = [StoreTensor("x", "f32", 1 << 40, 1 << 10, neurons=True)]
    with pytest.raises(StorageError, match="bytes free; the store takes"):
        StoreWriter(tmp_path / "second", huge, "key")
    assert not list(tmp_path.iterdir())


def test_a_read_only_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        StoreWriter(tmp_path / "file" / "dest", TENSORS, "key")


def test_what_is_there_is_replaced_only_when_asked(tmp_path: Path, store: Path) -> None:
    (store / "mine").write_text("precious")
    with pytest.raises(UsageError, match="come into being"):
        write(store, "other")
    assert (store / "mine").read_text() == "precious"
    write(store, "other", replace=True)
    assert not (store / "mine").exists()
    open_store(store).verify()
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_errors_are_hotsets(store: Path) -> None:
    for name in ("manifest.json", "config.json"):
        saved = (store / name).read_bytes()
        for broken in (b"", b"{", b"[]", b"\xff\xfe", b"null", b'{"a": 1e999}', b"{" * 100_000):
            (store / name).write_bytes(broken)
            with pytest.raises(HotsetError):
                open_store(store)
        (store / name).write_bytes(saved)
    open_store(store)
