"""The safetensors reader against the reference library, and against files that lie."""

from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import CONFIG, llama_weights, write_folder
from safetensors.numpy import save_file

from hotset.errors import FormatError, StorageError
from hotset.formats import safetensors


def write(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype: Any = "U8", shape: Any = (4,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_reads_what_the_reference_writes(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.arange(5, dtype=np.int64),
        "scalar": np.array(7, dtype=np.float16),
        "empty": np.zeros((0, 4), np.float32),
    }
    path = tmp_path / "x.safetensors"
    save_file(arrays, path, metadata={"format": "np"})
    header = safetensors.read_header(path)
    assert header.metadata == {"format": "np"}
    assert header.entries.keys() == arrays.keys()
    data = path.read_bytes()
    for name, e in header.entries.items():
        assert e.shape == arrays[name].shape
        assert data[e.offset : e.offset + e.bytes] == arrays[name].tobytes()


LIES = [
    ({"a": entry()}, b"123", "truncated"),
    ({"a": entry()}, b"12345", "1 bytes follow"),
    ({"a": entry(offsets=(1, 5))}, b"12345", "hole"),
    ({"a": entry(), "b": entry(offsets=(2, 6))}, b"123456", "overlaps"),
    ({"a": entry(), "b": entry(offsets=(6, 10))}, b"1234567890", "hole"),
    ({"a": entry(offsets=(4, 0))}, b"1234", "span -4"),
    ({"a": entry(offsets=(-4, 0))}, b"1234", "byte positions"),
    ({"a": entry(offsets=(0, 4, 8))}, b"1234", "byte positions"),
    ({"a": entry(offsets=(0.0, 4))}, b"1234", "byte positions"),
    ({"a": entry(shape=(2**62, 2**62))}, b"1234", "takes"),
    ({"a": entry(shape=(2**63,))}, b"1234", "sizes"),
    ({"a": entry(shape=(True, 4))}, b"1234", "sizes"),
    ({"a": entry(shape=[1] * 9)}, b"1234", "sizes"),
    ({"a": entry(shape="4")}, b"1234", "sizes"),
    ({"a": entry(dtype="F4")}, b"1234", "dtype 'F4'"),
    ({"a": entry(dtype=["U8"])}, b"1234", "dtype"),
    ({"a": {"dtype": "U8", "shape": [4]}}, b"1234", "exactly"),
    ({"a": entry() | {"more": 1}}, b"1234", "exactly"),
    ({"a": [1, 2]}, b"1234", "exactly"),
    ({"__metadata__": {"a": 1}}, b"", "text to text"),
    ({"__metadata__": []}, b"", "text to text"),
    (b'{"a":1,"a":2}', b"", "'a' stands twice"),
    (b'{"a":NaN}', b"", "not valid JSON"),
    (b'{"a":' + b"9" * 5000 + b"}", b"", "not valid JSON"),
    (b'{"a":' + b"[" * 100_000, b"", "JSON"),
    (b'{"\xff":1}', b"", "not valid JSON"),
    (b"[]", b"", "starts with b'['"),
    (b" {}", b"", "starts with b' '"),
    (b"", b"", "starts with b''"),
    ({'a\ud800\n"': entry(offsets=(0, 5))}, b"1234", "span 5"),
]


@pytest.mark.parametrize(("header", "data", "message"), LIES, ids=[case[-1] for case in LIES])
def test_refuses_what_lies(tmp_path: Path, header: Any, data: bytes, message: str) -> None:
    path = write(tmp_path / "x.safetensors", header, data)
    with pytest.raises(FormatError, match=message.replace("[", r"\[")) as caught:
        safetensors.read_header(path)
    str(caught.value).encode()  # printable, whatever names the file has
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 2**40, 3])
def test_refuses_header_lengths_that_do_not_fit(tmp_path: Path, length: int) -> None:
    with pytest.raises(FormatError):
        safetensors.read_header(write(tmp_path / "x.safetensors", {}, length=length))


def test_a_huge_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:  # sparse
        file.write(struct.pack("<Q", 1 << 33))
        file.truncate(1 << 34)
    tracemalloc.start()
    with pytest.raises(FormatError, match="at most"):
        safetensors.read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_short_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"1234567")
    with pytest.raises(FormatError, match="7 bytes"):
        safetensors.read_header(tmp_path / "short")
    with pytest.raises(StorageError, match="No such file"):
        safetensors.read_header(tmp_path / "missing")
    with pytest.raises(StorageError, match="folder"):
        safetensors.read_header(tmp_path)


def test_shards_are_put_together(tmp_path: Path) -> None:
    weights = llama_weights()
    one = safetensors.read_folder(write_folder(tmp_path / "one", weights))
    three = safetensors.read_folder(write_folder(tmp_path / "three", weights, shards=3))
    assert one.keys() == three.keys() == weights.keys()
    assert len({path for path, _ in three.values()}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lm_head.weight": "../../etc/passwd"}, "not the name"),
        ({"lm_head.weight": "a/b.safetensors"}, "not the name"),
        ({"lm_head.weight": 3}, "not the name"),
        ({"lm_head.weight": "\0.safetensors"}, "not the name"),
        ({"no.such": "model-00001-of-00002.safetensors"}, "'no.such'"),
        ({"lm_head.weight": "model-00009-of-00002.safetensors"}, "No such file"),
    ],
)
def test_an_index_that_lies(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = write_folder(tmp_path, llama_weights(), CONFIG, shards=2)
    index = json.loads((folder / safetensors.INDEX_FILE).read_text())
    index["weight_map"] |= change
    (folder / safetensors.INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises((FormatError, StorageError), match=message):
        safetensors.read_folder(folder)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, llama_weights(), CONFIG, shards=2)
    first, second = sorted(folder.glob("model-*.safetensors"))
    second.write_bytes(first.read_bytes())
    with pytest.raises(FormatError, match="two shards"):
        safetensors.read_folder(folder)


def test_files_without_an_index(tmp_path: Path) -> None:
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "a.safetensors")
    assert safetensors.read_folder(tmp_path).keys() == {"a"}
    save_file({"b": np.zeros(1, np.float32)}, tmp_path / "b.safetensors")
    with pytest.raises(FormatError, match="has 2 "):
        safetensors.read_folder(tmp_path)
