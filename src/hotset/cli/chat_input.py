"""Messages from the person: lines with history, several lines in one message, Ctrl-C and Ctrl-D."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from hotset.cli.text import note
from hotset.errors import InputError

QUOTES = '"""'
_HISTORY_LINES = 2000


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

    def message(self) -> str | None:
        """The next message, not empty; None at the end of input or after Ctrl-C twice.

        Raises InputError if the input is not UTF-8.
        """
        interrupted = False
        while True:
            try:
                text = self._read()
            except EOFError:
                return None
            except KeyboardInterrupt:
                if interrupted or not self._terminal:
                    return None
                interrupted = True
                note("\n(Ctrl-C again, Ctrl-D or /quit leaves)")
                continue
            if text.strip():
                return text

    def _read(self) -> str:
        line = self._line("> ")
        if line.lstrip().startswith(QUOTES):
            return self._quoted(line.lstrip().removeprefix(QUOTES))
        lines = []
        while line.endswith("\\"):
            lines.append(line[:-1])
            line = self._line("… ")
        return "\n".join([*lines, line])

    def _quoted(self, rest: str) -> str:
        """Lines up to one that ends with the quotes."""
        lines = [rest]
        while not lines[-1].rstrip().endswith(QUOTES):
            lines.append(self._line("… "))
        lines[-1] = lines[-1].rstrip().removesuffix(QUOTES)
        return "\n".join(lines).strip("\n")

    def _line(self, prompt: str) -> str:
        try:
            return input(prompt if self._terminal else "")
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise InputError(
                f"standard input is not UTF-8: it has byte 0x{byte:02x}; convert it, e.g. with iconv"
            ) from None
