"""Tokens back to bytes, and bytes to text as they come."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hotset.errors import ModelError

if TYPE_CHECKING:
    import tokenizers

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class StreamDecoder:
    """Turns tokens into text one by one, in constant time per token.

    A character is given out when its last byte has come; bytes that can no longer become one are given out as
    U+FFFD, as `bytes.decode(errors="replace")` does.
    """

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The text that `token` completes; may be empty."""
        return self._utf8.decode(self._token_bytes(token))

    def flush(self) -> str:
        """What is left at the end: empty, or U+FFFD for an unfinished character."""
        return self._utf8.decode(b"", final=True)


@dataclass(frozen=True, slots=True)
class TokenBytes:
    """The bytes that one token stands for. Made from the decoder of a tokenizer.json."""

    byte_level: bool  # token text is written in GPT-2's alphabet of 256 printable characters
    byte_fallback: bool  # <0x0A> is the byte 10
    replacements: tuple[tuple[str, str], ...]
    strips_first_space: bool  # of a whole text

    @staticmethod
    def of(backend: tokenizers.Tokenizer) -> TokenBytes:
        """Raises ModelError for a decoder that hotset does not know."""
        steps = _flatten(json.loads(backend.decoder.__getstate__()) if backend.decoder else None)
        types = {str(step.get("type")) for step in steps}
        if types == {"ByteLevel"}:
            return TokenBytes(True, False, (), False)
        if unknown := types - {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"} or not types:
            raise ModelError(
                f"tokenizer.json has decoder {unknown if types else None}; hotset knows ByteLevel and SentencePiece's"
            )
        return TokenBytes(
            byte_level=False,
            byte_fallback="ByteFallback" in types,
            replacements=tuple(pair for step in steps for pair in _replacement(step)),
            strips_first_space=any(_strips(step) for step in steps),
        )

    def __call__(self, text: str) -> bytes:
        """Bytes of an ordinary token, given its text in the vocabulary."""
        if self.byte_level:
            try:
                return bytes(map(_ALPHABET.__getitem__, text))
            except KeyError:
                return text.encode()
        if self.byte_fallback and (match := _BYTE_TOKEN.fullmatch(text)):
            return bytes.fromhex(match[1])
        for old, new in self.replacements:
            text = text.replace(old, new)
        return text.encode()


def _flatten(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    if decoder.get("type") != "Sequence":
        return [decoder]
    return [step for child in decoder["decoders"] for step in _flatten(child)]


def _replacement(step: dict[str, Any]) -> Sequence[tuple[str, str]]:
    if step["type"] == "Metaspace":
        return [(step["replacement"], " ")]
    if step["type"] != "Replace":
        return []
    if "String" not in step["pattern"]:
        raise ModelError(f"tokenizer.json decodes with the pattern {step['pattern']}; hotset knows plain strings only")
    return [(step["pattern"]["String"], step["content"])]


def _strips(step: dict[str, Any]) -> bool:
    if step["type"] == "Metaspace":
        return bool(step.get("prepend_scheme", "always") != "never")
    return bool(step["type"] == "Strip" and step.get("start", 0) > 0)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes: printable Latin-1 stands for itself, the rest follows U+0100."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(0x100 + i): b for i, b in enumerate(others)}


_ALPHABET = _byte_alphabet()
