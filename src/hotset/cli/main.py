"""The `hotset` command: its commands, and what becomes of their errors."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from hotset import __version__
from hotset.cli import (
    bench,
    chat,
    convert,
    doctor,
    evaluate,
    inspect,
    pack,
    plan,
    ppl,
    probe,
    profile,
    pull,
    run,
    sketch,
    sparsify,
    threshold,
    train_predictor,
)
from hotset.cli.text import note
from hotset.errors import HotsetError

BROKEN_PIPE = 141  # as if SIGPIPE had ended the process: 128 + 13
INTERRUPTED = 130  # 128 + SIGINT
UNEXPECTED = 70  # EX_SOFTWARE of sysexits.h
_OUT_OF_MEMORY = 6  # MemoryBudgetError

app = typer.Typer(
    name="hotset",
    help="Runs language models that do not fit in memory, at nearly the speed they would have if they did.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _ended_from_outside(command: Callable[..., None]) -> Callable[..., None]:
    """Answers Ctrl-C and a closed pipe before typer does, who would lose notes of the one and exit 1 for the other."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
            sys.stdout.flush()
        except KeyboardInterrupt as stop:
            for line in getattr(stop, "__notes__", ()):
                note(f"hotset: {line}")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter's last flush stays silent
            raise typer.Exit(BROKEN_PIPE) from None

    return wrapper


COMMANDS = (
    run.run,
    chat.chat,
    convert.convert,
    pack.pack,
    pull.pull,
    threshold.threshold,
    profile.profile,
    probe.probe,
    train_predictor.train_predictor,
    sketch.sketch,
    sparsify.sparsify,
    plan.plan,
    inspect.inspect,
    bench.bench,
    evaluate.evaluate,
    doctor.doctor,
)
for command in COMMANDS:
    app.command()(_ended_from_outside(command))
evaluate_app = typer.Typer(help="Measure the quality of a model.", rich_markup_mode=None)
evaluate_app.command()(_ended_from_outside(ppl.ppl))
app.add_typer(evaluate_app, name="eval")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"hotset {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main(args: Sequence[str] | None = None) -> int:
    """Runs one command line (default: the process's own) and returns its exit code."""
    try:
        status = typer.main.get_command(app).main(args, prog_name="hotset", standalone_mode=False)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        return _report(error)
    return status if isinstance(status, int) else 0


def _report(error: Exception) -> int:
    """Says what went wrong in one paragraph on standard error; returns the exit code."""
    if os.environ.get("HOTSET_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    if isinstance(error, HotsetError):
        return _complain(str(error), error.exit_code)
    if isinstance(error, typer.TyperException):
        return _complain(_usage_message(error), getattr(error, "exit_code", 2))
    if isinstance(error, MemoryError):
        return _complain("out of memory; use a smaller model, a shorter --context or --kv int8", _OUT_OF_MEMORY)
    return _complain(
        f"unexpected {type(error).__name__}: {error}. This is a bug in hotset; "
        "HOTSET_DEBUG=1 prints the traceback to report",
        UNEXPECTED,
    )


def _complain(message: str, code: int) -> int:
    note("hotset: " + " ".join(message.split()))
    return code


def _usage_message(error: typer.TyperException) -> str:
    """What typer has against the command line, with the value it got and where help is."""
    context = getattr(error, "ctx", None)
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    errors = getattr(error.__cause__, "errors", None)  # of pydantic, below typer
    got = f" (got {errors()[0]['input']!r})" if errors else ""
    end = "" if text.endswith("?") else "."
    return f"{text.rstrip('.')}{got}{end} See '{context.command_path if context else 'hotset'} --help'"


if __name__ == "__main__":
    sys.exit(main())
