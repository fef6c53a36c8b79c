"""`hotset pull`: fetch a model and make it ready to run."""

from __future__ import annotations

from typing import Annotated

import typer

from hotset.cli.options import JsonFlag, complete_model
from hotset.cli.progress import progress_bar
from hotset.cli.text import print_json


def pull(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A hub id (owner/name, owner/name:Q8_0, owner/name/file.gguf) or a known short name.",
            autocompletion=complete_model,
        ),
    ],
    quant: Annotated[str, typer.Option(help="Weight formats, as for `hotset convert`.")] = "auto",
    ignore_key: Annotated[
        list[str] | None, typer.Option("--ignore-key", help="Treat this key of config.json as absent.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Fetch and convert again.")] = False,
    json: JsonFlag = False,
) -> None:
    """Download a model and convert it into the cache folder. Interrupted, it goes on when run again."""
    from hotset.tools import pull as tool

    with progress_bar(not json) as progress:
        path = tool.pull(model, quant=quant, ignore_keys=tuple(ignore_key or ()), progress=progress, force=force)
    if json:
        print_json({"path": str(path)})
    else:
        print(path)
