"""A progress bar on standard error, for people only."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hotset.formats.progress import silent

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

    from hotset.formats.progress import Progress


@contextmanager
def progress_bar(wanted: bool = True) -> Iterator[Progress]:
    """Draws done / total, rate and time left; silent if not wanted or standard error is no terminal."""
    if not (wanted and sys.stderr.isatty()):
        yield silent
        return
    bar = _Bar()
    try:
        yield bar.update
    finally:
        bar.close()


class _Bar:
    """Drawn from the first report on: rich costs 50 ms, and most runs have nothing to wait for."""

    def __init__(self) -> None:
        self._shown: RichProgress | None = None

    def update(self, done: int, total: int, what: str, /) -> None:
        if self._shown is None:
            self._shown = _start()
        self._shown.update(self._shown.task_ids[0], completed=done, total=total, description=what)

    def close(self) -> None:
        if self._shown is not None:
            self._shown.stop()


def _start() -> RichProgress:
    from rich import progress as p
    from rich.console import Console

    columns = (p.TextColumn("{task.description}"), p.BarColumn(), p.DownloadColumn(), p.TransferSpeedColumn())
    shown = p.Progress(*columns, p.TimeRemainingColumn(), console=Console(stderr=True), transient=True)
    shown.add_task("", total=None)
    shown.start()
    return shown
