"""`hotset eval ppl`: how good a model is at predicting text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hotset.cli.options import EngineFlags, JsonFlag, ModelArgument, takes
from hotset.cli.progress import progress_bar
from hotset.cli.text import print_json, read_text
from hotset.errors import UsageError


@takes(engine=EngineFlags)
def ppl(
    model: ModelArgument,
    text: Annotated[Path | None, typer.Argument(help="UTF-8 text; else standard input.", show_default=False)] = None,
    window: Annotated[int, typer.Option("--window", min=2, help="Tokens of a window.")] = 512,
    stride: Annotated[
        int | None,
        typer.Option("--stride", min=1, help="Tokens between windows; default: side by side, second half scored."),
    ] = None,
    windows: Annotated[int | None, typer.Option("--windows", min=1, help="Only so many; default: all.")] = None,
    json: JsonFlag = False,
    *,
    engine: EngineFlags,
) -> None:
    """Perplexity of a model on a text, by default in the windows that llama-perplexity uses."""
    if stride is None and window < 3:  # the first token of a second half is only read
        raise UsageError(
            f"--window is {window}; wanted at least 3, of whose second half a token is scored, or a --stride"
        )
    document = read_text(text, "text", "name a file of it after the model, or give it on standard input")
    from hotset.cli.load import load_model

    with load_model(model, engine, quiet=json) as llm, progress_bar(not json) as progress:
        found = llm.perplexity(
            document,
            window=window,
            stride=stride,
            most_windows=windows,
            progress=lambda done, total: progress(done, total, "windows"),
        )
    if json:
        print_json({"perplexity": found.value, "error": found.error, "tokens": found.tokens, "windows": found.windows})
    else:
        print(f"perplexity {found.value:.4f} ± {found.error:.4f} on {found.tokens} tokens of {found.windows} windows")
