"""`hotset run`: one prompt, one answer."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hotset.cli.options import JsonFlag, RunFlags, SamplingFlags, complete_model, takes
from hotset.cli.text import note, print_json, read_prompt
from hotset.errors import InputError, UsageError

if TYPE_CHECKING:
    from hotset.engine import Completion, Sample
    from hotset.llm import LLM
    from hotset.params import SamplingParams

Prompt = str | list[dict[str, str]]
STORYTELLER = "stories-13m"  # lies in the package
BEGINNING = "Once upon a time"
STORY_SAMPLING = {"temperature": 0.6, "top_k": 40}  # its likeliest words alone go round in circles
StoryArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="As in all commands, a store, a file, a folder or a name; without one, the package's own tells a story.",
        autocompletion=complete_model,
        show_default=False,
    ),
]


@takes(engine=RunFlags, sampling=SamplingFlags)
def run(
    model: StoryArgument = None,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="Text; else --file or standard input.", show_default=False)
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the prompt from this file.")] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", help="System message for the chat template.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text; use no chat template.")] = False,
    samples: Annotated[int, typer.Option("--samples", help="Several answers from one reading of it.")] = 1,
    logprobs: Annotated[
        int | None, typer.Option("--logprobs", help="With --json: also the n likeliest tokens at each step.")
    ] = None,
    echo: Annotated[bool, typer.Option("--echo", help="Begin the answer with the prompt.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print no figures at the end.")] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Print latencies, neurons, reads, bound and memory.")] = False,
    json: JsonFlag = False,
    *,
    engine: RunFlags,
    sampling: SamplingFlags,
) -> None:
    """Answer a prompt, or continue a text (--raw, or a model without chat template), and print it as it comes."""
    given = sampling.arguments()
    if model is None:
        model, text, echo = STORYTELLER, BEGINNING if file is None else read_prompt(None, file), True
        given = STORY_SAMPLING | given
    else:
        text = read_prompt(prompt, file)
    from hotset.cli.load import load_model
    from hotset.params import SamplingParams

    params = SamplingParams(**given, n=samples, logprobs=logprobs, echo=echo)
    started = time.perf_counter()
    with load_model(model, engine, quiet=json) as llm:
        loaded = time.perf_counter() - started
        completion = _answer(llm, as_asked(llm, text, system, raw), params, live=not json and samples == 1)
        measured = llm.run_stats(completion) if stats else None
        if json:
            more = {} if measured is None else {"stats": measured.as_json()}
            for sample in completion.samples:
                print_json(_as_json(llm, model, completion, sample, loaded) | more)
            return
    if samples > 1:
        print(*(f"--- {i}\n{sample.text}" for i, sample in enumerate(completion.samples, 1)), sep="\n")
    if not quiet:
        note(figures(completion, loaded))
    if measured is not None:
        from hotset.tools.run_stats import lines

        note("\n".join(lines(measured)))


def as_asked(llm: LLM, text: str, system: str | None, raw: bool) -> Prompt:
    """Messages for a model with a chat template; the plain text for others and with --raw."""
    if raw or not llm.tokenizer.has_chat_template:
        if system is not None:
            raise UsageError("--system needs a chat template; drop it, or write it into the prompt")
        return text
    if not text.strip():
        raise InputError("the prompt is empty; give at least one character")
    start = [{"role": "system", "content": system}] if system is not None else []
    return [*start, {"role": "user", "content": text}]


def _answer(llm: LLM, asked: Prompt, params: SamplingParams, *, live: bool) -> Completion:
    """The whole answer; `live` prints it as it comes."""
    with llm.stream(asked, params) as stream:
        for chunk in stream:
            if live and chunk.text:
                print(chunk.text, end="", flush=True)
        if live:
            print(flush=True)
        return stream.completion


def _as_json(llm: LLM, model: str, completion: Completion, sample: Sample, loaded: float) -> dict[str, Any]:
    stats, native = completion.stats, llm.stats
    return {
        "model": model,
        "text": sample.text,
        "tokens": sample.tokens,
        "logprobs": sample.logprobs,
        "top_logprobs": [[asdict(top) for top in step] for step in sample.top_logprobs if step],
        "finish_reason": sample.finish_reason,
        "stop_reason": sample.stop_reason,
        "seed": completion.seed,
        "prompt_tokens": stats.prompt_tokens,
        "output_tokens": len(sample.tokens),
        "load_s": loaded,
        "ttft_s": stats.ttft,
        "tokens_per_s": stats.decode_rate,
        "memory": {"weight_bytes": native["weight_bytes"], "kv_bytes": native["kv_bytes_used"]},
        "threads": llm.threads,
        "isa": llm.isa,
    }


def figures(completion: Completion, loaded: float | None = None) -> str:
    """One line: time to load, time to the first token, tokens/s after it."""
    stats = completion.stats
    load = f"load {loaded:.2f} s, " if loaded is not None else ""
    cached = f" ({stats.cached_tokens} known)" if stats.cached_tokens else ""
    return (
        f"[{load}first token after {stats.ttft:.2f} s for {stats.prompt_tokens} tokens{cached}, "
        f"then {stats.decode_rate:.1f} tokens/s for {stats.output_tokens}]"
    )
