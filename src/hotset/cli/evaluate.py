"""`hotset evaluate`: the quality of variants of a model, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotset.cli.options import JsonFlag
from hotset.cli.progress import progress_bar
from hotset.cli.text import print_json

if TYPE_CHECKING:
    from hotset.formats.files import Json


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]MODEL[@HOW]...",
            help="Variants; @predicted: with the predictors of a packed store; @q4_0, @q8_0, …: converted to that.",
            show_default=False,
        ),
    ],
    tasks: Annotated[
        str | None, typer.Option(metavar="LIST", help="Such as arc_easy,piqa; see the documentation for all.")
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where the tasks' files are.")] = None,
    text: Annotated[Path | None, typer.Option("--text", metavar="FILE", help="UTF-8 text for perplexity.")] = None,
    windows: Annotated[int | None, typer.Option(help="Windows of the text at most; default: all.")] = None,
    window: Annotated[int, typer.Option(help="Tokens of a window, whose second half is scored.")] = 512,
    limit: Annotated[int | None, typer.Option(help="Items of each task at most; default: all.")] = None,
    fewshot: Annotated[int | None, typer.Option(help="Examples before each item; default: the task's own.")] = None,
    threads: Annotated[int | None, typer.Option("--threads", "-t", min=1, help="Default: all cores.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what earlier runs found.")] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw quality over zeros: .svg, .png or .pdf.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write a JSON file, with host and date.")] = None,
    json: JsonFlag = False,
) -> None:
    """Perplexity and tasks, as lm-evaluation-harness has them. Stopped, it goes on when run again."""
    from hotset.tools import evaluate as tool
    from hotset.tools import evaluate_report as reports
    from hotset.tools import profile_plot, result
    from hotset.tools.evaluate_tasks import chosen_tasks
    from hotset.tools.evaluate_variants import parse_variant

    if plot is not None:
        profile_plot.check(plot)
    chosen = chosen_tasks([name for name in (tasks or "").split(",") if name])
    options = tool.EvaluateOptions(chosen, data, text, windows, window, limit, fewshot, threads, fresh)
    with progress_bar(not json) as progress:
        found = reports.as_json(tool.evaluate([parse_variant(m) for m in models], options, progress))
    if plot is not None:
        reports.plot(found, plot)
    if out is not None:
        result.write(result.record("evaluate", [], **found), out)
    if json:
        print_json(found)
    elif markdown:
        print(reports.markdown(found))
    else:
        _print_table(found)


def _print_table(found: Json) -> None:
    from rich.console import Console
    from rich.table import Table

    from hotset.tools.evaluate_report import table

    head, rows = table(found)
    shown = Table(box=None, pad_edge=False)
    for i, name in enumerate(head):
        shown.add_column(name, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        shown.add_row(*row)
    Console().print(shown)
