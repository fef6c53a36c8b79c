"""Messages from the person: lines with history, several lines in one message, Ctrl-C and Ctrl-D."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

from hotset.cli.text import note
from hotset.errors import InputError

QUOTES = '"""'
_HISTORY_LINES = 2000


@dataclass(frozen=True, slots=True)
class Entry:
    """What the person entered as one message."""

    text: str
    plain: bool = True  # one line without quotes: only such a one can be a /command, pasted code cannot


class Input:
    """Reads one message after the other from standard input; a prompt is shown only on a terminal."""

    def __init__(self, history: Path) -> None:
        self._terminal = sys.stdin.isatty()
        self._history = history
        sys.stdin.reconfigure(encoding="utf-8", errors="strict")  # type: ignore[union-attr]

    def __enter__(self) -> Input:
        if self._terminal:
            import readline

            with contextlib.suppress(OSError):
                readline.read_history_file(self._history)
            readline.set_history_length(_HISTORY_LINES)
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal:
            import readline

            with contextlib.suppress(OSError):
                self._history.parent.mkdir(parents=True, exist_ok=True)
                readline.write_history_file(self._history)

    def message(self) -> Entry | None:
        """The next message, not empty; None at the end of input or after Ctrl-C twice.

        Raises InputError if the input is not UTF-8.
        """
        interrupted = False
        while True:
            try:
                entry = self._read()
            except EOFError:
                return None
            except KeyboardInterrupt:
                if interrupted or not self._terminal:
                    return None
                interrupted = True
                note("\n(Ctrl-C again, Ctrl-D or /quit leaves)")
                continue
            if entry.text.strip():
                return entry

    def _read(self) -> Entry:
        line = self._line("> ")
        if line.lstrip().startswith(QUOTES):
            return Entry(self._quoted(line.lstrip().removeprefix(QUOTES)), plain=False)
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            if (more := self._next_line()) is None:
                break
            lines.append(more)
        return Entry("\n".join(lines), plain=not line.endswith("\\"))

    def _quoted(self, rest: str) -> str:
        """Lines up to one that ends with the quotes."""
        lines = [rest]
        while not lines[-1].rstrip().endswith(QUOTES):
            if (more := self._next_line()) is None:
                break
            lines.append(more)
        lines[-1] = lines[-1].rstrip().removesuffix(QUOTES)
        return "\n".join(lines).strip("\n")

    def _next_line(self) -> str | None:
        """One more line of a message; None if piped input ends in the midst of it. (Ctrl-D at a terminal leaves.)"""
        try:
            return self._line("… ")
        except EOFError:
            if self._terminal:
                raise
            return None

    def _line(self, prompt: str) -> str:
        try:
            return input(prompt if self._terminal else "")
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise InputError(
                f"standard input is not UTF-8: it has byte 0x{byte:02x}; convert it, e.g. with iconv"
            ) from None
