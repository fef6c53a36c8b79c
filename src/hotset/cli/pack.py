"""`hotset pack`: a dense store in, one that can be read neuron by neuron out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotset.cli.options import JsonFlag, complete_model, takes
from hotset.cli.progress import progress_bar
from hotset.cli.text import human_bytes, note, print_json
from hotset.errors import UsageError

if TYPE_CHECKING:
    from hotset.tools.pack import PackReport


@dataclass(frozen=True, slots=True)
class PackFlags:
    """What a packed store is like; fields as the arguments of tools.pack.pack."""

    fmt: Annotated[str, typer.Option("--format", metavar="q4_0|q8_0", help="Of the neurons' weights.")] = "q4_0"
    stride: Annotated[
        str,
        typer.Option(
            metavar="auto|BYTES", help="Bytes from one neuron to the next; auto: as direct reads of the drive ask for."
        ),
    ] = "auto"
    order: Annotated[
        str,
        typer.Option(
            metavar="auto|none|frequency|coactivation",
            help="How neurons follow each other; auto: by a profile, so that the drive reads least often.",
        ),
    ] = "auto"
    gates: Annotated[
        str,
        typer.Option(
            metavar="none|copy", help="copy: all gates once more, side by side, to be read in order for every token."
        ),
    ] = "none"


@dataclass(frozen=True, slots=True)
class ExplainFlags:
    """What is printed instead of packing."""

    explain: Annotated[
        bool, typer.Option("--explain", help="Pack nothing; print what each option would cost on this host.")
    ] = False
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="With --explain: the budget to run in, such as 3GB.")
    ] = None
    predict: Annotated[
        str, typer.Option(metavar="exact|auto", help="With --explain: auto allows the predictors of a packed STORE.")
    ] = "exact"


@takes(how=PackFlags, costs=ExplainFlags)
def pack(
    store: Annotated[
        str,
        typer.Argument(
            metavar="STORE",
            help="A dense store, or a model to convert to one; with --gates also a packed one.",
            autocompletion=complete_model,
        ),
    ],
    dest: Annotated[
        Path | None, typer.Argument(metavar="DEST", help="Folder to make; default: STORE-packed, beside it.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what DEST is now.")] = False,
    threads: Annotated[int, typer.Option("--threads", "-t", min=0, help="Threads for packing; 0: all cores.")] = 0,
    json: JsonFlag = False,
    *,
    how: PackFlags,
    costs: ExplainFlags,
) -> None:
    """Pack a store for reading single neurons. Stopped or interrupted, it goes on from there when run again."""
    if how.gates not in ("none", "copy"):
        raise UsageError(f"gates is {how.gates!a:.40}; wanted none or copy")
    chosen = {"fmt": how.fmt, "stride": how.stride, "order": how.order}
    if costs.explain:
        from hotset.cli.pack_costs import print_costs

        print_costs(store, dest, chosen, costs.memory, costs.predict, json)
        return
    if costs.memory is not None or costs.predict != "exact":
        raise UsageError("--memory and --predict say for what --explain plans; packing depends on neither")
    from hotset.tools.pack import pack as tool

    with progress_bar(not json) as progress:
        gates = how.gates == "copy"
        report = tool(store, dest, **chosen, progress=progress, force=force, threads=threads, gates=gates)
    if json:
        print_json(asdict(report) | {"dest": str(report.dest), "bytes": report.bytes})
        return
    for line in report.notes:
        note(f"note: {line}")
    print("\n".join(_describe(report)))


def _describe(report: PackReport) -> list[str]:
    gates = [f"  gates      a copy of {human_bytes(report.gate_bytes)}"] if report.gate_bytes else []
    if report.unchanged:
        return [f"{report.dest} is already this store", *gates]
    resumed = f", of which {report.resumed_layers} layers were done before" if report.resumed_layers else ""
    head = f"{report.layers} layers of {report.neurons} neurons, {human_bytes(report.bytes)}"
    padding = report.stride - report.bundle_bytes
    errors = ", ".join(f"{role} {error:.2%}" if error else f"{role} none" for role, error in report.errors.items())
    return [
        f"{head}, in {report.seconds:.1f} s{resumed}",
        f"  a neuron   {report.fmt}, {report.bundle_bytes} bytes and {padding} of padding; order: {report.order}",
        f"  error      {errors} against the store's {report.source_format}",
        *gates,
        str(report.dest),
    ]
