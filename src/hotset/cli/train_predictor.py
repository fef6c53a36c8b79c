"""`hotset train-predictor`: what says, before they are read, which neurons of a packed model a token needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotset.cli.options import JsonFlag, ModelArgument, parse_share
from hotset.cli.progress import progress_bar
from hotset.cli.text import note, print_json
from hotset.errors import UsageError

if TYPE_CHECKING:
    from hotset.tools.train_predictor import TrainOptions


def train_predictor(
    model: ModelArgument,
    text: Annotated[
        list[Path],
        typer.Option("--text", metavar="FILE", help="Plain text, or .jsonl with a key 'text'; may be repeated."),
    ],
    tokens: Annotated[
        int, typer.Option("--tokens", "-n", help="Use at most so many; a quarter of them is held out.")
    ] = 8192,
    written: Annotated[int, typer.Option(metavar="N", help="More tokens, which the model writes itself.")] = 2048,
    rank: Annotated[str, typer.Option(metavar="auto|R", help="Of the maps; auto: each layer's own.")] = "auto",
    loss: Annotated[str, typer.Option(metavar="SHARE", help="Allowed loss of perplexity.")] = "0.5%",
    measure: Annotated[int, typer.Option(help="Tokens of each run that sets the thresholds.")] = 256,
    published: Annotated[
        bool, typer.Option("--published", help="Take those that the checkpoint brought; only set thresholds.")
    ] = False,
    drafts_only: Annotated[
        bool,
        typer.Option("--drafts-only", help="Keep the store's predictors; only measure how often drafts hold."),
    ] = False,
    threads: Annotated[int, typer.Option("--threads", "-t", min=0, help="0: all cores.")] = 0,
    json: JsonFlag = False,
) -> None:
    """Train predictors for a packed model and write them into its store; `run --predict auto` uses them."""
    from hotset.tools import resolve_model
    from hotset.tools import train_predictor_report as reports
    from hotset.tools.train_predictor import TrainOptions
    from hotset.tools.train_predictor import train_predictor as tool

    options = TrainOptions(
        tokens, written, parse_rank(rank), parse_share(loss, "--loss"), measure, threads, published=published
    )
    if drafts_only:
        _measure_again(resolve_model(model), text, options, json)
        return
    with progress_bar(not json) as progress:
        report = tool(resolve_model(model), text, options, progress)
    for line in report.notes:
        note(f"note: {line}")
    if json:
        print_json(reports.as_json(report))
    else:
        print("\n".join([*reports.lines(report), str(report.path)]))


def _measure_again(folder: Path, text: list[Path], options: TrainOptions, json: bool) -> None:
    from hotset.tools.train_predictor_again import measure_again
    from hotset.tools.train_predictor_report import draft_line

    with progress_bar(not json) as progress:
        report = measure_again(folder, text, options, progress)
    if json:
        print_json(report.as_json())
    else:
        print(f"{draft_line(report.drafts)}\n{report.path}")


def parse_rank(text: str) -> int | None:
    """None for "auto". Raises UsageError."""
    if text == "auto":
        return None
    if not text.isdecimal():
        raise UsageError(f"--rank {text[:40]!r}: want auto or a whole number, such as 256")
    return int(text)
