"""`hotset doctor`: what this host offers and what it lacks."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotset.cli.options import JsonFlag
from hotset.cli.text import human_bytes, print_json

if TYPE_CHECKING:
    from hotset.tools.doctor import DriveRate, Host


def doctor(
    path: Annotated[
        Path | None, typer.Option("--path", help="Folder whose drive is measured; default: the cache folder.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Measure nothing.")] = False,
    json: JsonFlag = False,
) -> None:
    """Show what this host offers: kernels, cores, memory and drive rates, and what is missing."""
    from hotset.tools import doctor as tool
    from hotset.tools.resolve import cache_dir

    found = tool.host()
    rates = {} if quick else tool.memory_rates(sorted({1, found.cpu.cores}))
    drive = [] if quick else tool.drive_rates(path or cache_dir())
    advice = tool.advice(found)
    if json:
        measured = {"memory_bytes_per_s": rates, "drive": [asdict(rate) for rate in drive]}
        print_json({**tool.as_json(found), **measured, "advice": advice})
        return
    for line in [*_describe(found), *_memory_lines(rates), *map(_drive_line, drive)]:
        print(line)
    print("\n".join(f"missing      {line}" for line in advice) or "missing      nothing")


def _describe(found: Host) -> list[str]:
    cpu, kernels, memory = found.cpu, found.kernels, found.memory
    limit = f", limit {human_bytes(memory.limit_bytes)}" if memory.limit_bytes else ""
    lines = [
        f"hotset       {found.hotset}, {found.compiler}, Python {found.python}, {found.system}",
        f"cpu          {cpu.model}, {cpu.cores} cores, L2 {human_bytes(cpu.l2_bytes)}, L3 {human_bytes(cpu.l3_bytes)}",
        f"kernels      {kernels.selected}; usable: {', '.join(kernels.usable)}",
    ]
    if kernels.not_supported:
        lines.append(f"             built, not for this CPU: {', '.join(kernels.not_supported)}")
    return [
        *lines,
        f"memory       {human_bytes(memory.total_bytes)}, {human_bytes(memory.available_bytes)} available{limit}",
        f"huge pages   {memory.transparent_huge_pages}",
        f"io_uring     {_io_uring(found)}",
    ]


def _io_uring(found: Host) -> str:
    if not found.io_uring_compiled:
        return "not built in; reads use pread threads"
    return "works" if found.io_uring_works else "refused by the kernel; reads use pread threads"


def _memory_lines(rates: dict[int, float]) -> list[str]:
    return [f"bandwidth    {rate / 1e9:.1f} GB/s with {threads} thread(s)" for threads, rate in rates.items()]


def _drive_line(rate: DriveRate) -> str:
    order = "random" if rate.random else "sequential"
    return (
        f"drive        {rate.bytes_per_s / 1e9:.2f} GB/s, {human_bytes(rate.block_bytes)} {order}, "
        f"depth {rate.depth}, {rate.backend}, {rate.cpu_us_per_read:.1f} µs CPU per read"
    )
