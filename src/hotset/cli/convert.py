"""`hotset convert`: a checkpoint in, a store out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotset.cli.options import JsonFlag
from hotset.cli.progress import progress_bar
from hotset.cli.text import human_bytes, note, print_json

if TYPE_CHECKING:
    from hotset.tools.convert import ClassReport, ConvertReport


def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A Hugging Face folder or hub id, or a GGUF file.")],
    dest: Annotated[
        Path | None, typer.Argument(metavar="DEST", help="Folder to make; default: in the cache, for `run SOURCE`.")
    ] = None,
    quant: Annotated[
        str,
        typer.Option(help="auto, one format (q4_0, q4_1, q8_0, f16, bf16), or one per class: attention=q8_0,ffn=q4_0."),
    ] = "auto",
    ignore_key: Annotated[
        list[str] | None, typer.Option("--ignore-key", help="Treat this key of config.json as absent.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what DEST is now.")] = False,
    threads: Annotated[int, typer.Option("--threads", "-t", min=0, help="Threads for packing; 0: all cores.")] = 0,
    json: JsonFlag = False,
) -> None:
    """Convert a model to a store. Stopped or interrupted, it goes on from there when run again."""
    from hotset.tools import convert as tool

    with progress_bar(not json) as progress:
        report = tool.convert(
            source,
            dest,
            quant=quant,
            ignore_keys=tuple(ignore_key or ()),
            progress=progress,
            force=force,
            threads=threads,
        )
    if json:
        fields = asdict(report) | {"dest": str(report.dest), "bytes": report.bytes, "weights": report.weights}
        print_json(fields)
        return
    for line in report.notes:
        note(f"note: {line}")
    print("\n".join(_describe(report)))


def _describe(report: ConvertReport) -> list[str]:
    if report.unchanged:
        return [f"{report.dest} is already this store"]
    head = f"{report.family}: {report.weights / 1e6:,.1f} M weights, {human_bytes(report.bytes)}"
    resumed = f", of which {human_bytes(report.resumed_bytes)} were done before" if report.resumed_bytes else ""
    return [f"{head}, in {report.seconds:.1f} s{resumed}", *map(_class_line, report.classes), str(report.dest)]


def _class_line(part: ClassReport) -> str:
    error = f"relative error {part.relative_rms_error:.2%}" if part.relative_rms_error else "every value kept"
    return f"  {part.kind:<10} {part.sources} -> {part.formats}, {human_bytes(part.bytes)}, {error}"
