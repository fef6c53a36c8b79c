"""The `hotset` command: its commands, and what becomes of their errors."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TextIO

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
from hotset.errors import HotsetError, MemoryBudgetError, StorageError, UsageError

BROKEN_PIPE = 141  # as if SIGPIPE had ended the process: 128 + 13
INTERRUPTED = 130  # 128 + SIGINT
UNEXPECTED = 70  # EX_SOFTWARE of sysexits.h
_MODELS = ("model", "source", "store")  # what commands call the argument that says which

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
            for name in _MODELS:
                if (model := kwargs.get(name)) is not None:
                    _refuse_no_name(model)
            command(*args, **kwargs)
            sys.stdout.flush()
        except KeyboardInterrupt as stop:
            for line in getattr(stop, "__notes__", ()):
                note(f"hotset: {line}")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            raise typer.Exit(BROKEN_PIPE) from None

    return wrapper


def _refuse_no_name(model: str) -> None:
    """Raises UsageError for what no file is called, such as a prompt that stands where MODEL was forgotten."""
    try:
        (Path(model).expanduser() / "manifest.json").exists()
        return
    except RuntimeError:
        why = "nobody of that name has a home on this machine; write the path in full"
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            return  # whoever opens it says what the drive has against it
        why = "no file can have so long a name; a prompt comes after the model"
    raise UsageError(f"{model[:200]!a} is no store, .gguf file or folder here, and no hub id (owner/name): {why}")


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
    _prepare_streams()
    try:
        return _run(args)
    finally:
        for stream in (sys.stdout, sys.stderr):
            if not _flushed(stream):  # nor would it be at the interpreter's end, who would say so and exit 120
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run(args: Sequence[str] | None) -> int:
    try:
        status = typer.main.get_command(app).main(args, prog_name="hotset", standalone_mode=False)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return BROKEN_PIPE
    except Exception as error:
        return _report(error)
    return status if isinstance(status, int) else 0


def _prepare_streams() -> None:
    """A stream that was closed (>&-) becomes /dev/null; characters that standard output does not have are escaped."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "r" if name == "stdin" else "w"))
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _flushed(stream: TextIO) -> bool:
    """Whether all that was written to a stream could be."""
    try:
        stream.flush()
    except OSError:
        return False
    return True


def _report(error: Exception) -> int:
    """Says what went wrong in one paragraph on standard error; returns the exit code."""
    if os.environ.get("HOTSET_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    message, code = _explained(error)
    with contextlib.suppress(OSError):  # who has no standard error left still gets the exit code
        note("hotset: " + " ".join(message.split()))
    return code


def _explained(error: Exception) -> tuple[str, int]:
    """What went wrong, and the exit code."""
    if isinstance(error, HotsetError):
        return str(error), error.exit_code
    if isinstance(error, typer.TyperException):
        return _usage_message(error), getattr(error, "exit_code", UsageError.exit_code)
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        message = "out of memory; use a smaller model, a shorter --context or --kv int8"
        return message, MemoryBudgetError.exit_code
    if isinstance(error, OSError) and error.errno is not None:  # None: the system did not raise it
        place = error.filename or "standard output or a file"
        advice = "see to its path, permissions and the space there, or take another"
        return f"cannot use {place}: {error.strerror}; {advice}", StorageError.exit_code
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # of Path.expanduser and Path.home
        return "a path with ~ or the cache is in a home directory that is not known; set HOME", UsageError.exit_code
    return (
        f"unexpected {type(error).__name__}: {error}. This is a bug in hotset; "
        "HOTSET_DEBUG=1 prints the traceback to report",
        UNEXPECTED,
    )


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
