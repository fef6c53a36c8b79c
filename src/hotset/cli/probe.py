"""`hotset probe`: what drive, memory and cores of this host give."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotset.cli.options import JsonFlag
from hotset.cli.progress import progress_bar
from hotset.cli.text import human_bytes, note, print_json

if TYPE_CHECKING:
    from hotset.tools.probe import Probe


def probe(
    path: Annotated[
        Path | None,
        typer.Argument(help="A store, or a folder on the drive to measure; default: the cache.", show_default=False),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Every size and depth: a minute instead of ten seconds.")
    ] = False,
    refresh: Annotated[bool, typer.Option("--refresh", help="Measure again, whatever is known.")] = False,
    json: JsonFlag = False,
) -> None:
    """Measure drive, memory and cores, or show what was measured before. Plans use the result."""
    from hotset.errors import UsageError
    from hotset.tools import probe as tool
    from hotset.tools.resolve import cache_dir

    folder = path or cache_dir()
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; name the folder it is in, or a store")
    if path is not None and not folder.exists():
        raise UsageError(f"there is no folder {folder}; name one on the drive to measure")
    with progress_bar(not json) as progress:
        found = tool.probe(folder, full=full, refresh=refresh, progress=progress)
    if found.busy is not None:
        note(f"note: {found.busy}")
    if json:
        print_json({**found.record, "age_seconds": found.age_seconds, "path": str(found.path)})
    else:
        print("\n".join(_lines(found)))


def _lines(found: Probe) -> list[str]:
    rates, record = found.rates, found.record
    when = "just now" if found.fresh else f"{_ago(found.age_seconds)} ago; --refresh measures again"
    lines = [f"measured     {when} ({record['mode']}, on {record['file_system']['kind']})"]
    cached = "" if rates.direct else ", no direct I/O here: this is the page cache"
    lines.append(f"drive        {rates.seq_bytes_per_s / 1e9:.2f} GB/s in order, {rates.backend}{cached}")
    for threads, rate in rates.busy_seq_bytes_per_s.items():
        lines.append(
            f"             {rate / 1e9:.2f} GB/s in order beside {threads} computing thread(s), which keep "
            f"{rates.busy_work_share[threads]:.0%} of their speed"
        )
    for block, reads in rates.random_reads_per_s.items():
        depth = rates.best_depth[block]
        lines.append(
            f"             {human_bytes(block):>9} random: {reads:>9,.0f} reads/s, {reads * block / 1e9:.2f} GB/s at "
            f"depth {depth}, {rates.cpu_us_per_read[block]:.1f} µs CPU each"
        )
    for block, reads in rates.placed_reads_per_s.items():
        speed = f"{reads:>9,.0f} reads/s, {reads * block / 1e9:.2f} GB/s"
        lines.append(f"             {human_bytes(block):>9} random: {speed} into much memory")
    tables = {
        "memory": rates.memory_bytes_per_s,
        "matrices": rates.weight_bytes_per_s,
        "neurons": rates.neuron_bytes_per_s,
        "checksums": rates.check_bytes_per_s,
    }
    for name, table in tables.items():
        lines += [f"{name:<12} {rate / 1e9:.1f} GB/s with {n} thread(s)" for n, rate in table.items()]
    lines += [f"int8         {rate:.0f} GMAC/s with {n} thread(s)" for n, rate in rates.int8_gmac_per_s.items()]
    return [*lines, f"kept in      {found.path}"]


def _ago(seconds: float) -> str:
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' * (count > 1)}"
    return f"{int(seconds)} seconds"
