"""An embedding that stays on the drive: rows come as they do from memory, or the step ends with the error."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from hotset import _core
from hotset.errors import FormatError, StorageError, UsageError
from tests.sparse_models import Floats, make_sparse_model, run, tiny_config

HIDDEN, VOCAB = 544, 97
PROMPT = [int(i * 7 % VOCAB) for i in range(150)]  # more than are read at a time, many twice
STEPS = [0, 96, 15, 16, 96]  # ends of row blocks, and a last block that is not full
BLOCK = 100_000  # of the file's checksums: no row block ends where one of them does
BACKENDS = ["auto", "pread", "memory"]


@dataclass
class Model:
    """embed: where the embedding lies, behind other tensors and before more of them."""

    desc: dict[str, object]
    tensors: list[_core.TensorRef]
    path: Path
    embed: tuple[int, int]

    def engine(self, embed_io: str | None = None, checked: bool = True) -> _core.Engine:
        data = self.path.read_bytes()
        sums = [_core.crc32c(data[at : at + BLOCK]) for at in range(0, len(data), BLOCK)]
        files = [_core.FileChecksums(str(self.path), BLOCK, len(data), sums)] if checked else []
        return _core.Engine(self.desc, self.tensors, checksums=files, embed_io=embed_io)


def make_model(folder: Path, fmt: str, tied: bool = False) -> Model:
    """The tiny model with a head of its own, whose embedding has format `fmt`."""
    made = make_sparse_model(folder, tiny_config(True, "relu", "relu", hidden=HIDDEN, ffn=160), "q4_0")
    path, rng = folder / "ends.bin", np.random.default_rng(1)
    parts, refs, at = [rng.bytes(4321)], list[_core.TensorRef](), 4321
    for role, used in [("embed", fmt), *([] if tied else [("head", "f32")])]:
        out = np.zeros(_core.packed_bytes(used, VOCAB, HIDDEN), np.uint8)
        _core.encode(used, rng.standard_normal((VOCAB, HIDDEN), np.float32), out)
        refs.append(_core.TensorRef(role, -1, str(path), at, out.size, used, VOCAB, HIDDEN))
        parts.append(out.tobytes())
        at += out.size
    path.write_bytes(b"".join(parts) + rng.bytes(777))
    inside = (4321, 4321 + len(parts[1]))
    return Model(made.config.to_native(), made.resident[1:] + made.dense_ffn + refs, path, inside)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_model(tmp_path_factory.mktemp("model"), "q4_0")


@pytest.fixture(scope="module")
def want(model: Model) -> Floats:
    return run(model.engine(), PROMPT, STEPS)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("checked", [True, False])
def test_rows_are_those_from_memory(model: Model, want: Floats, backend: str, checked: bool) -> None:
    np.testing.assert_array_equal(run(model.engine(backend, checked), PROMPT, STEPS), want)


@pytest.mark.parametrize("fmt", ["f32", "f16", "bf16", "q8_0", "q4_1"])
def test_every_format(tmp_path: Path, fmt: str) -> None:
    made = make_model(tmp_path, fmt)
    np.testing.assert_array_equal(run(made.engine("auto"), PROMPT, STEPS), run(made.engine(), PROMPT, STEPS))


def test_it_takes_no_memory(model: Model) -> None:
    held, left = (model.engine(io).stats["weight_bytes"] for io in (None, "auto"))
    assert held - left == model.embed[1] - model.embed[0]


@pytest.mark.parametrize("kind", ["short", "flaky"])
def test_faults_that_a_second_try_mends(model: Model, want: Floats, kind: str) -> None:
    np.testing.assert_array_equal(run(model.engine(f"fault:{kind}:1:0.5"), PROMPT, STEPS), want)


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("error", StorageError, r"ends\.bin: read of \d+ bytes at offset \d+ failed: Input/output error"),
        ("cut", StorageError, r"ends\.bin: read of \d+ bytes at offset \d+ got \d+; the file is truncated"),
        ("corrupt", FormatError, r"embedding's rows from \d+ on .*have checksum \d+, wanted \d+; .*copy it again"),
    ],
)
def test_faults_that_stay_end_the_step(
    model: Model, want: Floats, kind: str, error: type[Exception], message: str
) -> None:
    core, failed = model.engine(f"fault:{kind}:3:0.2"), 0
    for _ in range(40):  # a reader that failed is replaced, so that one of the tries succeeds
        try:
            np.testing.assert_array_equal(run(core, STEPS[:2], []), run(model.engine(), STEPS[:2], []))
        except error as found:
            assert re.search(message, str(found))
            failed += 1
    assert 0 < failed < 40


def test_a_file_that_changed_while_running(tmp_path: Path) -> None:
    made = make_model(tmp_path, "q8_0")
    core = made.engine("pread")
    first, last = made.embed
    with made.path.open("r+b") as file:
        file.seek((first + last) // 2)
        byte = file.read(1)[0]
        file.seek((first + last) // 2)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(FormatError, match="embedding's rows from"):
        run(core, list(range(VOCAB)), [])


def test_a_damaged_file_is_not_loaded(tmp_path: Path) -> None:
    made = make_model(tmp_path, "q4_0")
    data = bytearray(made.path.read_bytes())
    sums = [_core.crc32c(bytes(data[at : at + BLOCK])) for at in range(0, len(data), BLOCK)]
    files = [_core.FileChecksums(str(made.path), BLOCK, len(data), sums)]
    data[made.embed[0] + 5] ^= 4
    made.path.write_bytes(bytes(data))
    with pytest.raises(FormatError, match="checksum of the manifest"):
        _core.Engine(made.desc, made.tensors, checksums=files, embed_io="auto")


def test_a_tied_embedding_must_be_in_memory(tmp_path: Path) -> None:
    made = make_model(tmp_path, "q4_0", tied=True)
    made.engine()
    with pytest.raises(UsageError, match="the head, too"):
        made.engine("auto")
