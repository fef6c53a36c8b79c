"""Formats and the choice of one for each class."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hotset import _core
from hotset.errors import UsageError
from hotset.quant import CLASSES, FORMATS, QuantPlan, packed_bytes, parse_quant

HEADER = Path(__file__).parents[2] / "native/quant/format.h"


def test_sizes_are_those_of_the_native_header() -> None:
    text = HEADER.read_text()
    cases = re.findall(r"((?:case Format::\w+:\s*)+)return (\d+);", text)
    sizes = {name: int(size) for labels, size in cases for name in re.findall(r"Format::(\w+)", labels)}
    assert sizes == {f.name: f.col_block_bytes for f in FORMATS.values()}


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (16, 64), (17, 65), (576, 1536), (1000, 32)])
def test_packed_bytes_agrees_with_the_core(fmt: str, rows: int, cols: int) -> None:
    assert packed_bytes(fmt, rows, cols) == _core.packed_bytes(fmt, rows, cols)


def test_bits_per_weight() -> None:
    bits = {f.name: f.bits_per_weight for f in FORMATS.values()}
    assert bits == {"f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5, "q4_0": 4.5, "q4_1": 5}


def test_a_vector_is_a_plain_array() -> None:
    assert packed_bytes("f32", 100, 0) == 400


def test_one_format_is_for_all_matrices() -> None:
    assert parse_quant("q8_0") == QuantPlan("q8_0", "q8_0", "q8_0", "q8_0", "q8_0")
    assert parse_quant("auto") == QuantPlan()
    assert parse_quant("q8_0").of("vector") == "f32"


def test_classes_not_named_are_auto() -> None:
    assert parse_quant(" attention = q8_0 , ffn=q4_0") == QuantPlan(attention="q8_0", ffn="q4_0")


@pytest.mark.parametrize("text", ["auto", "q4_0", "attention=q8_0", "ffn=q4_1,head=f16", "attention=bf16,ffn=auto"])
def test_text_of_a_plan_reads_back(text: str) -> None:
    plan = parse_quant(text)
    assert parse_quant(str(plan)) == plan


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q4_k", "did you mean q4_"),
        ("Q4_0", "did you mean q4_0"),
        ("", "unknown weight format ''"),
        ("ffn=", "unknown weight format ''"),
        ("mlp=q4_0", "unknown tensor class 'mlp'"),
        ("ffn=q4_0,ffn=q8_0", "stands twice"),
        ("vector=f32", "unknown tensor class"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        parse_quant(text)


def test_classes() -> None:
    assert CLASSES == ("attention", "ffn", "embedding", "head", "predictor")
