"""Logits of every family against transformers: first the NumPy twin, then the native engine through a store.

Tolerances come from reference/tolerance.py: rounding of float32, carried through the model at hand. For the KV cache
the twin rounds keys and values as the native cache does, so the engine has to meet the twin tightly even in int8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from vectors import FOLDER, NAMES, Vector, load

from hotset import _core
from hotset.config import ModelConfig
from hotset.formats.store import Store, open_store
from hotset.models import resolve
from hotset.reference.arithmetic import Arithmetic
from hotset.reference.forward import Forward
from hotset.reference.kv import KvKind
from hotset.reference.packed import decode
from hotset.reference.tolerance import rounding_tolerance
from hotset.tools.convert import convert

ISAS = [isa.name for isa in _core.isa_list() if isa.compiled and isa.supported]
STORED = {"llama_biases_tied": "f16", "llama_linear": "f16", "opt_no_bias": "f32"}  # the others: bf16
OpenStore = Callable[[str, str], Store]
Logits = NDArray[np.float32]
Rows = NDArray[np.float64]


@pytest.fixture(params=NAMES)
def vector(request: pytest.FixtureRequest) -> Vector:
    return load(request.param)


# --- the twin ---------------------------------------------------------------------------------------


def test_twin_equals_transformers(vector: Vector) -> None:
    assert_close(vector.twin("exact"), vector.logits, vector.tolerance("exact"))


def test_tolerances_leave_greedy_choices_unambiguous(vector: Vector) -> None:
    assert np.all(gaps(choices(vector, vector.logits)) > choices(vector, vector.tolerance("exact"))[:, 0])


MISTAKES: dict[str, tuple[str, Callable[[ModelConfig], ModelConfig]]] = {
    "epsilon ten times too large": ("llama", lambda c: replace(c, norm_eps=10 * c.norm_eps)),
    "scores 0.1 % off": ("llama", lambda c: replace(c, attention_scale=1.001 * c.attention_scale)),
    "window one token too long": ("mistral", lambda c: windows(c, 1)),
    "window one token too short": ("qwen2", lambda c: windows(c, -1)),
    "local and global base swapped": ("gemma3_layer_types", lambda c: replace(c, ropes=c.ropes[::-1])),
    "norm offset forgotten": ("gemma3", lambda c: replace(c, norm_offset=0.0)),
    "logits not capped": ("gemma3", lambda c: replace(c, logit_softcap=0.0)),
    "tanh GELU instead of erf": ("llama_biases_tied", lambda c: replace(c, act_gate="gelu_tanh")),
    "mscale forgotten": ("llama_yarn", lambda c: replace(c, ropes=(replace(c.ropes[0], attention_factor=1.0),))),
    "dynamic base not grown": ("llama_dynamic", lambda c: replace(c, ropes=(replace(c.ropes[0], dynamic_factor=0.0),))),
    "positions one too early": ("opt", lambda c: replace(c, position_offset=1)),
    "q and k not normed": ("olmo2", lambda c: replace(c, qk_norm="none")),
}


def windows(config: ModelConfig, change: int) -> ModelConfig:
    layers = tuple(replace(x, window=x.window + change) if x.window else x for x in config.layers)
    return replace(config, layers=layers)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_tolerance_is_tight_enough_to_see_a_mistake(mistake: str) -> None:
    name, spoil = MISTAKES[mistake]
    vector = load(name)
    forward = Forward(spoil(vector.model.config), vector.weights)
    rows = forward.step(forward.cache(), vector.tokens)
    error = np.abs(rows - vector.logits[: len(rows)])
    assert np.any(error > vector.tolerance("exact")[: len(rows)])


# --- the engine -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> OpenStore:
    """Converts a vector's checkpoint to a store, once for each weight format."""
    root = tmp_path_factory.mktemp("stores")

    def store(name: str, fmt: str) -> Store:
        dest = root / f"{name}-{fmt}"
        if not dest.exists():
            convert(FOLDER / name, dest, quant=fmt)
        return open_store(dest)

    return store


def engine(store: Store, isa: str, kv: KvKind = "f16", threads: int = 2) -> _core.Engine:
    model = resolve(store.config)
    tensors = [
        _core.TensorRef(spec.role, spec.layer, str(e.path), e.offset, e.bytes, e.fmt, e.rows, e.cols)
        for spec in model.tensors
        for e in [store.entries[spec.name]]
    ]
    return _core.Engine(
        model.config.to_native(), tensors, isa=isa, kv_type=kv, kv_tokens=1024, threads=threads, pin=False
    )


def step(core: _core.Engine, parts: Sequence[tuple[int, Sequence[int]]], rope_length: int = 0) -> list[Logits]:
    """One step that appends tokens to each of some sequences; the logits after every token, by sequence."""
    counts = [len(tokens) for _, tokens in parts]
    core.step(
        np.array([seq for seq, _ in parts], np.int32),
        np.array(counts, np.int32),
        np.concatenate([tokens for _, tokens in parts]).astype(np.int32),
        np.full(len(parts), 2, np.uint8),
        np.full(len(parts), rope_length, np.int64) if rope_length else None,
    )
    ends = np.cumsum([0, *counts])
    return [core.logits()[a:b].copy() for a, b in pairwise(ends)]


def prompt(core: _core.Engine, tokens: Sequence[int], chunk: int) -> tuple[int, Logits]:
    """A new sequence fed `chunk` tokens at a time, and all its logits."""
    seq = core.sequence_new()
    cuts = [tokens[i : i + chunk] for i in range(0, len(tokens), chunk)]
    return seq, np.concatenate([step(core, [(seq, cut)], rope_length=len(tokens))[0] for cut in cuts])


def greedy(core: _core.Engine, seq: int, last: Logits, count: int) -> Iterator[tuple[int, Logits]]:
    for _ in range(count):
        token = int(np.argmax(last))
        last = step(core, [(seq, [token])])[0][0]
        yield token, last


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("kv", ["f16", "int8"])
def test_engine_prefill_and_greedy_continuation(vector: Vector, isa: str, kv: KvKind, stores: OpenStore) -> None:
    name = vector.folder.name
    core = engine(stores(name, STORED.get(name, "bf16")), isa, kv)
    seq, rows = prompt(core, vector.tokens, len(vector.tokens))
    if kv == "f16":
        continued = list(greedy(core, seq, rows[-1], len(vector.continuation)))
        assert [token for token, _ in continued] == vector.continuation
        rows = np.concatenate([rows, np.stack([row for _, row in continued])])
    assert_engine_close(vector, rows, kv)


def assert_engine_close(vector: Vector, rows: Logits, kv: KvKind) -> None:
    """Against the twin with the same KV cache, and against transformers with what that cache costs on top."""
    n = len(rows)
    twin, exact = vector.twin(kv)[:n], vector.twin("exact")[:n]
    clean, tipped = vector.tolerance("exact")[:n], vector.tolerance(kv)[:n].max()
    assert_meets_twin(rows, twin, clean, tipped)
    assert_close(rows, vector.logits[:n], clean + tipped + np.abs(twin - exact))


def assert_meets_twin(rows: Logits, twin: Rows, clean: Rows, tipped: float) -> None:
    """Where values are kept in few bits, rounding in float32 may tip a code over, here and there and rarely.

    So every row must lie within what that may do, and some row must show float32 rounding and nothing else.
    """
    assert_close(rows, twin, np.full_like(clean, tipped))
    assert np.any(np.all(np.abs(rows - twin) <= clean, axis=1)), "no row is as close as float32 allows"


@pytest.mark.parametrize("name", NAMES)
def test_cutting_a_prompt_changes_no_bit(name: str, isa: str, stores: OpenStore) -> None:
    vector = load(name)
    core = engine(stores(name, STORED.get(name, "bf16")), isa)
    _, whole = prompt(core, vector.tokens, len(vector.tokens))
    for chunk in (1, 7, 16, 33):
        _, rows = prompt(core, vector.tokens, chunk)
        np.testing.assert_array_equal(rows, whole, err_msg=f"chunks of {chunk}")


@pytest.mark.parametrize("name", NAMES)
def test_batching_sequences_changes_no_bit(name: str, isa: str, stores: OpenStore) -> None:
    vector = load(name)
    tokens, n = vector.tokens, len(vector.tokens)
    core = engine(stores(name, STORED.get(name, "bf16")), isa)
    _, whole = prompt(core, tokens, n)
    a, b, c = (core.sequence_new() for _ in range(3))
    first = step(core, [(a, tokens[:20]), (b, tokens), (c, tokens[:1])], rope_length=n)
    then = step(core, [(c, tokens[1:n]), (a, tokens[20:21])], rope_length=n)
    last = step(core, [(a, tokens[21:n])], rope_length=n)
    np.testing.assert_array_equal(first[1], whole)
    np.testing.assert_array_equal(np.concatenate([first[0], then[1], last[0]]), whole)
    np.testing.assert_array_equal(np.concatenate([first[2], then[0]]), whole)


@pytest.mark.parametrize("name", ["llama", "gemma3", "opt"])
def test_threads_change_no_bit(name: str, isa: str, stores: OpenStore) -> None:
    vector = load(name)
    store = stores(name, "bf16")
    _, one = prompt(engine(store, isa, threads=1), vector.tokens, 64)
    _, three = prompt(engine(store, isa, threads=3), vector.tokens, 64)
    np.testing.assert_array_equal(one, three)


@pytest.mark.parametrize("fmt", ["f32", "f16"])
def test_other_exact_weight_formats(fmt: str, isa: str, stores: OpenStore) -> None:
    name = "llama_linear"  # its weights are f16
    vector = load(name)
    _, rows = prompt(engine(stores(name, fmt), isa), vector.tokens, len(vector.tokens))
    assert_engine_close(vector, rows, "f16")


def stored_weights(store: Store) -> dict[tuple[str, int], Rows]:
    """The values the kernels compute with, decoded by the twin of the packed layout."""
    out = {}
    for spec in resolve(store.config).tensors:
        e = store.entries[spec.name]
        data = np.fromfile(e.path, np.uint8, e.bytes, offset=e.offset)
        values = decode(e.fmt, data, e.rows, e.cols) if e.cols else data.view("<f4").astype(np.float64)
        out[spec.role, spec.layer] = values
    return out


@pytest.mark.parametrize("fmt", ["q4_0", "q4_1", "q8_0", "attention=q8_0,ffn=q4_0,embedding=q8_0,head=q4_1"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "opt", "olmo2"])
def test_quantized_weights_equal_the_twin_in_int8(name: str, fmt: str, stores: OpenStore) -> None:
    vector = load(name)
    store = stores(name, fmt)
    weights = stored_weights(store)

    def twin(arithmetic: Arithmetic) -> Rows:
        forward = Forward(vector.model.config, weights, arithmetic=arithmetic, kv="f16")
        return forward.step(forward.cache(), vector.tokens)

    want = twin(Arithmetic(int8=True))
    clean, tipped = rounding_tolerance(twin), rounding_tolerance(twin, int8=True).max()
    for isa in ISAS:
        core = engine(store, isa)
        _, rows = prompt(core, vector.tokens, len(vector.tokens))
        assert_meets_twin(rows, want, clean, tipped)
        _, chunked = prompt(core, vector.tokens, 7)
        np.testing.assert_array_equal(chunked, rows, err_msg=isa)


# --- helpers ----------------------------------------------------------------------------------------


def assert_close(got: NDArray[np.floating], want: NDArray[np.floating], tolerance: NDArray[np.floating]) -> None:
    assert got.shape == want.shape
    error = np.abs(got.astype(np.float64) - want)
    if np.all(error <= tolerance):  # a NaN fails
        return
    row, token = np.unravel_index(np.argmax(np.nan_to_num(error / tolerance, nan=np.inf)), error.shape)
    allowed = np.broadcast_to(tolerance, error.shape)[row, token]
    pytest.fail(f"row {row}, token {token}: got {got[row, token]}, wanted {want[row, token]} +- {allowed:.2e}")


def choices(vector: Vector, rows: Rows) -> Rows:
    """The rows whose argmax is a greedy choice: the prompt's last and the continuation's."""
    return rows[len(vector.tokens) - 1 :]


def gaps(rows: Rows) -> Rows:
    """Distance of the two best logits of each row."""
    best = np.sort(rows, axis=-1)[:, -2:]
    return np.asarray(best[:, 1] - best[:, 0])
