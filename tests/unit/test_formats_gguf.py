"""The GGUF reader and writer against the reference library, and against files that lie."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf as reference
import numpy as np
import pytest
from builders import gguf_arrays, llama_weights, patched, write_gguf

from hotset.errors import FormatError, StorageError
from hotset.formats import gguf
from hotset.formats.gguf_writer import GgufWriter, NewTensor, header

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "text": "Grüße 🙂",
    "empty": "",
    "number": 7,
    "large": 1 << 40,
    "negative": -3,
    "real": 0.5,
    "yes": True,
    "texts": ["a", "", "ü"],
    "numbers": [1, -2, 3],
    "reals": [0.5, -1.0],
    "flags": [True, False],
}
TENSORS = [NewTensor("a", "F32", (3, 32)), NewTensor("b", "Q4_0", (2, 64)), NewTensor("c", "F32", (5,))]


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def head(tensors: int = 0, pairs: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs)


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def info(name: bytes = b"a", shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def file(path: Path, data: bytes, body: int = 256) -> Path:
    path.write_bytes(data + bytes(-len(data) % 32) + bytes(body))
    return path


def test_the_table_of_types_is_the_reference_libraries() -> None:
    for number, (name, elements, size) in gguf.TYPES.items():
        kind = reference.GGMLQuantizationType(number)
        assert (kind.name, reference.GGML_QUANT_SIZES[kind]) == (name, (elements, size))


def test_reads_what_the_reference_writes(tmp_path: Path) -> None:
    weights = llama_weights()
    path = write_gguf(tmp_path / "x.gguf", gguf_arrays(weights), "Q8_0")
    ours, theirs = gguf.read(path), reference.GGUFReader(path)
    assert [*ours.tensors] == [t.name for t in theirs.tensors]
    for tensor in theirs.tensors:
        found = ours.tensors[tensor.name]
        assert (found.type, found.offset, found.bytes) == (tensor.tensor_type.name, tensor.data_offset, tensor.n_bytes)
        assert found.shape == tuple(int(n) for n in tensor.shape[::-1])
    for key, field in theirs.fields.items():
        if not key.startswith("GGUF."):
            assert ours.metadata[key] == pytest.approx(field.contents()) if "eps" in key else field.contents()


def test_writes_what_the_reference_reads(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    rng = np.random.default_rng(0)
    data = [rng.integers(0, 256, t.bytes, np.uint8) for t in TENSORS]
    with GgufWriter(path, METADATA, TENSORS) as writer:
        for values in data:
            writer.write(np.array_split(values, 3))
    theirs = reference.GGUFReader(path)
    assert {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")} == METADATA
    for tensor, new, values in zip(theirs.tensors, TENSORS, data, strict=True):
        assert (tensor.name, tuple(tensor.shape[::-1])) == (new.name, new.shape)
        np.testing.assert_array_equal(tensor.data.reshape(-1).view(np.uint8), values)
    assert gguf.read(path).metadata == METADATA


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), GgufWriter(tmp_path / "x.gguf", METADATA, TENSORS) as writer:
        writer.write([bytes(TENSORS[0].bytes)])
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_a_vocabulary_is_read_quickly(tmp_path: Path) -> None:
    import time

    tokens = [f"token {i} ü" for i in range(50_000)]
    path = file(tmp_path / "x.gguf", header({"tokenizer.ggml.tokens": tokens, "merges": tokens}, []))
    start = time.perf_counter()
    assert gguf.read(path).metadata["merges"] == tokens
    assert time.perf_counter() - start < 1


HUGE = struct.pack("<Q", 1 << 60)


LIES = [
    (b"GGML" + head()[4:], "not a GGUF"),
    (head(version=1), "version 1"),
    (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    (head(pairs=1 << 60), "metadata pairs"),
    (head(tensors=1 << 60), "tensors"),
    (head(pairs=1) + HUGE, "at most 65536"),
    (head(pairs=1) + string(b"\xff") + bytes(4), "not UTF-8"),
    (head(pairs=1) + pair(b"a", 8, HUGE), "'a' claims"),
    (head(pairs=1) + pair(b"a", 8, struct.pack("<Q", 1 << 20)), "'a' takes"),
    (head(pairs=1) + pair(b"a", 13, bytes(8)), "value type 13"),
    (head(pairs=1) + pair(b"a", 7, b"\x02"), "boolean"),
    (head(pairs=1) + pair(b"a", 9, struct.pack("<I", 0) + HUGE), "elements"),
    (head(pairs=1) + pair(b"a", 9, struct.pack("<IQ", 12, 1 << 20)), "'a' takes"),
    (head(pairs=1) + pair(b"a", 9, struct.pack("<IQ", 9, 1)), "value type 9"),
    (head(pairs=1) + pair(b"a", 9, struct.pack("<IQ", 8, 1000)), "entry"),
    (head(pairs=1) + pair(b"a", 9, struct.pack("<IQ", 8, 1) + HUGE), "entry 0"),
    (head(pairs=1) + pair(b"a", 9, struct.pack("<IQ", 8, 1) + string(b"\xc3")), "not UTF-8"),
    (head(pairs=2) + 2 * pair(b"a", 0, b"\x01"), "'a' stands twice"),
    (head(pairs=1) + pair(b"general.alignment", 4, struct.pack("<I", 24)), "general.alignment is .24"),
    (head(pairs=1) + pair(b"general.alignment", 4, bytes(4)), "general.alignment is .0"),
    (head(pairs=1) + pair(b"general.alignment", 8, string(b"32")), "general.alignment"),
    (head(tensors=2) + 2 * info(), "'a' stands twice"),
    (head(tensors=1) + info(shape=()), "0 dimensions"),
    (head(tensors=1) + string(b"a") + struct.pack("<I", 1 << 31), "dimensions"),
    (head(tensors=1) + info(shape=(0,)), "none empty"),
    (head(tensors=1) + info(shape=(33,), kind=2), "multiples of 32"),
    (head(tensors=1) + info(shape=(1 << 62, 1 << 62)), "claims"),
    (head(tensors=1) + info(kind=4), "type 4"),
    (head(tensors=1) + info(kind=1 << 31), "unknown"),
    (head(tensors=1) + info(offset=1 << 63), "claims"),
    (head(tensors=1) + info(offset=8), "not a multiple"),
    (head(tensors=1) + info(offset=160), "truncated"),
    (head(tensors=2) + info() + info(b"b", offset=96), "overlap"),
]


@pytest.mark.parametrize(("data", "message"), LIES, ids=[case[-1] for case in LIES])
def test_refuses_what_lies(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        gguf.read(file(tmp_path / "x.gguf", data))
    assert len(str(caught.value)) < 1000


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    with GgufWriter(path, METADATA, TENSORS) as writer:
        for tensor in TENSORS:
            writer.write([bytes(tensor.bytes)])
    data = path.read_bytes()
    for length in range(len(data) - 12):  # the last 12 bytes are padding
        path.write_bytes(data[:length])
        with pytest.raises(FormatError):
            gguf.read(path)


@pytest.mark.parametrize("kind", [0, 8, 12])
def test_counts_that_a_sparse_file_could_hold_cost_nothing(tmp_path: Path, kind: int) -> None:
    path = tmp_path / "x.gguf"
    with path.open("wb") as sparse:
        sparse.write(head(pairs=1) + pair(b"a", 9, struct.pack("<IQ", kind, 1 << 32)))
        sparse.truncate(1 << 36)
    tracemalloc.start()
    with pytest.raises(FormatError, match="at most"):
        gguf.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_changed_offset_is_noticed(tmp_path: Path) -> None:
    data = head(tensors=1) + info()
    good = file(tmp_path / "x.gguf", data)
    assert gguf.read(good).tensors["a"].bytes == 128
    good.write_bytes(patched(good.read_bytes(), len(data) - 8, struct.pack("<Q", 1 << 20)))
    with pytest.raises(FormatError, match="claims"):
        gguf.read(good)


def test_missing_short_and_folder(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"GGUF")
    with pytest.raises(FormatError, match="4 bytes"):
        gguf.read(tmp_path / "short")
    with pytest.raises(StorageError):
        gguf.read(tmp_path / "missing")
    with pytest.raises(StorageError, match="folder"):
        gguf.read(tmp_path)
