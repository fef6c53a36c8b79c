"""What commands read and print: prompts, sizes, rates, JSON."""

from __future__ import annotations

import codecs
import json
import sys
from pathlib import Path
from typing import Any

from hotset.errors import InputError, StorageError


def read_prompt(argument: str | None, file: Path | None) -> str:
    """The prompt from the argument, from --file, or from standard input if that is no terminal.

    Raises InputError (none given, two given, not UTF-8) or StorageError.
    """
    if argument is not None and file is not None:
        raise InputError("got a prompt and --file; give one of them")
    if argument is not None:
        return _utf8(argument.encode(errors="surrogateescape"), "the prompt")
    return read_text(file, "prompt", "give it as an argument, with --file PATH or on standard input")


def read_text(file: Path | None, what: str, ways: str) -> str:
    """A text from a file, else from standard input if that is no terminal; `what` it is and the `ways` to give it.

    Raises InputError (none given, not UTF-8) or StorageError.
    """
    if file is not None:
        try:
            return _utf8(file.read_bytes(), str(file))
        except OSError as error:
            raise StorageError(f"cannot read the {what} from {file}: {error.strerror}") from error
    if sys.stdin.isatty():
        raise InputError(f"got no {what}; {ways}")
    return _utf8(sys.stdin.buffer.read(), "standard input")


def _utf8(data: bytes, source: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{source} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}; "
            "convert it first, for example with iconv"
        ) from None


def print_json(value: Any) -> None:
    """One JSON value on one line; in ASCII where standard output is not UTF-8, which JSON has to be."""
    utf8 = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"
    print(json.dumps(value, ensure_ascii=not utf8), flush=True)


def human_bytes(count: float) -> str:
    """1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def note(text: str) -> None:
    """A remark for the person, apart from the output: on standard error."""
    print(text, file=sys.stderr, flush=True)
