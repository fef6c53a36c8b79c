"""The exact predictor that reads all gates in order, against engines that compute every neuron."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hotset import _core
from hotset.errors import FormatError, HotsetError, StorageError, UsageError
from tests.sparse_models import SparseModel, make_sparse_model, run, tiny_config

PROMPT = [int(i * 7 % 97) for i in range(20)]
STEPS = [int(i * 31 % 97) for i in range(24)]
NEURONS, LAYERS, HIDDEN = 1100, 3, 544  # two whole pieces of gates and one cut short, in which 12 share a checksum
LEAST = [float(np.finfo(np.float32).tiny)] * LAYERS


@dataclass
class Gates:
    """A copy of the gates, cut out of the bundles by this test's own reading of the formats."""

    path: Path
    fmt: str
    stride: int
    offsets: list[int]
    sums: list[NDArray[np.uint32]]
    rest: list[NDArray[np.uint32]]

    def file(self) -> _core.GateFile:
        return _core.GateFile(
            str(self.path), self.fmt, HIDDEN, NEURONS, self.stride, self.offsets, self.sums, self.rest
        )


def copied(model: SparseModel, fmt: str) -> Gates:
    vector = _core.vector_bytes(fmt, HIDDEN)
    stride = -(-512 * vector // 4096) * 4096
    data, offsets, sums, rest = b"", list[int](), list[NDArray[np.uint32]](), list[NDArray[np.uint32]]()
    crc = lambda rows: np.array([_core.crc32c(row) for row in rows], np.uint32)  # noqa: E731
    for layer in range(LAYERS):
        bundles = np.fromfile(model.path, np.uint8, NEURONS * model.stride, offset=model.offsets[layer])
        bundles = bundles.reshape(NEURONS, model.stride)
        gates = [bundle[2 * vector : 3 * vector].tobytes() for bundle in bundles]
        offsets.append(len(data))
        for first in range(0, NEURONS, 512):
            data += b"".join(gates[first : first + 512]).ljust(stride, b"\0")
        sums.append(crc(b"".join(gates[i : i + 16]) for i in range(0, NEURONS, 16)))
        rest.append(crc(bundle[: 2 * vector].tobytes() for bundle in bundles))
    path = model.path.with_name(f"gates-{fmt}.bin")
    path.write_bytes(data)
    return Gates(path, fmt, stride, offsets, sums, rest)


@pytest.fixture(scope="module", params=["q4_0", "q8_0"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[SparseModel, Gates]:
    config = tiny_config(True, "relu", "relu", hidden=HIDDEN, ffn=NEURONS, layers=LAYERS)
    model = make_sparse_model(tmp_path_factory.mktemp("drelu"), config, request.param)
    return model, copied(model, request.param)


def options(
    gates: Gates, slots: int, policy: str = "clock", backend: str = "auto", hot: int = 0
) -> _core.SparseOptions:
    return _core.SparseOptions(
        [hot] * LAYERS, slots, policy, "read-gate", LEAST, LEAST, backend=backend, depth=16, gates=gates.file()
    )


@pytest.fixture(scope="module")
def everything(pair: tuple[SparseModel, Gates]) -> NDArray[np.float32]:
    """With all neurons computed, from memory."""
    return run(pair[0].sparse(_core.SparseOptions([NEURONS] * LAYERS, 0)), PROMPT, STEPS)


@pytest.mark.parametrize("policy", ["clock", "lru", "lfu", "window"])
@pytest.mark.parametrize("slots", [0, 100, 1500, LAYERS * NEURONS])
def test_no_bit_differs_from_computing_every_neuron(
    pair: tuple[SparseModel, Gates], everything: NDArray[np.float32], slots: int, policy: str
) -> None:
    model, gates = pair
    for threads in (1, 3):
        engine = model.sparse(options(gates, slots, policy), threads=threads)
        assert (run(engine, PROMPT, STEPS) == everything).all()
        stats = engine.sparse_stats
        share = stats["candidates"] / (len(STEPS) * LAYERS * NEURONS)
        assert 0.4 < share < 0.6  # half of the gates are positive
        assert (stats["missed"] == stats["candidates"]) == (slots == 0)


def test_greedy_tokens_are_the_dense_engines(pair: tuple[SparseModel, Gates], everything: NDArray[np.float32]) -> None:
    """That multiplies f32 weights with f32 inputs: near, and with the same likeliest token where that is clear."""
    dense = run(pair[0].dense(), PROMPT, STEPS)
    two = np.sort(dense, axis=1)[:, -2:]
    clear = two[:, 1] - two[:, 0] > 4 * np.abs(dense - everything).max(axis=1)
    assert clear.sum() >= len(clear) // 2
    assert (dense.argmax(axis=1) == everything.argmax(axis=1))[clear].all()


def test_what_is_read(pair: tuple[SparseModel, Gates]) -> None:
    """All gates, once for each token and once ahead, and of the missing neurons all but the gate."""
    model, gates = pair
    engine = model.sparse(options(gates, 0, backend="memory"))
    before = engine.sparse_stats
    run(engine, PROMPT[:1], STEPS)
    after = engine.sparse_stats
    in_order = LAYERS * 3 * gates.stride
    held = -(-2 * _core.vector_bytes(gates.fmt, HIDDEN) // 64) * 64
    missed = after["missed"] - before["missed"]
    read = after["bytes_read"] - before["bytes_read"]
    tokens = 1 + len(STEPS)
    assert tokens * in_order + missed * held <= read
    assert read <= (tokens + 5) * in_order + LAYERS * tokens * NEURONS * model.stride  # gaps between neighbours


@pytest.mark.parametrize("kind", ["short", "flaky"])
def test_reads_that_stop_short_change_nothing(
    pair: tuple[SparseModel, Gates], everything: NDArray[np.float32], kind: str
) -> None:
    model, gates = pair
    engine = model.sparse(options(gates, 1500, backend=f"fault:{kind}:1:0.3"))
    assert (run(engine, PROMPT, STEPS) == everything).all()


@pytest.mark.parametrize(("kind", "error"), [("error", StorageError), ("cut", StorageError), ("corrupt", FormatError)])
def test_reads_that_fail_are_named_and_the_next_step_is_right(
    pair: tuple[SparseModel, Gates], everything: NDArray[np.float32], kind: str, error: type[HotsetError]
) -> None:
    """The step is undone, so that the same token can be tried again until its reads succeed."""
    model, gates = pair
    engine = model.sparse(options(gates, 1500, backend=f"fault:{kind}:3:0.02"))
    ids, failed, rows = np.array([engine.sequence_new()], np.int32), 0, []
    for token in [*PROMPT, *STEPS]:
        for _ in range(500):
            try:
                engine.step(ids, np.ones(1, np.int32), np.array([token], np.int32), np.ones(1, np.uint8))
                break
            except error as what:
                failed += 1
                assert str(gates.path) in str(what) or str(model.path) in str(what)
        rows.append(engine.logits()[0].copy())
    assert failed > 0
    assert (np.array(rows[len(PROMPT) - 1 :]) == everything).all()


def test_damaged_gates_are_named(pair: tuple[SparseModel, Gates], tmp_path: Path) -> None:
    model, gates = pair
    data = bytearray(gates.path.read_bytes())
    vector = _core.vector_bytes(gates.fmt, HIDDEN)
    data[gates.offsets[1] + 2 * gates.stride + 75 * vector] ^= 4  # neuron 1099 of layer 1
    broken = Gates(tmp_path / "broken.bin", gates.fmt, gates.stride, gates.offsets, gates.sums, gates.rest)
    broken.path.write_bytes(data)
    offset = gates.offsets[1] + 2 * gates.stride + 64 * vector
    with pytest.raises(FormatError, match=f"gates of neurons 1088 to 1099 of layer 1 .* at offset {offset}"):
        run(model.sparse(options(broken, 500)), PROMPT[:1], STEPS)


def test_gates_that_were_damaged_are_read_again(
    pair: tuple[SparseModel, Gates], everything: NDArray[np.float32]
) -> None:
    """Also those that the next token wants first."""
    model, gates = pair
    whole, engine = gates.path.read_bytes(), model.sparse(options(gates, 500))
    gates.path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(FormatError, match="gates of neurons 0 to 15 of layer 0 "):
        run(engine, PROMPT[:1], [])
    gates.path.write_bytes(whole)
    assert (run(engine, PROMPT, STEPS) == everything).all()


def test_several_tokens_a_step(pair: tuple[SparseModel, Gates]) -> None:
    """Sequences side by side are what they are alone."""
    model, gates = pair
    alone = [run(model.sparse(options(gates, 900)), [first], STEPS[:6]) for first in range(8)]
    engine = model.sparse(options(gates, 900))
    seqs = np.array([engine.sequence_new() for _ in alone], np.int32)
    for number in range(7):
        tokens = [first if number == 0 else STEPS[number - 1] for first in range(8)]
        engine.step(seqs, np.ones(8, np.int32), np.array(tokens, np.int32), np.ones(8, np.uint8))
        for row, want in zip(engine.logits(), alone, strict=True):
            assert (row == want[number]).all()


def test_refused(pair: tuple[SparseModel, Gates]) -> None:
    model, gates = pair
    with pytest.raises(UsageError, match="no neurons are hot"):
        model.sparse(options(gates, 100, hot=5))
    with pytest.raises(UsageError, match="given together"):
        _core.SparseOptions([0] * LAYERS, 100, predictor="read-gate", keep=LEAST, fetch=LEAST)
    short = Gates(gates.path, gates.fmt, gates.stride - 4096, gates.offsets, gates.sums, gates.rest)
    with pytest.raises(UsageError, match="holds less"):
        model.sparse(options(short, 100))
    other = Gates(gates.path, gates.fmt, gates.stride, gates.offsets[:2], gates.sums[:2], gates.rest)
    with pytest.raises(UsageError, match="those of other neurons: 2 layers"):
        model.sparse(options(other, 100))
    short = Gates(gates.path, gates.fmt, gates.stride, gates.offsets, gates.sums[:2], gates.rest)
    with pytest.raises(UsageError, match="layers"):
        model.sparse(options(short, 100))
