"""The twins themselves, against single numbers, plain loops and the native core."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from hotset import _core
from hotset.config import Activation, LayerConfig, ModelConfig, RopeConfig
from hotset.quant import FORMATS
from hotset.reference import ops
from hotset.reference.arithmetic import EPS32, Arithmetic, quantize_rows
from hotset.reference.forward import Forward
from hotset.reference.kv import store
from hotset.reference.packed import decode

Rows = NDArray[np.float64]


def random(*shape: int, seed: int = 0) -> Rows:
    return np.random.default_rng(seed).standard_normal(shape)


# --- operations -------------------------------------------------------------------------------------

ACTIVATIONS: dict[Activation, dict[float, float]] = {
    "none": {-2.0: -2.0, 3.0: 3.0},
    "silu": {0.0: 0.0, 1.0: 0.7310585786, -1.0: -0.2689414214},
    "gelu": {0.0: 0.0, 1.0: 0.8413447461, -1.0: -0.1586552539},  # x times the normal distribution's integral
    "gelu_tanh": {0.0: 0.0, 1.0: 0.8411919906, -1.0: -0.1588080094},
    "relu": {-1.0: 0.0, 2.0: 2.0},
    "relu2": {-1.0: 0.0, 3.0: 9.0},
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_at_known_points(name: Activation) -> None:
    points = ACTIVATIONS[name]
    assert ops.activate(name, np.array(list(points))) == pytest.approx(list(points.values()), abs=1e-9)


def test_shifted_relu_keeps_what_exceeds_its_threshold() -> None:
    x = np.array([-1.0, 0.2, 0.25, 0.3])
    assert ops.activate("shifted_relu", x, 0.25).tolist() == [0.0, 0.0, 0.0, 0.3]


def test_silu_far_out_neither_overflows_nor_warns() -> None:
    with np.errstate(all="raise", under="ignore"):
        assert ops.activate("silu", np.array([-1e4, 1e4])).tolist() == [0.0, 1e4]


def test_norms_have_the_moments_they_promise() -> None:
    x, one = random(5, 40) * 3 + 2, np.ones(40)
    assert np.mean(ops.rms_norm(x, one, 0.0) ** 2, axis=1) == pytest.approx(np.ones(5))
    y = ops.layer_norm(x, one, None, 0.0)
    assert y.mean(axis=1) == pytest.approx(np.zeros(5), abs=1e-12)
    assert y.std(axis=1) == pytest.approx(np.ones(5))
    np.testing.assert_allclose(ops.layer_norm(x, 2 * one, 3 * one, 0.0), 2 * y + 3)


def test_rotation_turns_pairs_of_halves_and_leaves_the_rest() -> None:
    x = np.array([[[1.0, 0.0, 0.0, 2.0, 7.0]]])  # pairs (1, 0) and (0, 2); the 7 is not rotated
    turned = ops.rotate(x, np.array([[math.pi / 2, math.pi]]), 1.0)
    assert turned[0, 0] == pytest.approx([0.0, 0.0, 1.0, -2.0, 7.0], abs=1e-12)


def test_rotation_makes_scores_depend_on_distance_only() -> None:
    q, k, freq = random(1, 1, 8), random(1, 1, 8, seed=1), np.array([1.0, 0.3, 0.1, 0.02])

    def score(i: int, j: int) -> float:
        return float(np.sum(ops.rotate(q, i * freq[None], 1.0) * ops.rotate(k, j * freq[None], 1.0)))

    assert score(9, 4) == pytest.approx(score(105, 100))
    assert abs(score(9, 4) - score(9, 5)) > 1e-3


@pytest.mark.parametrize(("first", "n", "window"), [(0, 7, 0), (0, 7, 3), (5, 2, 4), (6, 1, 1)])
def test_attention_is_a_weighted_mean_over_what_is_visible(first: int, n: int, window: int) -> None:
    q, k, v = random(n, 4, 8), random(first + n, 2, 8, seed=1), random(first + n, 2, 8, seed=2)
    out = ops.attend(q, k, v, first, window)
    for i in range(n):
        for head in range(4):
            at = first + i
            seen = [j for j in range(at + 1) if not window or at - j < window]
            weights = [math.exp(float(q[i, head] @ k[j, head // 2])) for j in seen]
            mean = sum(w * v[j, head // 2] for w, j in zip(weights, seen, strict=True)) / sum(weights)
            np.testing.assert_allclose(out[i, head], mean, rtol=1e-12)


def test_dynamic_frequencies_grow_with_the_length_only_beyond_the_original_context() -> None:
    rope = RopeConfig(inv_freq=(1.0, 0.1), dynamic_factor=2.0, dynamic_base=100.0, original_context=10)
    assert ops.rope_frequencies(rope, 10).tolist() == [1.0, 0.1]
    # base 100 * (2 * 20 / 10 - 1)^(4/2) = 900, whose second frequency is 900^(-1/2)
    assert ops.rope_frequencies(rope, 20) == pytest.approx([1.0, 1 / 30])


# --- rounding ---------------------------------------------------------------------------------------


def test_int8_rounding_is_within_half_a_step_and_keeps_the_extremes() -> None:
    x = random(4, 70)
    error = np.abs(quantize_rows(x) - x)
    for g in range(0, 70, 32):
        top = np.abs(x[:, g : g + 32]).max(axis=1, keepdims=True)
        assert np.all(error[:, g : g + 32] <= top / 127 * (0.5 + 1e-5))
        at = np.argmax(np.abs(x[:, g : g + 32]), axis=1)
        assert np.all(error[:, g : g + 32][np.arange(4), at] <= 1e-6)
    assert np.all(quantize_rows(np.zeros((1, 32))) == 0)


@pytest.mark.parametrize("isa", [isa.name for isa in _core.isa_list() if isa.compiled and isa.supported])
def test_int8_rounding_is_the_kernels_own(isa: str) -> None:
    x = random(8, 96).astype(np.float32)
    for row in x:
        codes, scales = _core.quantize_q8(isa, row)
        native = (codes.reshape(-1, 32) * scales[:, None].astype(np.float64)).reshape(-1)[:96]
        np.testing.assert_array_equal(quantize_rows(row[None].astype(np.float64))[0], native)


def test_kv_rounding() -> None:
    x = random(3, 2, 16)
    np.testing.assert_array_equal(store(x, "exact"), x)
    assert np.all(np.abs(store(x, "f16") - x) <= np.abs(x) * 2.0**-11 + 2.0**-25)
    steps = np.abs(x).max(axis=-1, keepdims=True) / 127 * (1 + 2.0**-7)
    assert np.all(np.abs(store(x, "int8") - x) <= steps / 2)
    assert np.any(store(x, "int8") != x)
    x[..., 0] = 100
    halves = np.abs(store(x, "int8", group=8) - x)
    assert halves[..., 8:].max() < np.abs(store(x, "int8") - x)[..., 8:].max() / 10


def test_noise_has_the_size_of_float32_rounding_and_its_seed() -> None:
    a, x = random(300, 200), random(50, 200, seed=1)
    noisy = Arithmetic(noise=3).product(a, x)
    float32 = (x.astype(np.float32) @ a.astype(np.float32).T).astype(np.float64)
    typical = EPS32 * np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(a, axis=1)
    assert 0.9 < np.sqrt(np.mean(((noisy - x @ a.T) / typical) ** 2)) < 1.1
    assert np.sqrt(np.mean(((float32 - x @ a.T) / typical) ** 2)) < 1  # what it stands for is no larger
    np.testing.assert_array_equal(noisy, Arithmetic(noise=3).product(a, x))


# --- packed weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (16, 64), (17, 65), (40, 200)])
def test_packed_layout_decodes_like_the_core(fmt: str, rows: int, cols: int) -> None:
    weights = random(rows, cols).astype(np.float32)
    packed = np.empty(_core.packed_bytes(fmt, rows, cols), np.uint8)
    _core.encode(fmt, weights, packed)
    ours = decode(fmt, packed, rows, cols)
    np.testing.assert_allclose(_core.decode(fmt, packed, rows, cols), ours, rtol=2e-7, atol=1e-9)
    step = {"q4_0": 0.3, "q4_1": 0.2, "q8_0": 0.03, "bf16": 2.0**-7, "f16": 2.0**-10, "f32": 0.0}[fmt]
    assert np.abs(ours - weights).max() <= step * np.abs(weights).max()


def test_one_code_of_a_q4_0_block_is_where_the_format_says() -> None:
    block = np.zeros(576, np.uint8)
    block[:64].view("<f2")[16 + 3] = 0.5  # group 1, row 3
    codes = block[64:].reshape(2, 4, 16, 4)
    codes[:] = 0x88  # all weights 0
    codes[1, 2, 3, 1] = 0xF8 | 1  # low nibble 9, high nibble 15
    got = decode("q4_0", block, 16, 64)
    want = np.zeros((16, 64))
    want[3, 32 + 4 * 2 + 1], want[3, 32 + 16 + 4 * 2 + 1] = 0.5 * (9 - 8), 0.5 * (15 - 8)
    np.testing.assert_array_equal(got, want)


# --- forward pass -----------------------------------------------------------------------------------


def tiny() -> Forward:
    config = ModelConfig(
        hidden=12, vocab=20, ffn=10, heads=4, kv_heads=2, head_dim=4, context=64, attention_scale=0.5,
        layers=(LayerConfig(window=5, rope=0), LayerConfig(rope=-1)), ropes=(RopeConfig((1.0, 0.1)),),
        act_gate="relu", act_up="relu",
    )  # fmt: skip
    shapes = {"q": (16, 12), "k": (8, 12), "v": (8, 12), "o": (12, 16), "gate": (10, 12), "up": (10, 12)}
    shapes["down"] = (12, 10)
    weights = {("embed", -1): random(20, 12), ("final_norm", -1): np.ones(12)}
    for layer in range(2):
        weights |= {(role, layer): random(*shape, seed=layer) for role, shape in shapes.items()}
    return Forward(config, weights)


@pytest.mark.parametrize("cut", [1, 4, 9])
def test_twin_gives_the_same_logits_however_a_prompt_is_cut(cut: int) -> None:
    forward, tokens = tiny(), [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    whole = forward.step(forward.cache(), tokens)
    cache = forward.cache()
    parts = [forward.step(cache, tokens[:cut]), forward.step(cache, tokens[cut:])]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-10)
    assert cache.length == len(tokens)
