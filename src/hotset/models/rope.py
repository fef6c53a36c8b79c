"""Rotary frequencies of every kind that configs name, computed once and handed to the core as data.

Sources: RoPE arXiv:2104.09864; linear interpolation arXiv:2306.15595; YaRN arXiv:2309.00071; dynamic NTK and llama3 as
transformers' modeling_rope_utils defines them. Computed in double, rounded to float32 at the end.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from hotset.config import RopeConfig
from hotset.models.reader import REQUIRED, Absent, Reader

KINDS = ("default", "linear", "dynamic", "llama3", "yarn")


@dataclass(frozen=True, slots=True)
class Rope:
    """A rotation and the context it stretches the model to (0: as far as max_position_embeddings says)."""

    config: RopeConfig
    context: int = 0


def read_rope(cfg: Reader, head_dim: int, max_position: int, theta: float = 10000.0, *, partial: float = 1.0) -> Rope:
    """Reads rope_theta, rope_scaling, partial_rotary_factor or their newer home, rope_parameters.

    theta, partial: the family's default base and share of dimensions that rotate.
    Raises: ModelError on unknown kinds, keys and values.
    """
    scaling, parameters = cfg.section("rope_scaling"), cfg.section("rope_parameters")
    if scaling is not None and parameters is not None:
        cfg.refuse("rope_parameters", "its absence", "rope_scaling says the same in the older way")
    outer = _base(cfg, theta), _partial(cfg, partial)
    section = scaling or parameters
    if section is None:
        return from_section(Reader({}), head_dim, max_position, *outer)
    return from_section(section, head_dim, max_position, _base(section, outer[0]), _partial(section, outer[1]))


def read_nested_rope(section: Reader, head_dim: int, max_position: int, theta: float) -> Rope:
    """One layer type's section of rope_parameters."""
    return from_section(section, head_dim, max_position, _base(section, theta), _partial(section, 1.0))


def _base(cfg: Reader, default: float) -> float:
    theta = cfg.positive("rope_theta", default)
    if theta <= 1:
        cfg.refuse("rope_theta", "a number above 1")
    return theta


def _partial(cfg: Reader, default: float) -> float:
    partial = cfg.positive("partial_rotary_factor", default)
    if partial > 1:
        cfg.refuse("partial_rotary_factor", "a number up to 1")
    return partial


def from_section(section: Reader, head_dim: int, max_position: int, theta: float, partial: float) -> Rope:
    """Reads the keys of one kind (rope_type, in older files type) and computes its frequencies."""
    older = section.text("type", "default")
    kind = section.text("rope_type", older)
    if kind not in KINDS:
        section.refuse("rope_type" if section.has("rope_type") else "type", " or ".join(KINDS))
    dim = int(head_dim * partial)
    if dim < 2 or dim % 2:
        section.refuse("partial_rotary_factor", f"a share of the head's {head_dim} dimensions that is even")
    rope = _BUILD[kind](section, plain(theta, dim), theta, max_position)
    section.finish(_LEFT_OVERS[kind])
    return rope


def plain(theta: float, dim: int) -> list[float]:
    """theta^(-2i/dim) for the dim/2 pairs."""
    return [theta ** (-i / dim) for i in range(0, dim, 2)]


def _default(section: Reader, freq: list[float], theta: float, max_position: int) -> Rope:
    return Rope(_config(freq))


def _linear(section: Reader, freq: list[float], theta: float, max_position: int) -> Rope:
    factor = _factor(section)
    return Rope(_config([f / factor for f in freq]), int(max_position * factor))


def _dynamic(section: Reader, freq: list[float], theta: float, max_position: int) -> Rope:
    factor = _factor(section)
    if factor < 1:
        section.refuse("factor", "a number from 1")
    if len(freq) < 2:
        section.refuse("partial_rotary_factor", "at least 4 rotated dimensions", "dynamic RoPE divides by dim - 2")
    config = RopeConfig(
        inv_freq=_float32(freq), dynamic_factor=factor, dynamic_base=theta, original_context=max_position
    )
    return Rope(config, int(max_position * factor))


def _llama3(section: Reader, freq: list[float], theta: float, max_position: int) -> Rope:
    if section.has("factors"):  # from a GGUF: the divisors themselves
        return Rope(_config([f / d for f, d in zip(freq, _divisors(section, len(freq)), strict=True)]))
    factor = _factor(section)
    low, high = section.positive("low_freq_factor"), section.positive("high_freq_factor")
    original = section.size("original_max_position_embeddings", max_position)
    if high <= low:
        section.refuse("high_freq_factor", f"more than low_freq_factor, {low}")
    return Rope(_config([f / d for f, d in zip(freq, llama3_divisors(freq, factor, low, high, original), strict=True)]))


def _divisors(section: Reader, pairs: int) -> list[float]:
    values = section.typed("factors", list, "a list of numbers")
    if len(values) != pairs or not all(isinstance(v, int | float) and 1e-5 < v < 1e5 for v in values):
        section.refuse("factors", f"a list of {pairs} numbers between 0.00001 and 100000")
    return [float(v) for v in values]


def llama3_divisors(freq: Sequence[float], factor: float, low: float, high: float, original: int) -> list[float]:
    """What each frequency is divided by: 1 for short wavelengths, `factor` for long ones, a blend between."""

    def divisor(f: float) -> float:
        turns = original * f / (2 * math.pi)  # rotations within the original context
        keep = min(max((turns - low) / (high - low), 0.0), 1.0)
        return 1.0 / ((1.0 - keep) / factor + keep)

    return [divisor(f) for f in freq]


def _yarn(section: Reader, freq: list[float], theta: float, max_position: int) -> Rope:
    original = section.size("original_max_position_embeddings", max_position)
    factor = _factor(section, max_position / original)
    low, high = _yarn_range(section, 2 * len(freq), theta, original)
    blended = []
    for i, f in enumerate(freq):
        interpolate = min(max((i - low) / (high - low), 0.0), 1.0)
        blended.append(f / factor * interpolate + f * (1.0 - interpolate))
    return Rope(_config(blended, _yarn_attention(section, factor)), max(max_position, int(original * factor)))


def _yarn_range(section: Reader, dim: int, theta: float, original: int) -> tuple[float, float]:
    """First and last pair of the blend between frequencies kept (fast) and interpolated (slow)."""

    def pair(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(section.positive("beta_fast", 32.0)), pair(section.positive("beta_slow", 1.0))
    if section.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    return (low, high + 0.001) if low == high else (low, high)


def _yarn_attention(section: Reader, factor: float) -> float:
    """YaRN's mscale, which multiplies cos and sin."""
    mscale, all_dim = section.number("mscale", 0.0), section.number("mscale_all_dim", 0.0)
    implied = _mscale(factor, mscale) / _mscale(factor, all_dim) if mscale and all_dim else _mscale(factor, 1.0)
    value = section.positive("attention_factor", implied)
    if not 1e-3 < value < 1e3:
        section.refuse("attention_factor" if section.has("attention_factor") else "mscale", "a sane number near 1")
    return value


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _factor(section: Reader, default: float | Absent = REQUIRED) -> float:
    """How far the context is stretched; the bounds keep frequencies and contexts representable."""
    value = section.positive("factor", default)
    if not 1e-3 < value < 1e5:
        section.refuse("factor", "a number between 0.001 and 100000")
    return value


def _config(freq: Sequence[float], attention_factor: float = 1.0) -> RopeConfig:
    return RopeConfig(inv_freq=_float32(freq), attention_factor=attention_factor)


def _float32(values: Sequence[float]) -> tuple[float, ...]:
    count = len(values)
    return struct.unpack(f"<{count}f", struct.pack(f"<{count}f", *values))


_BUILD = {"default": _default, "linear": _linear, "dynamic": _dynamic, "llama3": _llama3, "yarn": _yarn}
# Keys that transformers writes into every section but that a kind does not use.
_LEFT_OVERS: dict[str, frozenset[str]] = {
    "default": frozenset({"factor", "original_max_position_embeddings", "attention_factor"}),
    "linear": frozenset({"original_max_position_embeddings"}),
    "dynamic": frozenset({"original_max_position_embeddings"}),
    "llama3": frozenset({"low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}),
    "yarn": frozenset({"finetuned"}),
}
