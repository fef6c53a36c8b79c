"""`hotset threshold`: a sparse model without training."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotset.cli.options import JsonFlag, ModelArgument, parse_share
from hotset.cli.progress import progress_bar
from hotset.cli.text import print_json

if TYPE_CHECKING:
    from hotset.tools.threshold import ThresholdReport


def threshold(
    model: ModelArgument,
    dest: Annotated[
        Path | None, typer.Argument(metavar="DEST", help="Folder to make; default: STORE-sparse, beside it.")
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option("--text", metavar="FILE", help="Plain text, or .jsonl with a key 'text'; may be repeated."),
    ] = None,
    zeros: Annotated[str | None, typer.Option(metavar="SHARE", help="Wanted zeros, such as 40%.")] = None,
    loss: Annotated[
        str | None, typer.Option(metavar="SHARE", help="Or: allowed change of perplexity, such as 2%.")
    ] = None,
    method: Annotated[
        str, typer.Option(metavar="contribution|cats|teal", help="Score of a neuron; the last two to compare with.")
    ] = "contribution",
    even: Annotated[bool, typer.Option("--even", help="The same share in every layer.")] = False,
    tokens: Annotated[int, typer.Option("--tokens", "-n", help="Use at most so many; half of them to measure.")] = 8192,
    measure: Annotated[int, typer.Option(help="Tokens on which each layer's sensitivity is measured.")] = 512,
    threads: Annotated[int, typer.Option("--threads", "-t", min=0, help="0: all cores.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace what DEST is now.")] = False,
    json: JsonFlag = False,
) -> None:
    """Make a model sparse without training: neurons that contribute little to a token are left out."""
    from hotset.errors import UsageError
    from hotset.tools import resolve_model
    from hotset.tools import threshold as tool

    if not text:
        raise UsageError("thresholds are found on text; give some with --text FILE")
    wanted = None if zeros is None else parse_share(zeros, "--zeros")
    allowed = None if loss is None else parse_share(loss, "--loss")
    options = tool.ThresholdOptions(wanted, allowed, method, even, tokens, measure, threads)  # type: ignore[arg-type]
    options.check()
    with progress_bar(not json) as progress:
        store = resolve_model(model, progress=progress)
        dest = dest or store.with_name(f"{store.name}-sparse")
        report = tool.threshold(store, dest, text, options, progress, force)
    if json:
        print_json(asdict(report) | {"path": str(report.path), "perplexity_change": report.cost.change})
    else:
        print("\n".join(_describe(report)))


def _describe(report: ThresholdReport) -> list[str]:
    cost = report.cost
    layers = cost.layer_zeros
    return [
        f"zeros       {cost.zeros:.1%} of the neurons of a token, by layer {min(layers):.0%} to {max(layers):.0%}",
        f"perplexity  {cost.exact_perplexity:.3f} -> {cost.perplexity:.3f}, {cost.change:+.2%} ± {cost.error:.2%} "
        f"on {cost.tokens} held-out tokens",
        f"divergence  {cost.divergence:.4f} nats from the distribution of the next token",
        str(report.path),
    ]
