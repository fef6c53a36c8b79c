"""`hotset plan`: what this host would do with a packed model under a budget, how fast that is, and what differs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotset.cli.options import EngineFlags, JsonFlag, ModelArgument, takes
from hotset.cli.text import human_bytes, note, print_json
from hotset.errors import UsageError

if TYPE_CHECKING:
    from hotset.formats.store import Store
    from hotset.planner.plan_file import Plan


@takes(engine=EngineFlags)
def plan(
    model: ModelArgument,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Choose a part yourself; wrong keys are answered with all."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write it to a file, for `run --plan`.")] = None,
    diff: Annotated[
        Path | None,
        typer.Option(metavar="OTHER.json", help="Print what that plan does otherwise; exit code 1 if there is any."),
    ] = None,
    json: JsonFlag = False,
    *,
    engine: EngineFlags,
) -> None:
    """Plan how a packed model is run within --memory: what stays in memory, and the speed to be expected.

    MODEL may also be a plan that was written, to show it or compare it.
    """
    if engine.plan is not None:
        raise UsageError("--plan takes a plan that is made already; to change one, give --set to `hotset plan`")
    made = _written(model, engine, setting) or _make(model, engine, _settings(setting or []))
    if output is not None:
        from hotset.planner.plan_file import write_plan

        write_plan(made, output)
    if diff is not None:
        _compare(made, model, diff, json)
    elif json:
        print_json(made.as_json())
    else:
        print("\n".join(table(made)))
        for remark in made.notes:
            note(f"note: {remark}")


def _written(model: str, engine: EngineFlags, setting: list[str] | None) -> Plan | None:
    """The plan in a file, if that was given in place of a model."""
    if not (model.endswith(".json") and Path(model).is_file()):
        return None
    from hotset.planner.plan_file import read_plan

    if given := [*engine.arguments(), *(["set"] if setting else [])]:
        raise UsageError(f"{model} is a plan that is made already; leave out {', '.join(given)}, or name the model")
    return read_plan(Path(model))


def _compare(made: Plan, model: str, other: Path, json: bool) -> None:
    """Prints what differs; exits with 1 if anything does, as diff does."""
    from hotset.cli.plan_diff import differences, rows
    from hotset.planner.plan_file import read_plan

    found = differences(made, read_plan(other))
    if json:
        print_json(found)
    else:
        print("\n".join(rows(found, (Path(model).name, other.name))))
    if found:
        raise typer.Exit(1)


def _make(model: str, engine: EngineFlags, settings: dict[str, str]) -> Plan:
    from hotset.engine.budget import parse_bytes
    from hotset.formats.store import open_store
    from hotset.models import resolve
    from hotset.tokenizer import Tokenizer
    from hotset.tools import resolve_model
    from hotset.tools.plan import Wishes, make_plan

    given = engine.arguments()
    ignored = given.pop("ignore_keys", ())
    store = open_store(resolve_model(model, ignore_keys=ignored))
    _check_packed(store)
    tokenizer = Tokenizer.load(store.path)  # part of what the process holds when a model runs
    wishes = {name: given[name] for name in ("context", "kv", "threads", "predict", "loss", "draft") if name in given}
    memory = parse_bytes(given["memory"]) if "memory" in given else None
    made = make_plan(store, resolve(store.config, ignore_keys=ignored), Wishes(memory=memory, **wishes), settings)
    del tokenizer
    return made


def _check_packed(store: Store) -> None:
    if store.neurons is None:
        raise UsageError(
            f"{store.path} is not packed, so it is run whole; make one that is: `hotset pack {store.path}`"
        )


def _settings(items: list[str]) -> dict[str, str]:
    pairs = [item.partition("=") for item in items]
    if wrong := [item for item, (_, equals, _) in zip(items, pairs, strict=True) if not equals]:
        raise UsageError(f"--set {wrong[0]!r}: want KEY=VALUE, such as cold_slots=1000")
    return {key: value for key, _, value in pairs}


def _mode(made: Plan) -> str:
    if made.exact:
        return "exact, for drafts" if made.drafts else "exact"
    return f"predicted, loss {'as calibrated' if made.loss is None else f'at most {made.loss:.2%}'}"


def _joined(made: Plan) -> str:
    if not made.merged_bytes:
        return "each neuron its own"
    return f"up to {human_bytes(made.merged_bytes)} as one, gaps up to {human_bytes(made.gap_bytes)}"


def table(made: Plan) -> list[str]:
    """The plan for people."""
    neurons = sum(made.hot)
    rows = {
        "budget": human_bytes(made.made_for.memory) if made.made_for.memory else "none: what the machine has free",
        "predictor": f"{made.predictor} ({_mode(made)})",
        "hot": f"{neurons} neurons, {min(made.hot)} to {max(made.hot)} a layer",
        "cold": f"{made.cold_slots} slots, {made.policy}",
        "reads": f"{made.depth} in flight, {made.backend}; {_joined(made)}",
        "tokens": f"context {made.context}, prompts by {made.prefill_chunk}; {made.threads} threads"
        + (f", {made.parallel} sequences at once" if made.parallel > 1 else ""),
    }
    lines = [f"{name:<10} {text}" for name, text in rows.items()]
    parts = ", ".join(f"{name} {human_bytes(size)}" for name, size in made.memory.items() if size)
    lines.append(f"{'memory':<10} {human_bytes(made.bytes)}: {parts}")
    if (f := made.forecast) is not None:
        lines += [
            f"{'speed':<10} {f.tokens_per_s:.2f} tokens/s, bound by {f.bound} at {f.bound_tokens_per_s:.2f}",
            f"{'a token':<10} {f.reads:.0f} reads of {human_bytes(f.drive_bytes)}, {f.hit_rate:.1%} of its neurons in "
            f"memory; {human_bytes(f.memory_bytes)} from memory",
            f"{'takes':<10} drive {f.drive_s * 1e3:.2f} ms, memory {f.memory_s * 1e3:.2f} ms, compute "
            f"{f.compute_s * 1e3:.2f} ms",
        ]
    return lines
