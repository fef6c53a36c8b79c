"""Every kernel of every ISA this machine supports, against the formula in float64.

Tolerances follow from the length n of a sum, the rounding unit U and the size of its terms (standard model of
floating point: |error| <= n * U * sum |terms|), not from what the kernels happen to give.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from hotset import _core
from hotset.errors import HostError, UsageError
from hotset.reference import ops

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U = 2.0**-24  # rounding unit of float32
ISAS = [isa.name for isa in _core.isa_list() if isa.supported]
LENGTHS = [1, 5, 16, 31, 64, 65, 576, 1000]
SHAPES = [(16, 64), (1, 32), (33, 96), (50, 200), (128, 576)]
QUANTIZED = {"q8_0": 34, "q4_0": 18, "q4_1": 20}  # bytes of a GGUF block


def random(*shape: int, seed: int = 0) -> F32:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def assert_close(got: F32, want: F64, tolerance: F64 | float) -> None:
    excess = np.abs(got - want) - tolerance
    assert np.isfinite(got).all()
    assert excess.max(initial=-1) <= 0, (
        f"{excess.max()} beyond the tolerance at {np.unravel_index(excess.argmax(), excess.shape)}"
    )


def pack(fmt: str, weights: F32) -> NDArray[np.uint8]:
    packed = np.zeros(_core.packed_bytes(fmt, *weights.shape), np.uint8)
    _core.encode(fmt, weights, packed)
    return packed


def unpack(fmt: str, packed: NDArray[np.uint8], rows: int, cols: int) -> F64:
    """[rows, cols] by the layout that native/quant/format.h describes, in NumPy."""
    row_blocks, col_blocks = math.ceil(rows / 16), math.ceil(cols / 64)
    blocks = packed.reshape(row_blocks, col_blocks, -1)
    if fmt in {"f32", "f16", "bf16"}:
        if fmt == "bf16":
            values = (blocks.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            values = blocks.view({"f32": np.float32, "f16": np.float16}[fmt])
        w = values.astype(np.float64).reshape(row_blocks, col_blocks, 64, 16).transpose(0, 3, 1, 2)
        return w.reshape(row_blocks * 16, col_blocks * 64)[:rows, :cols]
    halves = 2 if fmt == "q4_1" else 1
    head = blocks[:, :, : 64 * halves].copy().view(np.float16).astype(np.float64)
    head = head.reshape(row_blocks, col_blocks, halves, 2, 16)  # [.., scale or offset, g, r]
    codes = blocks[:, :, 64 * halves :]
    if fmt == "q8_0":
        code = codes.reshape(row_blocks, col_blocks, 2, 8, 16, 4)  # [.., g, j, r, b]
    else:
        nibbles = codes.reshape(row_blocks, col_blocks, 2, 4, 16, 4)
        code = np.concatenate([nibbles & 15, nibbles >> 4], axis=3)
    code = code.transpose(0, 4, 1, 2, 3, 5).reshape(row_blocks, 16, col_blocks, 2, 32).astype(np.float64)
    scale = head[:, :, 0].transpose(0, 3, 1, 2)[..., None]
    offset = head[:, :, 1].transpose(0, 3, 1, 2)[..., None] if fmt == "q4_1" else -{"q8_0": 128, "q4_0": 8}[fmt] * scale
    return (scale * code + offset).reshape(row_blocks * 16, col_blocks * 64)[:rows, :cols]


# --- weight formats -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1"])
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_packed_layout_holds_the_weights(fmt: str, rows: int, cols: int) -> None:
    weights = random(rows, cols)
    packed = pack(fmt, weights)
    decoded = _core.decode(fmt, packed, rows, cols)
    exact = unpack(fmt, packed, rows, cols)
    assert_close(decoded, exact, 2 * U * np.abs(exact).max())
    groups = np.zeros((rows, math.ceil(cols / 32) * 32))
    groups[:, :cols] = np.abs(weights)
    largest = np.repeat(groups.reshape(rows, -1, 32).max(axis=2), 32, axis=1)[:, :cols]
    # Half a step of the plainest code of that width, and f16's rounding of scale and offset on top.
    step = {"f32": 0.0, "f16": 2.0**-11, "bf16": 2.0**-8, "q8_0": 1 / 127, "q4_0": 1 / 7, "q4_1": 2 / 15}[fmt]
    rms = math.sqrt(np.mean((exact - weights) ** 2))
    assert rms <= (step / 2 + 2.0**-10 * (fmt in QUANTIZED)) * math.sqrt(np.mean(largest**2))


@pytest.mark.parametrize("fmt", ["q8_0", "q4_0", "q4_1"])
def test_encode_reports_the_error_and_ignores_threads(fmt: str) -> None:
    weights = random(70, 128)
    one, four = (np.zeros(_core.packed_bytes(fmt, 70, 128), np.uint8) for _ in range(2))
    sums = _core.encode(fmt, weights, one, threads=1)
    assert _core.encode(fmt, weights, four, threads=4) == sums
    assert (one == four).all()
    error = unpack(fmt, one, 70, 128) - weights
    assert sums == pytest.approx((np.sum(error**2), np.sum(weights.astype(float) ** 2), np.abs(error).max()), rel=1e-5)


def ggml_blocks(fmt: str, rows: int, cols: int) -> tuple[NDArray[np.uint8], F64]:
    """Random GGUF blocks and the weights they stand for."""
    rng = np.random.default_rng(3)
    count = rows * cols // 32
    scale = rng.uniform(0.01, 1, (count, 1)).astype(np.float16)
    offset = rng.uniform(-1, 0, (count, 1)).astype(np.float16)
    codes = rng.integers(-127, 128, (count, 32)) if fmt == "q8_0" else rng.integers(0, 16, (count, 32))
    if fmt == "q8_0":
        raw = np.hstack([scale.view(np.uint8), codes.astype(np.int8).view(np.uint8)])
        return raw.reshape(-1), (scale.astype(float) * codes).reshape(rows, cols)
    nibbles = (codes[:, :16] | codes[:, 16:] << 4).astype(np.uint8)
    if fmt == "q4_0":
        return np.hstack([scale.view(np.uint8), nibbles]).reshape(-1), (scale.astype(float) * (codes - 8)).reshape(
            rows, cols
        )
    raw = np.hstack([scale.view(np.uint8), offset.view(np.uint8), nibbles])
    return raw.reshape(-1), (scale.astype(float) * codes + offset.astype(float)).reshape(rows, cols)


@pytest.mark.parametrize("fmt", QUANTIZED)
@pytest.mark.parametrize(("rows", "cols"), [(16, 64), (33, 96), (1, 32)])
def test_repacked_gguf_blocks_keep_every_value(fmt: str, rows: int, cols: int) -> None:
    blocks, weights = ggml_blocks(fmt, rows, cols)
    packed = np.zeros(_core.packed_bytes(fmt, rows, cols), np.uint8)
    _core.repack_ggml(fmt, blocks, rows, cols, packed)
    assert (unpack(fmt, packed, rows, cols) == weights).all()


# --- products -----------------------------------------------------------------------------------------


def quantized_input(isa: str, x: F32) -> F64:
    """What the kernel multiplies with: x after quantize_q8, which has its own test."""
    out = np.zeros(x.shape)
    for i, row in enumerate(x):
        codes, scales = _core.quantize_q8(isa, row)
        out[i] = (codes.astype(float).reshape(-1, 32) * scales[:, None].astype(float)).reshape(-1)[: x.shape[1]]
    return out


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fmt", ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1"])
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_matmul(isa: str, fmt: str, rows: int, cols: int) -> None:
    packed, x = pack(fmt, random(rows, cols)), random(19, cols, seed=1)
    weights = unpack(fmt, packed, rows, cols)
    inputs = quantized_input(isa, x) if fmt in QUANTIZED else x.astype(float)
    got = _core.matmul(isa, fmt, packed, rows, cols, x)
    # q4_1 adds scale * code and offset, which may cancel: bounded by the parts, at most 15 steps of the scale.
    parts = np.abs(weights) + (np.abs(weights).max() * 2 if fmt == "q4_1" else 0)
    assert_close(got, inputs @ weights.T, (cols + 4) * U * (np.abs(inputs) @ parts.T))
    alone = np.vstack([_core.matmul(isa, fmt, packed, rows, cols, x[i : i + 1]) for i in range(len(x))])
    assert (got == alone).all()  # a result never depends on the tile it is computed in


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", LENGTHS)
def test_quantize_q8(isa: str, n: int) -> None:
    x = random(n) * np.float32(3)
    codes, scales = _core.quantize_q8(isa, x)
    padded = np.zeros(len(codes))
    padded[:n] = x
    largest = np.abs(padded.reshape(-1, 32)).max(axis=1)
    assert_close(scales, largest / 127, 2 * U * largest)
    assert np.abs(codes.astype(int)).max() <= 127
    assert not codes[n:].any()
    step = np.repeat(scales.astype(float), 32)
    assert_close(codes * np.float64(1), padded / np.where(step > 0, step, 1), 0.5 + 127 * 4 * U)


@pytest.mark.parametrize("isa", ISAS)
def test_quantize_q8_of_zeros_and_tiny_values(isa: str) -> None:
    codes, scales = _core.quantize_q8(isa, np.zeros(64, np.float32))
    assert not codes.any()
    assert not scales.any()
    codes, scales = _core.quantize_q8(isa, np.full(32, 1e-40, np.float32))  # its inverse scale would be infinite
    assert np.isfinite(scales).all()
    assert np.abs(codes * scales[0].astype(float)).max() <= 2e-40


# --- vectors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("with_weight", [True, False])
def test_rms_norm(isa: str, n: int, with_weight: bool) -> None:
    x, w = random(n), random(n, seed=1)
    want = x / np.sqrt(np.mean(x.astype(float) ** 2) + 1e-5) * (w.astype(float) if with_weight else 1)
    assert_close(
        _core.norm(isa, "rms", x, w if with_weight else None, None, 1e-5), want, (n / 2 + 6) * U * np.abs(want)
    )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("with_bias", [True, False])
def test_layer_norm(isa: str, n: int, with_bias: bool) -> None:
    x, w, b = random(n) + np.float32(0.5), random(n, seed=1), random(n, seed=2)
    wide = x.astype(float)
    deviation = math.sqrt(wide.var() + 1e-5)
    centred = (wide - wide.mean()) / deviation * w
    want = centred + (b if with_bias else 0)
    mean_error = (n + 2) * U * np.abs(wide).mean() / deviation  # also what it does to the variance, to first order
    tolerance = 2 * mean_error * np.abs(w) + (n / 2 + 8) * U * np.abs(centred) + 2 * U * np.abs(want)
    assert_close(_core.norm(isa, "layer", x, w, b if with_bias else None, 1e-5), want, tolerance)


ERF = np.vectorize(math.erf)


def activation(name: str, x: F64, threshold: float = 0) -> F64:
    formulas = {
        "none": lambda: x,
        "silu": lambda: x / (1 + np.exp(-x)),
        "gelu": lambda: x / 2 * (1 + ERF(x / math.sqrt(2))),
        "gelu_tanh": lambda: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "relu": lambda: np.maximum(x, 0),
        "relu2": lambda: np.maximum(x, 0) ** 2,
        "shifted_relu": lambda: np.where(x > threshold, x, 0),
    }
    return formulas[name]()  # type: ignore[no-untyped-call]


ACTIVATIONS = ["none", "silu", "gelu", "gelu_tanh", "relu", "relu2", "shifted_relu"]
FEW = 16  # roundings in the longest of these formulas, exp and erf to about 4 of them


def activation_tolerance(name: str, x: F64) -> F64:
    return FEW * U * (x**2 if name == "relu2" else np.abs(x)) + 2.0**-126


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activate(isa: str, name: str) -> None:
    x = np.concatenate([np.linspace(-30, 30, 997), random(64), [0.25, 0.0, -0.0, 80, -80, 1e4, -1e4]]).astype(
        np.float32
    )
    wide = x.astype(float)
    with np.errstate(over="ignore"):
        want = activation(name, wide, 0.25)
    assert_close(_core.activate(isa, name, 0.25, x), want, activation_tolerance(name, wide))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("gate_act", "up_act"), [("silu", "none"), ("gelu_tanh", "none"), ("relu", "relu"), ("shifted_relu", "relu2")]
)
@pytest.mark.parametrize("n", LENGTHS)
def test_glu(isa: str, gate_act: str, up_act: str, n: int) -> None:
    gate, up = random(n), random(n, seed=1)
    f, h = activation(gate_act, gate.astype(float), 0.1), activation(up_act, up.astype(float), 0.2)
    f_error, h_error = (
        activation_tolerance(gate_act, gate.astype(float)),
        activation_tolerance(up_act, up.astype(float)),
    )
    tolerance = f_error * np.abs(h) + h_error * np.abs(f) + 2 * U * np.abs(f * h) + 2.0**-126
    assert_close(_core.glu(isa, gate_act, up_act, gate, up, 0.1, 0.2), f * h, tolerance)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["none", "relu", "relu2", "shifted_relu"])
def test_expected(isa: str, name: str) -> None:
    tolerance = 0.07 if name == "relu2" else 0.035
    noise = np.tile(np.float32([1e-3, 0.1, 1, 7]), 300)
    z = np.random.default_rng(3).uniform(-3.5, 6, len(noise)).astype(np.float32)
    x = z * noise + (0.25 if name == "shifted_relu" else 0)
    got = _core.expected(isa, name, 0.25, noise, x)
    assert got == pytest.approx(ops.expected(name, x, noise, 0.25), rel=tolerance)
    # Without noise it is the activation; far from its zeros, too; and where it is zero, order is kept.
    sure = np.float32([-5, -0.1, 0, 0.1, 5])
    assert _core.expected(isa, name, 0.0, np.zeros(5, np.float32), sure) == pytest.approx(
        np.abs(activation(name, sure.astype(float), 0.0)), abs=1e-6
    )
    far = np.linspace(-8, 0, 50, dtype=np.float32)
    if name != "none":
        assert (np.diff(_core.expected(isa, name, 0.0, np.ones(50, np.float32), far)) > 0).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("half", [1, 4, 16, 33, 64])
def test_rope(isa: str, half: int) -> None:
    angles = np.random.default_rng(2).uniform(0, 100, half)
    cos, sin, x = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32), random(2 * half)
    z = (x[:half] + 1j * x[half:].astype(float)) * (cos + 1j * sin.astype(float))
    bound = np.tile(3 * U * (np.abs(x[:half]) + np.abs(x[half:])).astype(float), 2)
    assert_close(_core.rope(isa, cos, sin, x), np.concatenate([z.real, z.imag]), bound)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", [*LENGTHS, 49152])
def test_logsumexp(isa: str, n: int) -> None:
    x = random(n) * np.float32(4) + np.float32(10)
    largest, total = _core.logsumexp(isa, x)
    want = float(x.max()) + math.log(np.exp(x.astype(float) - float(x.max())).sum())
    assert largest == x.max()
    assert abs(total - want) <= (n + FEW) * U + 2 * U * abs(want)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", [1, 63, 64, 65, 200, 50000])
def test_block_maxima(isa: str, n: int) -> None:
    x = random(n)
    want = np.maximum.reduceat(x, np.arange(0, n, 64))
    got, finite = _core.block_maxima(isa, x)
    assert finite
    np.testing.assert_array_equal(got, want)
    for bad in (np.nan, np.inf, -np.inf):
        for at in {0, n // 2, n - 1}:
            y = x.copy()
            y[at] = bad
            assert not _core.block_maxima(isa, y)[1]
    x[n // 2] = -np.inf
    np.testing.assert_array_equal(_core.block_maxima(isa, x)[0], np.maximum.reduceat(x, np.arange(0, n, 64)))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", [1, 15, 17, 1023, 1024, 1041, 50000])
@pytest.mark.parametrize("scale", [0.3, 1.0, 7.0, 3e38])
def test_softmax_weights(isa: str, n: int, scale: float) -> None:
    x = random(n) * np.float32(4)
    x[:: max(1, n // 3)] = -np.inf
    x[n // 2] = 20
    got, sums = _core.softmax_weights(isa, x, 20.0, scale)
    with np.errstate(over="ignore"):
        y = ((x - np.float32(20)) * np.float32(scale)).astype(float)
    want = np.where(y > -87, np.exp(y), 0)
    assert got[n // 2] == 1
    assert_close(got, want, 4 * U * want)
    np.testing.assert_allclose(sums, np.add.reduceat(got.astype(float), np.arange(0, n, 1024)), rtol=64 * U)
    for twin in zip((got, sums), _core.softmax_weights("scalar", x, 20.0, scale), strict=True):
        assert twin[0].tobytes() == twin[1].tobytes()


# --- attention ----------------------------------------------------------------------------------------


def exact_codes(tokens: int, width: int, seed: int) -> F32:
    """Rows that int8 holds without loss: codes times a power of two, the largest code of 32 columns 127."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(-126, 127, (tokens, width)).astype(np.float32)
    for group in range(0, width, 32):
        codes[np.arange(tokens), rng.integers(group, min(group + 32, width), tokens)] = 127
    return codes * np.float32(2.0) ** rng.integers(-8, -5, (tokens, 1)).astype(np.float32)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv", ["f16", "int8"])
@pytest.mark.parametrize(
    ("queries", "tokens", "width"), [(1, 1, 16), (3, 64, 64), (20, 65, 72), (16, 300, 128), (5, 200, 8)]
)
def test_attend(isa: str, kv: str, queries: int, tokens: int, width: int) -> None:
    q = random(queries, width) / np.float32(math.sqrt(width))
    if kv == "int8":
        k, v = exact_codes(tokens, width, 1), exact_codes(tokens, width, 2)
    else:
        k, v = (random(tokens, width, seed=s).astype(np.float16).astype(np.float32) for s in (1, 2))
    rng = np.random.default_rng(4)
    hi = rng.integers(1, tokens + 1, queries)
    lo = np.where(rng.random(queries) < 0.5, 0, rng.integers(0, hi))
    got = _core.attend(isa, kv, q, k, v, lo, hi)
    want, tolerance = np.zeros(q.shape), np.zeros(q.shape)
    for i in range(queries):
        keys, values = k[lo[i] : hi[i]].astype(float), v[lo[i] : hi[i]].astype(float)
        scores = keys @ q[i]
        weights = np.exp(scores - scores.max())
        want[i] = weights @ values / weights.sum()
        word = 0.501 / 32767 if kv == "int8" else 0  # queries and weights become int16
        score_error = 2 * (width + 4) * U * (np.abs(keys) @ np.abs(q[i])).max()
        score_error += word * np.abs(q[i]).max() * np.abs(keys).sum(axis=1).max()
        terms = weights @ np.abs(values) / weights.sum()
        tolerance[i] = terms * 2 * (score_error + (len(keys) + FEW) * U)
        tolerance[i] += word * len(keys) * (weights * np.abs(values).max(axis=1)).max() / weights.sum()
    assert_close(got, want, tolerance)


@pytest.mark.parametrize("isa", ISAS)
def test_a_query_that_sees_nothing_gives_zeros(isa: str) -> None:
    x = random(4, 16)
    nothing = np.array([2, 0, 4, 1])
    assert not _core.attend(isa, "f16", x, x, x, nothing, nothing).any()


# --- refusals -----------------------------------------------------------------------------------------


def test_wrong_arrays_are_named() -> None:
    w = random(16, 64)
    out = np.zeros(_core.packed_bytes("q4_0", 16, 64), np.uint8)
    with pytest.raises(UsageError, match="weights is an array of float64, wanted float32"):
        _core.encode("q4_0", w.astype(float), out)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"weights has shape \[64\], wanted \[any, any\]"):
        _core.encode("q4_0", w[0], out)
    with pytest.raises(UsageError, match="weights is not contiguous"):
        _core.encode("q4_0", w[:, ::2], out)
    with pytest.raises(UsageError, match=r"out has shape \[575\], wanted \[576\]"):
        _core.encode("q4_0", w, out[:-1])
    with pytest.raises(UsageError, match="weights is a list, wanted a NumPy array"):
        _core.encode("q4_0", [1.0], out)  # type: ignore[arg-type]
    out.flags.writeable = False
    with pytest.raises(UsageError, match="wanted a writable NumPy array"):
        _core.encode("q4_0", w, out)


def test_unknown_names_are_refused_with_the_choices() -> None:
    x = random(4)
    with pytest.raises(HostError, match="scalar"):
        _core.block_maxima("sse9", x)
    with pytest.raises(UsageError, match="q4_0"):
        _core.packed_bytes("q3_k", 16, 64)
    with pytest.raises(UsageError, match="rms or layer"):
        _core.norm("scalar", "batch", x, None, None, 1e-5)
    with pytest.raises(UsageError, match="f16 or int8"):
        _core.attend("scalar", "f8", x[None], x[None], x[None], np.zeros(1, np.int64), np.ones(1, np.int64))
    with pytest.raises(UsageError, match="multiple of 32"):
        _core.repack_ggml("q4_0", np.zeros(18, np.uint8), 1, 33, np.zeros(576, np.uint8))
    with pytest.raises(UsageError, match="within the 1 tokens"):
        _core.attend("scalar", "f16", x[None], x[None], x[None], np.zeros(1, np.int64), np.full(1, 2))
    with pytest.raises(UsageError, match=r"exceeds 2\^28"):
        _core.packed_bytes("f32", 1 << 40, 1 << 40)
