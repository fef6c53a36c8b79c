"""`hotset sketch`: what says, before they are read, which neurons of a packed model a token needs, without training."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotset.cli.options import JsonFlag, ModelArgument, parse_share
from hotset.cli.progress import progress_bar
from hotset.cli.text import human_bytes, print_json

if TYPE_CHECKING:
    from hotset.tools.sketch import SketchReport


def sketch(
    model: ModelArgument,
    text: Annotated[
        list[Path],
        typer.Option("--text", metavar="FILE", help="Plain text, or .jsonl with a key 'text'; may be repeated."),
    ],
    bits: Annotated[int, typer.Option(help="Of each weight, 2 or 3.")] = 3,
    loss: Annotated[str, typer.Option(metavar="SHARE", help="Allowed loss of perplexity.")] = "0.5%",
    zeros: Annotated[
        str | None, typer.Option(metavar="SHARE", help="Instead: leave out this share of every layer's neurons.")
    ] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", "-n", help="Use at most so many; a quarter of them is held out.")
    ] = 4096,
    measure: Annotated[int, typer.Option(help="Tokens of each run that sets the thresholds.")] = 256,
    threads: Annotated[int, typer.Option("--threads", "-t", min=0, help="0: all cores.")] = 0,
    json: JsonFlag = False,
) -> None:
    """Make low-bit copies of gate and up of a packed model; `run --predict auto` chooses neurons by them."""
    from hotset.tools import resolve_model
    from hotset.tools.sketch import SketchOptions, make_sketch

    share = None if zeros is None else parse_share(zeros, "--zeros")
    options = SketchOptions(bits, share, parse_share(loss, "--loss"), tokens, measure, threads)
    with progress_bar(not json) as progress:
        report = make_sketch(resolve_model(model), text, options, progress)
    if json:
        shown = asdict(report.facts)
        del shown["quantiles"]
        found = {} if report.found is None else {"found": asdict(report.found)}
        print_json({"path": str(report.path), "bytes": report.bytes, "seconds": report.seconds, **shown, **found})
    else:
        print("\n".join(_describe(report)))


def _describe(report: SketchReport) -> list[str]:
    quality, found = report.quality, report.found
    lines = [
        f"{report.facts.bits}-bit copies of gate and up, {human_bytes(report.bytes)}, in {report.seconds:.1f} s",
        f"  computed    {quality.predicted:.1%} of the neurons; {quality.missed:.1%} were read",
        f"  divergence  {quality.kl:.4f} ± {quality.kl_error:.4f} nats from every neuron, on {quality.tokens} tokens",
        f"  perplexity  {quality.exact_perplexity:.3f} -> {quality.perplexity:.3f} on the same",
    ]
    if report.facts.up_share < 1:
        lines.append(f"  up          looked at for {report.facts.up_share:.1%} of the neurons, as their gates allow")
    if found:
        each = found.predicted / max(found.active, 1e-9)
        lines.append(
            f"  in memory   {found.recall:.1%} of the active neurons found, {each:.2f} computed for each active"
        )
    return [*lines, str(report.path)]
