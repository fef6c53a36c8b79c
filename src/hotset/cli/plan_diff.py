"""What two plans do differently, as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from hotset.cli.text import human_bytes

if TYPE_CHECKING:
    from hotset.planner.plan_file import Plan

Difference = tuple[Any, Any]  # values as in the plans' JSON; None: has none
_NONE = "–"


def differences(first: Plan, second: Plan) -> dict[str, Difference]:
    """By field, in the order of the plan file, with a dot before what is inside: `memory.kv`, `forecast.drive_s`."""
    one, two = dict(_flat(_with_total(first))), dict(_flat(_with_total(second)))
    names = [*one, *(name for name in two if name not in one)]
    return {name: (one.get(name), two.get(name)) for name in names if one.get(name) != two.get(name)}


def _with_total(plan: Plan) -> dict[str, Any]:
    return plan.as_json() | {"memory": {**plan.memory, "total": plan.bytes}}


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, list(inner) if isinstance(inner, tuple) else inner


def rows(found: Mapping[str, Difference], names: tuple[str, str]) -> list[str]:
    """The differences for people; names: of the two plans."""
    if not found:
        return [f"{names[0]} and {names[1]} are alike"]
    table = [("", *names, "")]
    table += [(name, *_shown(name, pair), _change(name, pair)) for name, pair in found.items() if name != "notes"]
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, (*widths, 0), strict=True)) for row in table]
    return [line.rstrip() for line in lines] + [*_notes(found, names)]


def _shown(name: str, pair: Difference) -> tuple[str, str]:
    one, two = (_text(name, value) for value in pair)
    return (one, two) if one != two or name == "hot" else (str(pair[0]), str(pair[1]))


def _text(name: str, value: Any) -> str:
    last = name.rpartition(".")[2]
    if value is None:
        return _NONE
    if name == "hot":
        return f"{sum(value)} neurons, {min(value, default=0)} to {max(value, default=0)} a layer"
    if name in ("made_for.model", "made_for.host"):
        return str(value)[:12]
    if "memory" in name.split(".")[:2] or last.endswith("bytes"):
        return human_bytes(value)
    if last in ("hit_rate", "loss", "energy"):
        return f"{100 * value:.3g}%"
    if last.endswith("tokens_per_s"):
        return f"{value:.2f} tokens/s"
    if last.endswith("_s"):
        return f"{1e3 * value:.3g} ms"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _change(name: str, pair: Difference) -> str:
    one, two = pair
    if name == "hot" and one and two:
        other = sum(a != b for a, b in zip(one, two, strict=False))
        return f"other in {other} of {len(one)} layers" if len(one) == len(two) else f"{len(one)}, {len(two)} layers"
    if all(type(value) in (int, float) and value for value in pair):
        return f"{100 * (two / one - 1):+.1f}%"
    return ""


def _notes(found: Mapping[str, Difference], names: tuple[str, str]) -> Iterator[str]:
    both = [notes or [] for notes in found.get("notes", ([], []))]
    for name, mine, others in ((names[0], *both), (names[1], *both[::-1])):
        yield from (f"only {name} notes: {note}" for note in mine if note not in others)
