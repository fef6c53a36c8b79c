"""A progress bar on standard error, for people only."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hotset.formats.progress import Progress


@contextmanager
def progress_bar(wanted: bool = True) -> Iterator[Progress]:
    """Draws done / total, rate and time left; silent if not wanted or standard error is no terminal."""
    from hotset.formats.progress import silent

    if not (wanted and sys.stderr.isatty()):
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("", total=None)

        def update(done: int, total: int, what: str, /) -> None:
            shown.update(task, completed=done, total=total, description=what)

        yield update
