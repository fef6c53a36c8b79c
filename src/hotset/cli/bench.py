"""`hotset bench`: how fast a model runs here, and how close that is to what the memory allows."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hotset.cli.options import JsonFlag, ModelArgument, numbers
from hotset.cli.progress import progress_bar
from hotset.cli.text import human_bytes, print_json

if TYPE_CHECKING:
    from hotset.tools.bench import Tests


def bench(
    model: ModelArgument,
    threads: Annotated[
        str | None, typer.Option("--threads", "-t", metavar="N,…", help="Numbers of threads; default: 1 to all cores.")
    ] = None,
    prefill: Annotated[str, typer.Option(metavar="N,…", help="Lengths of prompt; 0 for none.")] = "128,512,2048",
    decode: Annotated[int, typer.Option(min=0, help="Tokens to decode; 0 for none.")] = 128,
    repeats: Annotated[int, typer.Option("--repeats", "-r", min=1, help="Samples of each test.")] = 3,
    isa: Annotated[str | None, typer.Option(help="Force kernels; `hotset doctor` lists them.")] = None,
    kv: Annotated[str, typer.Option(metavar="f16|int8", help="Format of the KV cache.")] = "f16",
    memory: Annotated[str | None, typer.Option(help="Budget, such as 4GiB; packed models are planned for it.")] = None,
    load: Annotated[str, typer.Option(metavar="auto|read|mmap", help="Read the weights or map them.")] = "auto",
    bandwidth: Annotated[bool, typer.Option(help="Measure the memory, too.")] = True,
    trace: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write a timeline to open in ui.perfetto.dev.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the result as JSON.")] = None,
    json: JsonFlag = False,
) -> None:
    """Measure load, prefill and decode; print the bytes moved and the share of the memory bandwidth reached."""
    from hotset.tools.bench import Tests
    from hotset.tools.result import write

    tests = Tests(numbers(prefill, "--prefill"), decode, repeats)
    counts = numbers(threads, "--threads") if threads else list(range(1, _cores() + 1))
    result = _measure(model, tests, counts, {"isa": isa, "kv": kv, "load": load, "memory": memory}, bandwidth, trace)
    if output is not None:
        write(result, output)
    if json:
        print_json(result)
    else:
        print("\n".join(_table(result)))


def _cores() -> int:
    from hotset.tools.doctor import host

    return host().cpu.cores


def _measure(
    name: str, tests: Tests, threads: list[int], options: dict[str, Any], with_bandwidth: bool, trace: str | None
) -> dict[str, Any]:
    from hotset.engine.trace import Trace
    from hotset.llm import LLM
    from hotset.tools import resolve_model
    from hotset.tools.bench import measure
    from hotset.tools.doctor import memory_rates
    from hotset.tools.result import peak_memory_bytes, record

    with progress_bar() as progress:
        store = resolve_model(name, progress=progress)
    load = lambda count: LLM(store, threads=count, draft=False, **options)  # noqa: E731
    with Trace(trace) if trace else nullcontext() as timeline:
        measured = measure(load, tests, threads, timeline.flush if timeline else lambda: None)
    peak = peak_memory_bytes()  # before the bandwidth test takes its own
    bounds = measured.bounds(memory_rates(threads)) if with_bandwidth else []
    return record(
        "bench",
        measured.series,
        model={"name": store.name, **{key: measured.stats[key] for key in ("weight_bytes", "bytes_per_token")}},
        options=options,
        bounds=[asdict(bound) | {"share": bound.share} for bound in bounds],
        memory={"peak_bytes": peak, "kv_bytes": measured.stats["kv_bytes_used"]},
    )


def _table(result: dict[str, Any]) -> list[str]:
    lines = [f"{'threads':>7}  {'test':<12} {'median':>10}  {'all':<32}"]
    for s in result["series"]:
        every = " ".join(f"{sample:.4g}" for sample in s["samples"])
        lines.append(f"{s['threads']:>7}  {s['test']:<12} {s['median']:>10.4g}  {s['unit']}: {every}")
    memory = result["memory"]
    lines.append(f"memory   peak {human_bytes(memory['peak_bytes'])}, KV cache {human_bytes(memory['kv_bytes'])}")
    lines.append(f"decode   moves {human_bytes(result['model']['bytes_per_token'])} of weights per token")
    for bound in result["bounds"]:
        bandwidth = bound["bandwidth_bytes_per_s"]
        lines.append(
            f"         {bound['threads']} thread(s): memory gives {bandwidth / 1e9:.1f} GB/s, so at most "
            f"{bandwidth / bound['bytes_per_token']:.1f} tokens/s; reached {bound['share']:.0%}"
        )
    return lines
