"""Flags that several commands share, as dataclasses; `takes` adds their fields to a command's signature."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from hotset.errors import UsageError


def parse_logit_bias(items: list[str]) -> dict[int, float]:
    """['42=-1.5', …] -> {token id: bias}. Raises UsageError."""
    bias = {}
    for item in items:
        token, _, value = item.partition("=")
        try:
            bias[int(token)] = float(value)
        except ValueError:
            raise UsageError(f"--logit-bias '{item}': want TOKEN_ID=NUMBER, such as 42=-1.5") from None
    return bias


def parse_share(text: str, flag: str) -> float:
    """'0.5%' or '0.005' -> 0.005. Raises UsageError."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise UsageError(f"{flag} {text[:40]!r}: want a share, such as 0.5% or 0.005") from None


def numbers(text: str, flag: str) -> list[int]:
    """'1,2,4' -> [1, 2, 4]; zeros are dropped. Raises UsageError."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{flag} '{text}': want whole numbers with commas between, such as 1,2,4") from None
    if min(values) < 0:
        raise UsageError(f"{flag} '{text}': want no negative numbers")
    return [value for value in values if value]


def complete_model(incomplete: str) -> list[str]:
    """Names for shell completion: short names of models, and what lies here."""
    from hotset.tools.resolve import ALIASES, PACKAGED

    folder = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
    beside = [str(path) for path in folder.iterdir()] if folder.is_dir() else []
    return [name for name in (*PACKAGED, *ALIASES, *beside) if name.startswith(incomplete)]


ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A store, a GGUF file, a Hugging Face folder or hub id, or a known name such as smollm2-135m-instruct.",
        autocompletion=complete_model,
        show_default=False,
    ),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


@dataclass(frozen=True, slots=True)
class EngineFlags:
    """How a model is loaded; unset flags leave the library's defaults."""

    threads: Annotated[int | None, typer.Option("--threads", "-t", help="Threads; default: all cores.")] = None
    context: Annotated[
        int | None, typer.Option("--context", "-c", help="Tokens of context; default: up to the model's limit.")
    ] = None
    memory: Annotated[str | None, typer.Option("--memory", help="Refuse to use more than this, such as 4GiB.")] = None
    kv: Annotated[str | None, typer.Option("--kv", metavar="f16|int8", help="Format of the KV cache.")] = None
    load: Annotated[
        str | None, typer.Option("--load", metavar="auto|read|mmap", help="Read the weights or map them.")
    ] = None
    predict: Annotated[
        str | None,
        typer.Option(
            "--predict", metavar="exact|auto", help="Packed models: auto allows predictors with a small loss."
        ),
    ] = None
    loss: Annotated[
        str | None,
        typer.Option("--loss", metavar="SHARE", help="With --predict auto: loss of perplexity allowed, such as 1%."),
    ] = None
    no_draft: Annotated[
        bool,
        typer.Option("--no-draft", help="Packed models: draft no tokens with predictors to verify them."),
    ] = False
    plan: Annotated[
        str | None, typer.Option("--plan", metavar="FILE", help="Packed models: what `hotset plan -o` wrote.")
    ] = None
    isa: Annotated[str | None, typer.Option("--isa", help="Force kernels; `hotset doctor` lists them.")] = None
    ignore_key: Annotated[
        list[str] | None, typer.Option("--ignore-key", help="Run although this key of config.json is not understood.")
    ] = None

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `LLM`.

        Raises: UsageError for what cannot be, also beside --plan; and what reading that file raises.
        """
        given = _given(self)
        if "ignore_key" in given:
            given["ignore_keys"] = tuple(given.pop("ignore_key"))
        if "loss" in given:
            given["loss"] = parse_share(given["loss"], "--loss")
        if "no_draft" in given:
            given["draft"] = not given.pop("no_draft")
        if "plan" in given and given.keys() & {"predict", "loss"}:
            _check_beside_plan(given)
        return given


def _check_beside_plan(given: dict[str, Any]) -> None:
    """Raises UsageError if the plan, which decides, says otherwise than flags that were given."""
    from hotset.planner.plan_file import read_plan

    plan = read_plan(Path(given["plan"]).expanduser())
    made, predict = plan.made_for.predict, given.get("predict", plan.made_for.predict)
    if predict != made and not (predict == "exact" and plan.exact):
        raise UsageError(
            f"--predict is {predict}, and {given['plan']} was made with --predict {made}: leave out --predict, or "
            "plan again with it"
        )
    if "loss" in given and given["loss"] != plan.loss:
        says = "without --loss" if plan.loss is None else f"with --loss {plan.loss:g}"
        raise UsageError(
            f"--loss is {given['loss']:g}, and {given['plan']} was made {says}: leave out --loss, or plan again with it"
        )


@dataclass(frozen=True, slots=True)
class RunFlags(EngineFlags):
    """The same for commands that answer."""

    trace: Annotated[
        str | None, typer.Option("--trace", metavar="FILE", help="Write a timeline to open in ui.perfetto.dev.")
    ] = None


@dataclass(frozen=True, slots=True)
class SamplingFlags:
    """How tokens are chosen; unset flags leave the model's and the library's defaults."""

    max_tokens: Annotated[int | None, typer.Option("--max-tokens", "-n", help="Most tokens to generate.")] = None
    temperature: Annotated[float | None, typer.Option("--temperature", help="0 takes the likeliest token.")] = None
    top_k: Annotated[int | None, typer.Option("--top-k", help="Keep the k likeliest tokens; 0: all.")] = None
    top_p: Annotated[float | None, typer.Option("--top-p", help="Keep the likeliest tokens that sum to p.")] = None
    min_p: Annotated[float | None, typer.Option("--min-p", help="Drop tokens below this share of the likeliest.")] = (
        None
    )
    repetition_penalty: Annotated[
        float | None, typer.Option("--repetition-penalty", help="Divide the logits of tokens already seen.")
    ] = None
    presence_penalty: Annotated[
        float | None, typer.Option("--presence-penalty", help="Subtract once from tokens generated before.")
    ] = None
    frequency_penalty: Annotated[
        float | None, typer.Option("--frequency-penalty", help="Subtract for each time a token was generated.")
    ] = None
    logit_bias: Annotated[
        list[str] | None, typer.Option("--logit-bias", metavar="TOKEN_ID=BIAS", help="Add to a token's logit.")
    ] = None
    seed: Annotated[int | None, typer.Option("--seed", help="Same seed, same text.")] = None
    stop: Annotated[list[str] | None, typer.Option("--stop", help="End before this text; may be repeated.")] = None
    stop_token_id: Annotated[list[int] | None, typer.Option("--stop-token-id", help="End at this token.")] = None
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on past the end-of-text token.")] = False

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `SamplingParams`."""
        given = _given(self)
        if self.logit_bias:
            given["logit_bias"] = parse_logit_bias(self.logit_bias)
        for name in ("stop", "stop_token_id"):
            if name in given:
                given[f"{name}s" if name == "stop_token_id" else name] = tuple(given.pop(name))
        return given


def _given(flags: Any) -> dict[str, Any]:
    pairs = ((field.name, getattr(flags, field.name)) for field in fields(flags))
    return {name: value for name, value in pairs if value is not None and value is not False and value != []}


def takes(**groups: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replaces each parameter of a command named in `groups` by one flag per field of that dataclass.

    The command still receives one object per group; typer sees, and the help shows, the single flags. A parameter that
    the command has itself stands in for the group's field of that name, which stays unset.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name not in groups]
        names = {p.name for p in own}
        members = {group: [p for p in _parameters(kind) if p.name not in names] for group, kind in groups.items()}

        @functools.wraps(command)
        def wrapper(**values: Any) -> None:
            for group, parameters in members.items():
                values[group] = groups[group](**{p.name: values.pop(p.name) for p in parameters})
            command(**values)

        keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        merged = [*keyword, *(p for parameters in members.values() for p in parameters)]
        wrapper.__dict__["__signature__"] = inspect.Signature(merged)
        wrapper.__annotations__ = {p.name: p.annotation for p in merged}
        return wrapper

    return decorate


def _parameters(kind: type) -> list[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
        for f in fields(kind)
    ]
