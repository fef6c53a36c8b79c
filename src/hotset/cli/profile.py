"""`hotset profile`: what a model's neurons do on some text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotset.cli.options import EngineFlags, JsonFlag, ModelArgument, takes
from hotset.cli.progress import progress_bar
from hotset.cli.text import human_bytes, note, print_json

if TYPE_CHECKING:
    from hotset.formats.profile import Profile
    from hotset.llm import LLM
    from hotset.tools.profile import ProfileOptions


@takes(engine=EngineFlags)
def profile(
    model: ModelArgument,
    text: Annotated[
        list[Path] | None,
        typer.Option("--text", metavar="FILE", help="Plain text, or .jsonl with a key 'text'; may be repeated."),
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", "-n", min=1, help="Count at most so many.")] = 32768,
    window: Annotated[int, typer.Option("--window", min=33, help="Tokens run from an empty context at once.")] = 512,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write; default: profile.safetensors in the store.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw it: .svg, .png or .pdf; needs hotset[plot].")
    ] = None,
    replay: Annotated[bool, typer.Option(help="Replay cache policies on the recorded trace.")] = True,
    json: JsonFlag = False,
    *,
    engine: EngineFlags,
) -> None:
    """Count which neurons are active. Stopped, it goes on when run again; without --text it shows what is there."""
    from hotset.tools import profile_plot, profile_report

    if plot is not None:
        profile_plot.check(plot)
    found = _profile(model, text, tokens, window, out, engine, json) if text else _there(model, out)
    report = profile_report.report(found, with_replay=replay)
    if plot is not None:
        profile_plot.plot(found, report, plot)
    for line in report.notes:
        note(f"note: {line}")
    if json:
        print_json(profile_report.as_json(report))
    else:
        print("\n".join(profile_report.lines(report)))


def _profile(
    name: str, text: list[Path], tokens: int, window: int, out: Path | None, engine: EngineFlags, quiet: bool
) -> Profile:
    from hotset.tools import profile as tool

    options = tool.ProfileOptions(tokens=tokens, window=window)
    with _loaded(name, engine, options, quiet) as llm, progress_bar(not quiet) as progress:
        return tool.profile(llm, text, out, options, progress)


def _loaded(name: str, engine: EngineFlags, options: ProfileOptions, quiet: bool) -> LLM:
    """The model in what counting leaves of the budget."""
    from hotset.cli.load import load_model

    if engine.memory is None:
        return load_model(name, engine, quiet=quiet)
    from hotset.engine.budget import parse_bytes
    from hotset.errors import MemoryBudgetError
    from hotset.formats.store import open_store
    from hotset.models import resolve
    from hotset.tools import resolve_model
    from hotset.tools.profile import working_bytes

    ignored = engine.ignore_key or ()
    config = resolve(open_store(resolve_model(name, ignore_keys=ignored)).config, ignore_keys=ignored).config
    own = working_bytes(len(config.layers), config.ffn, options)
    left = max(parse_bytes(engine.memory) - own, 1)
    try:
        return load_model(name, replace(engine, memory=str(left)), quiet=quiet)
    except MemoryBudgetError as error:
        raise MemoryBudgetError(f"{error}. Profiling takes {human_bytes(own)} more than running") from None


def _there(name: str, path: Path | None) -> Profile:
    """The profile of an earlier run, however short its text."""
    from hotset.formats.profile import load_profile
    from hotset.formats.store import open_store
    from hotset.tools import resolve_model

    return load_profile(open_store(resolve_model(name)), path, least_tokens=1)
