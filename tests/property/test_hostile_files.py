"""Damaged and hostile files: whatever the bytes are, only hotset's own errors come out, soon and in little memory."""

from __future__ import annotations

import json
import shutil
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from builders import CONFIG, gguf_arrays, llama_weights, write_folder, write_gguf
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hotset.errors import HotsetError
from hotset.formats import gguf, safetensors
from hotset.formats.gguf_writer import header as gguf_header
from hotset.formats.store import MANIFEST, NEURONS, open_store
from hotset.tokenizer import Tokenizer
from hotset.tools.convert import convert
from hotset.tools.convert_source import open_source

MEMORY_LIMIT = 64 << 20  # the files have less than 1 MiB
SETTINGS = settings(
    max_examples=100, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
# Numbers at the edges of what fields can hold.
EDGES = [0, 1, 2, 7, 8, 255, 1 << 16, (1 << 31) - 1, 1 << 31, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]


@contextmanager
def only_hotset_errors() -> Iterator[None]:
    """Lets hotset's errors pass, everything else fails the test; so does much memory or an unprintable message."""
    tracemalloc.start()
    try:
        yield
    except HotsetError as error:
        str(error).encode()
        assert len(str(error)) < 4000
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MEMORY_LIMIT


@st.composite
def damage(draw: st.DrawFn, head: int) -> Callable[[bytes], bytes]:
    """A few changes to a file, most of them within its first `head` bytes."""
    changes = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["flip", "number", "cut", "insert", "remove", "repeat"]),
                st.integers(0, head) | st.integers(0, 1 << 20),
                st.sampled_from(EDGES),
                st.binary(min_size=1, max_size=16),
            ),
            min_size=1,
            max_size=4,
        )
    )

    def apply(data: bytes) -> bytes:
        for kind, at, number, raw in changes:
            at %= len(data) + 1
            if kind == "flip":
                data = data[:at] + bytes(b ^ 1 << number % 8 for b in data[at : at + 1]) + data[at + 1 :]
            elif kind == "number":
                data = data[:at] + struct.pack("<Q", number) + data[at + 8 :]
            elif kind == "cut":
                data = data[:at]
            elif kind == "insert":
                data = data[:at] + raw + data[at:]
            elif kind == "remove":
                data = data[:at] + data[at + len(raw) :]
            else:
                data = data[:at] + data[max(0, at - 64) : at] * 3 + data[at:]
        return data

    return apply


VALUES = st.recursive(
    st.none() | st.booleans() | st.sampled_from(EDGES) | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def lie(draw: st.DrawFn, depth: int = 6) -> Callable[[Any], Any]:
    """A change somewhere in a JSON value: something replaced, removed, or added."""
    path = draw(st.lists(st.integers(0, 1 << 16), min_size=1, max_size=depth))
    kind, value = draw(st.sampled_from(["replace", "remove", "add"])), draw(VALUES)

    def apply(root: Any) -> Any:
        node = root
        for step in path[:-1]:
            keys = sorted(node) if isinstance(node, dict) else range(len(node))
            child = node[keys[step % len(keys)]] if keys else None
            if not isinstance(child, dict | list) or not child:
                break
            node = child
        keys = sorted(node) if isinstance(node, dict) else range(len(node))
        key = keys[path[-1] % len(keys)]
        if kind == "replace":
            node[key] = value
        elif kind == "remove":
            del node[key]
        elif isinstance(node, dict):
            node[str(value)[:8]] = value
        else:
            node.append(value)
        return root

    return apply


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "x.gguf", gguf_arrays(llama_weights()), "Q4_0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("hf") / "model", llama_weights(), shards=2)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    dest = tmp_path_factory.mktemp("store") / "store"
    convert(folder, dest)
    return dest


def fresh(source: Path, parent: Path) -> Path:
    """A new copy of a folder in `parent`."""
    copy = parent / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    return Path(shutil.copytree(source, copy))


@SETTINGS
@given(change=damage(head=8000))
def test_damaged_gguf(gguf_file: Path, tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(change(gguf_file.read_bytes()))
    with only_hotset_errors():
        open_source(path)


@SETTINGS
@given(change=damage(head=8000))
def test_a_damaged_gguf_converts_or_is_refused(
    gguf_file: Path, tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(change(gguf_file.read_bytes()))
    with only_hotset_errors():
        convert(path, tmp_path / "store", force=True)
        open_store(tmp_path / "store").verify()


@SETTINGS
@given(
    metadata=st.dictionaries(
        st.sampled_from(
            [
                "general.architecture",
                "general.alignment",
                "llama.block_count",
                "llama.embedding_length",
                "llama.attention.head_count",
                "llama.attention.head_count_kv",
                "llama.feed_forward_length",
                "llama.context_length",
                "llama.rope.dimension_count",
                "llama.rope.freq_base",
                "llama.rope.scaling.type",
                "llama.attention.layer_norm_rms_epsilon",
                "tokenizer.ggml.model",
                "tokenizer.ggml.pre",
                "tokenizer.ggml.tokens",
                "tokenizer.ggml.token_type",
                "tokenizer.ggml.scores",
                "tokenizer.ggml.merges",
                "tokenizer.ggml.bos_token_id",
                "tokenizer.chat_template",
            ]
        ),
        st.booleans()
        | st.integers(-(1 << 63), (1 << 63) - 1)
        | st.sampled_from([0, 1, 2, 32, 64])
        | st.floats(width=32)
        | st.text(max_size=8)
        | st.sampled_from(["llama", "gpt2", "yarn", "linear", "default", "smollm"])
        | st.lists(st.text(max_size=3), max_size=4)
        | st.lists(st.integers(-3, 6), max_size=4)
        | st.lists(st.floats(width=32), max_size=4),
    )
)
def test_gguf_metadata_of_any_kind(gguf_file: Path, tmp_path: Path, metadata: dict[str, Any]) -> None:
    path = tmp_path / "x.gguf"
    good = gguf.read(gguf_file)
    data = gguf_file.read_bytes()[good.data_offset :]
    tensors = _as_new(good)
    path.write_bytes(gguf_header({**good.metadata, **metadata}, tensors) + data)
    with only_hotset_errors():
        open_source(path)


def _as_new(file: gguf.GgufFile) -> list[Any]:
    from hotset.formats.gguf_writer import NewTensor

    return [NewTensor(name, t.type, t.shape) for name, t in file.tensors.items()]


@SETTINGS
@given(change=damage(head=2000), which=st.integers(0, 3))
def test_damaged_folder(folder: Path, tmp_path: Path, change: Callable[[bytes], bytes], which: int) -> None:
    copy = fresh(folder, tmp_path)
    path = sorted(copy.iterdir())[which]
    path.write_bytes(change(path.read_bytes()))
    with only_hotset_errors():
        convert(copy, tmp_path / "store", force=True)


@SETTINGS
@given(
    change=damage(head=2000),
    which=st.sampled_from(["tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"]),
)
def test_a_damaged_tokenizer_converts_or_is_refused(
    folder: Path, gguf_file: Path, tmp_path: Path, change: Callable[[bytes], bytes], which: str
) -> None:
    copy = fresh(folder, tmp_path)
    files = open_source(gguf_file).files | {"chat_template.jinja": b"{{ messages[0].content }}"}
    for name, data in files.items():
        (copy / name).write_bytes(change(data) if name == which else data)
    with only_hotset_errors():
        convert(copy, tmp_path / "store", force=True)
        tokenizer = Tokenizer.load(tmp_path / "store")
        tokenizer.decode(tokenizer.encode("The rain"))


@SETTINGS
@given(change=lie(), which=st.sampled_from(["header", "index", "config"]))
def test_folder_that_lies(folder: Path, tmp_path: Path, change: Callable[[Any], Any], which: str) -> None:
    copy = fresh(folder, tmp_path)
    if which == "header":
        _change_header(sorted(copy.glob("*.safetensors"))[0], change)
    else:
        path = copy / ("config.json" if which == "config" else safetensors.INDEX_FILE)
        path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with only_hotset_errors():
        open_source(copy)


def _change_header(path: Path, change: Callable[[Any], Any]) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(change(json.loads(data[8 : 8 + length]))).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])


@SETTINGS
@given(config=st.dictionaries(st.sampled_from(sorted(CONFIG)), VALUES))
@example(config={"hidden_size": 12860664})
def test_configs_of_any_kind(folder: Path, tmp_path: Path, config: dict[str, Any]) -> None:
    copy = fresh(folder, tmp_path)
    (copy / "config.json").write_text(json.dumps(CONFIG | config))
    with only_hotset_errors():
        open_source(copy)


@SETTINGS
@given(change=damage(head=2000), which=st.sampled_from([MANIFEST, "config.json", "resident.safetensors", NEURONS]))
def test_damaged_store(store: Path, tmp_path: Path, change: Callable[[bytes], bytes], which: str) -> None:
    copy = fresh(store, tmp_path)
    before = (copy / which).read_bytes()
    (copy / which).write_bytes(after := change(before))
    with only_hotset_errors():
        open_store(copy).verify()
        assert after == before or which == "config.json" or json.loads(after) == json.loads(before)


@SETTINGS
@given(change=lie(), which=st.sampled_from([MANIFEST, "config.json", NEURONS]))
def test_store_that_lies(store: Path, tmp_path: Path, change: Callable[[Any], Any], which: str) -> None:
    copy = fresh(store, tmp_path)
    if which == NEURONS:
        _change_header(copy / which, change)
    else:
        (copy / which).write_text(json.dumps(change(json.loads((copy / which).read_text()))))
    with only_hotset_errors():
        open_store(copy).verify()


@SETTINGS
@given(data=st.binary(max_size=200))
def test_noise(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "noise"
    for start in (b"", b"GGUF\x03\0\0\0", b'{"', struct.pack("<Q", max(0, len(data) - 1)) + b"{"):
        path.write_bytes(start + data)
        for read in (gguf.read, safetensors.read_header, open_source, open_store):
            with only_hotset_errors():
                read(path)
