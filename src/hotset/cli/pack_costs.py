"""`hotset pack --explain`: what the options of packing cost, as a table."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hotset.cli.text import human_bytes, note, print_json

if TYPE_CHECKING:
    from hotset.tools.pack_options import Cost, Costs

_HEAD = (
    "order",
    "stride",
    "scales",
    "gates",
    "on drive",
    "in memory",
    "missed",
    "requests",
    "read",
    "drive",
    "tokens/s",
    "",
)
_UNKNOWN = "–"


def print_costs(
    store: str, dest: Path | None, options: dict[str, Any], memory: str | None, predict: str, json: bool
) -> None:
    """memory, predict: as for `hotset plan`."""
    from hotset.engine.budget import parse_bytes
    from hotset.tools.pack_options import pack_costs
    from hotset.tools.plan import Wishes

    if predict not in ("exact", "auto"):  # before anything is read
        Wishes(predict=predict)  # type: ignore[arg-type]  # raises what is wrong
    wishes = Wishes(memory=None if memory is None else parse_bytes(memory), predict=predict)  # type: ignore[arg-type]
    found = pack_costs(store, dest, **options, wishes=wishes)
    if json:
        print_json({"options": [_flat(row) for row in found.rows], "notes": found.notes})
        return
    print("\n".join(table(found)))
    for line in found.notes:
        note(f"note: {line}")


def _flat(row: Cost) -> dict[str, Any]:
    return asdict(row.option) | {name: value for name, value in asdict(row).items() if name != "option"}


def table(found: Costs) -> list[str]:
    """The default is marked; numbers are of a token but for the first two sizes."""
    rows = [_HEAD, *map(_cells, found.rows)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _cells(row: Cost) -> tuple[str, ...]:
    option = row.option
    return (
        option.order,
        str(option.stride),
        "resident" if option.resident_scales else "in bundle",
        "copied, too" if option.gates_copied else "in bundle",
        human_bytes(row.drive_bytes),
        _UNKNOWN if row.memory_bytes is None else f"{row.neurons} in {human_bytes(row.memory_bytes)}",
        _number(row.missed, "{:.0f}"),
        _number(row.requests, "{:.0f}"),
        _UNKNOWN if row.read_bytes is None else human_bytes(row.read_bytes),
        _number(row.drive_s and row.drive_s * 1e3, "{:.2f} ms"),
        _number(row.tokens_per_s, "{:.2f}"),
        "default" if row.default else row.remark,
    )


def _number(value: float | None, text: str) -> str:
    return _UNKNOWN if value is None else text.format(value)
