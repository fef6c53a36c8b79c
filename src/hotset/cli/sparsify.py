"""`hotset sparsify`: a model whose FFNs are mostly zero, by training it on with another activation."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from hotset.cli.options import JsonFlag, takes
from hotset.cli.progress import progress_bar
from hotset.cli.text import note, print_json
from hotset.errors import HostError, UsageError


@dataclass(frozen=True, slots=True)
class MethodFlags:
    """What changes the result besides model, text and length of the run; fields as in train.settings.Settings."""

    activation: Annotated[
        str, typer.Option(metavar="drelu|relu|fatrelu|keep", help="Of the FFNs; keep: as it is, for comparison.")
    ] = "drelu"
    threshold: Annotated[float, typer.Option(help="Of fatrelu: smaller gates give 0.")] = 0.01
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Begin with random weights in the shape of MODEL's config.json.")
    ] = False
    batch: Annotated[int, typer.Option(help="Sequences of one step, over all processes.")] = 32
    sequence: Annotated[int, typer.Option(help="Tokens of a sequence.")] = 1024
    lr: Annotated[float, typer.Option(help="Learning rate after the warm-up.")] = 5e-5
    final_lr: Annotated[float, typer.Option(help="Share of it at the last step; a cosine leads there.")] = 0.1
    warmup: Annotated[int, typer.Option(help="Steps of rising rate.")] = 50
    swap_steps: Annotated[int, typer.Option(help="Steps from the old activation to the new; 0: at once.")] = 0
    distill: Annotated[float, typer.Option(help="Weight of the original's distribution in the loss, 0 to 1.")] = 0.0
    teacher: Annotated[
        str, typer.Option(metavar="MODEL", help="With --distill: whose distribution instead; it has the same tokens.")
    ] = ""
    l1: Annotated[float, typer.Option(help="Weight of the mean size of the neurons' outputs; rises from 0.")] = 0.0
    l1_steps: Annotated[int, typer.Option(help="Steps until it is reached; 0: all.")] = 0
    zeros: Annotated[
        float, typer.Option(help="Wanted share of zeros; the pull to zero gets as strong as it takes. 0: --l1 alone.")
    ] = 0.0
    ffn_batch: Annotated[int, typer.Option(metavar="TOKENS", help="Of one update with --ffn-tokens.")] = 512
    ffn_lr: Annotated[float, typer.Option(help="Learning rate with --ffn-tokens.")] = 1e-3
    optimizer: Annotated[str, typer.Option(metavar="adamw|muon", help="muon: for the layers' matrices.")] = "adamw"
    weight_decay: Annotated[float, typer.Option(help="Of matrices.")] = 0.1
    clip: Annotated[float, typer.Option(help="Most norm of all gradients; 0: any.")] = 1.0
    dtype: Annotated[str, typer.Option(metavar="bf16|f32", help="Of matrix products and of the result.")] = "bf16"
    held_out: Annotated[float, typer.Option(help="Share of each text that is measured instead of trained on.")] = 0.01
    seed: Annotated[int, typer.Option(help="Same seed, same order of the text.")] = 0


@dataclass(frozen=True, slots=True)
class RunningFlags:
    """How the run is carried out; fields as in train.settings.Running."""

    micro_batch: Annotated[int, typer.Option(help="Sequences of one pass; fewer take less memory.")] = 8
    recompute: Annotated[
        bool,
        typer.Option("--recompute", help="Compute activations again for the gradient; less memory, a third slower."),
    ] = False
    checkpoint_every: Annotated[float, typer.Option(metavar="SECONDS", help="Between checkpoints.")] = 300.0
    log_every: Annotated[int, typer.Option(metavar="STEPS", help="Between lines of figures.")] = 10
    measure_every: Annotated[int, typer.Option(metavar="STEPS", help="Between measurements on held-out text.")] = 200
    threads: Annotated[int, typer.Option("--threads", "-t", min=0, help="0: PyTorch's choice.")] = 0
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="auto: a GPU if there is one.")] = "auto"
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write OUTPUT/tensorboard.")] = False
    restart: Annotated[bool, typer.Option("--restart", help="Forget the checkpoints in OUTPUT.")] = False
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Go on although the settings are not those the run began with.")
    ] = False


@takes(method=MethodFlags, running=RunningFlags)
def sparsify(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hugging Face folder or hub id of a Llama-like model.")],
    data: Annotated[
        list[str],
        typer.Option(
            "--data",
            "-d",
            metavar="FILE[=WEIGHT]",
            help="Text, .jsonl or .parquet (.zst, .gz), a folder, or hf:OWNER/NAME[/CONFIG][:SPLIT]; repeatable.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Of the result and its run.")],
    steps: Annotated[int | None, typer.Option(help="Steps of the optimizer.")] = None,
    tokens: Annotated[str | None, typer.Option("--tokens", "-n", help="Instead of --steps: such as 500M.")] = None,
    ffn_tokens: Annotated[
        str | None, typer.Option(metavar="TOKENS", help="First train layer after layer on so many.")
    ] = None,
    json: JsonFlag = False,
    *,
    method: MethodFlags,
    running: RunningFlags,
) -> None:
    """Train a model on with a sparse activation (TurboSparse, ProSparse) and write it for `hotset convert`.

    Interrupted runs go on from their last checkpoint when called again. Several devices: torchrun --nproc-per-node N
    -m hotset.cli.main sparsify …
    """
    try:
        from hotset.train.sparsify import as_json
        from hotset.train.sparsify import sparsify as tool
    except ImportError as error:
        raise HostError(
            f"hotset sparsify needs {error.name}, which is not installed: pip install 'hotset[train]'"
        ) from None
    from hotset.train.settings import DataSource, Running, Settings

    settings = Settings(
        model=_folder_of(model),
        data=tuple(DataSource.parse(each) for each in data),
        steps=steps_of(steps, tokens, method.batch * method.sequence),
        ffn_sequences=steps_of(None, ffn_tokens, method.sequence) if ffn_tokens and parse_count(ffn_tokens) else 0,
        **_values(method) | {"teacher": _folder_of(method.teacher) if method.teacher else ""},
    )
    with progress_bar(not json) as progress:
        report = tool(settings, Running(**_values(running)), output, note, progress)
    if not report.first:
        return
    if json:
        print_json(as_json(report))
    if report.found is None:
        note(f"stopped after step {report.step} of {settings.steps}; the same command goes on from there")
        raise typer.Exit(130)
    if not json:
        print(f"{output}\nnext: hotset convert {output} STORE")


def _folder_of(model: str) -> str:
    """The folder of a checkpoint, fetched first if a hub id is given. Raises UsageError for GGUF files."""
    from hotset.tools.pull import download
    from hotset.tools.resolve import ALIASES, is_hub_id

    found = Path(model)
    if not found.exists() and (is_hub_id(model) or model.lower() in ALIASES):
        with progress_bar() as progress:
            found = download(model, progress=progress)
    if found.suffix == ".gguf":
        raise UsageError(
            f"{model} is a GGUF file, whose weights are rounded; give the folder or hub id of its checkpoint"
        )
    return str(found)


def steps_of(steps: int | None, tokens: str | None, each: int) -> int:
    """--steps, or as many as --tokens makes of `each` tokens. Raises UsageError if not just one is given."""
    if (steps is None) == (tokens is None):
        raise UsageError(f"got {'neither' if steps is None else 'both'} --steps and --tokens; give one of them")
    return steps if steps is not None else max(parse_count(tokens or "") // max(each, 1), 1)


def parse_count(text: str) -> int:
    """'500M' -> 500000000. Raises UsageError."""
    units = {"K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9}
    unit = units.get(text[-1:].upper(), 1)
    try:
        return int(float(text[:-1] if unit != 1 else text) * unit)
    except (ValueError, OverflowError):
        raise UsageError(f"--tokens {text[:40]!r}: want a count, such as 500000 or 2.5M") from None


def _values(flags: Any) -> dict[str, Any]:
    return {field.name: getattr(flags, field.name) for field in fields(flags)}
