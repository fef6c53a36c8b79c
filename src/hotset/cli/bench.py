"""`hotset bench`: how fast a model runs here, and how close that is to what the memory allows."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hotset.cli.options import EngineFlags, JsonFlag, ModelArgument, numbers, takes
from hotset.cli.progress import progress_bar
from hotset.cli.text import human_bytes, note, print_json

if TYPE_CHECKING:
    from hotset.tools.bench import Measured, Tests


@takes(engine=EngineFlags)
def bench(
    model: ModelArgument,
    threads: Annotated[
        str | None,
        typer.Option("--threads", "-t", metavar="N,…", help="Numbers of threads; default: 1 to all, or the plan's."),
    ] = None,
    prefill: Annotated[str, typer.Option(metavar="N,…", help="Lengths of prompt; 0 for none.")] = "128,512,2048",
    decode: Annotated[int, typer.Option(min=0, help="Tokens to decode; 0 for none.")] = 128,
    repeats: Annotated[int, typer.Option("--repeats", "-r", min=1, help="Samples of each test.")] = 3,
    bandwidth: Annotated[bool, typer.Option(help="Measure the memory, too; not for packed models.")] = True,
    trace: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write a timeline to open in ui.perfetto.dev.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the result as JSON.")] = None,
    json: JsonFlag = False,
    *,
    engine: EngineFlags,
) -> None:
    """Measure load, prefill and decode, and the share reached of what bounds decode: memory, drive or cores.

    A packed model decodes answers, by the same flags as `hotset run`: exact, drafted or predicted.
    """
    from hotset.tools.bench import Tests
    from hotset.tools.result import write

    tests = Tests(numbers(prefill, "--prefill"), decode, repeats)
    measured, result = _measure(model, tests, _counts(threads, engine), engine.arguments(), bandwidth, trace)
    if output is not None:
        write(result, output)
    if json:
        print_json(result)
    else:
        print("\n".join(_table(result, measured)))
        for remark in measured.notes if engine.plan is None else ():  # whoever made a plan was told
            note(f"note: {remark}")


def _counts(threads: str | None, engine: EngineFlags) -> list[int | None]:
    """Numbers of threads; None: the plan's."""
    if threads:
        return [*numbers(threads, "--threads")]
    return [None] if engine.plan is not None else [*range(1, _cores() + 1)]


def _cores() -> int:
    from hotset.tools.doctor import host

    return host().cpu.cores


def _measure(
    name: str, tests: Tests, threads: list[int | None], options: dict[str, Any], with_bandwidth: bool, trace: str | None
) -> tuple[Measured, dict[str, Any]]:
    from hotset.engine.trace import Trace
    from hotset.llm import LLM
    from hotset.tools import resolve_model
    from hotset.tools.bench import measure
    from hotset.tools.doctor import memory_rates
    from hotset.tools.result import peak_memory_bytes, record

    with progress_bar() as progress:
        store = resolve_model(name, ignore_keys=options.get("ignore_keys", ()), progress=progress)
    load = lambda count: LLM(store, threads=count, **options)  # noqa: E731
    with Trace(trace) if trace else nullcontext() as timeline:
        measured = measure(load, tests, threads, timeline.flush if timeline else lambda: None)
    peak = peak_memory_bytes()  # before the bandwidth test takes its own
    known = [count for count in threads if count is not None]
    bounds = measured.bounds(memory_rates(known)) if with_bandwidth and not measured.packed else []
    moved = {} if measured.packed else {"bytes_per_token": measured.stats["bytes_per_token"]}
    return measured, record(
        "bench",
        measured.series,
        model={"name": store.name, "weight_bytes": measured.stats["weight_bytes"], **moved},
        options={key: Path(value).name if key == "plan" else value for key, value in options.items()},
        bounds=[asdict(bound) | {"share": bound.share} for bound in bounds],
        answers=[{"threads": count} | answers.as_json() for count, answers in measured.answers.items()],
        memory={"peak_bytes": peak, "kv_bytes": measured.stats["kv_bytes_used"]},
    )


def _table(result: dict[str, Any], measured: Measured) -> list[str]:
    from hotset.tools.run_stats import decode_lines

    lines = [f"{'threads':>7}  {'test':<12} {'median':>10}  {'all':<32}"]
    for s in result["series"]:
        every = " ".join(f"{sample:.4g}" for sample in s["samples"])
        lines.append(f"{s['threads']:>7}  {s['test']:<12} {s['median']:>10.4g}  {s['unit']}: {every}")
    memory = result["memory"]
    lines.append(f"memory   peak {human_bytes(memory['peak_bytes'])}, KV cache {human_bytes(memory['kv_bytes'])}")
    if not measured.packed:
        lines.append(f"decode   moves {human_bytes(result['model']['bytes_per_token'])} of weights per token")
    for bound in result["bounds"]:
        bandwidth = bound["bandwidth_bytes_per_s"]
        lines.append(
            f"         {bound['threads']} thread(s): memory gives {bandwidth / 1e9:.1f} GB/s, so at most "
            f"{bandwidth / bound['bytes_per_token']:.1f} tokens/s; reached {bound['share']:.0%}"
        )
    for count, answers in measured.answers.items():
        lines += [f"--- {count} thread(s), the answer of median speed", *decode_lines(answers.median)]
    return lines
