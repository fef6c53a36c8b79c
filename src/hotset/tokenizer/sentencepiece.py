"""Reads a SentencePiece model file (tokenizer.model): a protobuf of pieces, scores and rules.

Fields: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto. Only what BPE models need
is kept. Hostile bytes end in FormatError.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from hotset.errors import FormatError, ModelError
from hotset.tokenizer.vocabulary import NORMAL, SpmRules, check_piece

_BPE = 2
_MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


@dataclass(slots=True)
class SentencePieceModel:
    tokens: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    bos_id: int | None = 1
    eos_id: int | None = 2
    rules: SpmRules = field(default_factory=lambda: SpmRules(remove_extra_whitespaces=True))


def parse(data: bytes) -> SentencePieceModel:
    """Raises FormatError for a broken file, ModelError for a model that is not BPE."""
    model, model_type = SentencePieceModel(), 1
    for number, value in _fields(data):
        if number == 1:
            _piece(_message(value), model)
        elif number == 2:
            spec = dict(_fields(_message(value)))
            model_type = _integer(spec.get(3, 1))
            model.bos_id, model.eos_id = _id(spec.get(41, 1)), _id(spec.get(42, 2))
            if spec.get(24, 0):
                raise ModelError("tokenizer.model treats whitespace as a suffix, which hotset does not support")
        elif number == 3:
            spec = dict(_fields(_message(value)))
            flags = bool(_integer(spec.get(3, 1))), bool(_integer(spec.get(4, 1)))
            model.rules = SpmRules(*flags, charsmap=_message(spec.get(2, b"")))
    if model_type != _BPE:
        raise ModelError(
            f"tokenizer.model is of type {_MODEL_TYPES.get(model_type, model_type)!r}; hotset reads 'bpe' only. "
            "Add the model's tokenizer.json to the folder"
        )
    if not model.tokens:
        raise FormatError("tokenizer.model has no pieces")
    return model


def _piece(data: bytes, model: SentencePieceModel) -> None:
    fields, where = dict(_fields(data)), f"tokenizer.model: piece {len(model.tokens)}"
    try:
        piece = _message(fields.get(1, b"")).decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError(f"{where} is not UTF-8") from None
    check_piece(piece, where)
    model.tokens.append(piece)
    score = fields.get(2, 0.0)
    model.scores.append(score if isinstance(score, float) else 0.0)
    model.kinds.append(_integer(fields.get(3, NORMAL)))


def _fields(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """(field number, value) of one message: int for varints, float for 32-bit, bytes for the rest."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(wire)
        if wire == 2:
            size, at = _varint(data, at)
        if size is None or at + size > len(data):
            raise FormatError(f"tokenizer.model: broken field at byte {at} of {len(data)}")
        chunk, at = data[at : at + size], at + size
        yield key >> 3, struct.unpack("<f", chunk)[0] if wire == 5 else chunk


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte, at = data[at], at + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise FormatError(f"tokenizer.model: broken number at byte {at} of {len(data)}")


def _message(value: int | float | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise FormatError("tokenizer.model: a number where a message belongs")
    return value


def _integer(value: int | float | bytes) -> int:
    if not isinstance(value, int):
        raise FormatError("tokenizer.model: something else where a number belongs")
    return value


def _id(value: int | float | bytes) -> int | None:
    """A token id; -1 (a 64-bit two's complement varint) means there is none."""
    number = _integer(value)
    return None if number >= 1 << 63 else number
