"""What `hotset evaluate` shows: means with standard errors, differences to the first variant, table and plot."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hotset.formats.files import Json, storage_error
from hotset.tools.evaluate import VariantResult
from hotset.tools.evaluate_tasks import TASKS
from hotset.tools.profile_plot import check


@dataclass(frozen=True, slots=True)
class Value:
    """A mean over items with its standard error, and the difference to the first variant's with its own.

    The error of a difference is that of the items' differences: variants answer the same questions. None where they
    did not: windows of text are other ones for another tokenizer.
    """

    value: float
    error: float
    change: float | None
    change_error: float | None
    items: int


def as_json(results: Sequence[VariantResult]) -> Json:
    return {"variants": [_one(result, results[0]) for result in results]}


def _one(result: VariantResult, first: VariantResult) -> Json:
    out: Json = {
        "name": result.variant.name,
        "path": result.path,
        "predicted": result.variant.predicted,
        "formats": result.formats,
    }
    if result.surprise:
        out["zeros"] = result.zeros
        out["perplexity"] = _perplexity(result, first)
    tasks = {task: task_values(scores, first.scores[task], task) for task, scores in result.scores.items()}
    out["tasks"] = {t: {m: _fields(v) for m, v in values.items()} for t, values in tasks.items()}
    if tasks:
        out["mean"] = float(np.mean([values[TASKS[t].metrics[0]].value for t, values in tasks.items()]))
    return out


def _perplexity(result: VariantResult, first: VariantResult) -> Json:
    surprise = _value(result.surprise, first.surprise if result.windows == first.windows else None)
    change, error = surprise.change, surprise.change_error
    return {
        "value": math.exp(surprise.value),
        "error": math.exp(surprise.value) * surprise.error,
        "change": None if change is None else math.expm1(change),
        "change_error": None if change is None or error is None else math.exp(change) * error,
        "windows": surprise.items,
        "tokens": surprise.items * result.window_tokens,
    }


def task_values(scores: Sequence[dict[str, float]], first: Sequence[dict[str, float]], task: str) -> dict[str, Value]:
    """By metric."""
    return {m: _value([s[m] for s in scores], [s[m] for s in first]) for m in TASKS[task].metrics}


def _value(values: Sequence[float], first: Sequence[float] | None) -> Value:
    """first: of the same items; None: the first variant had others."""
    mean, error = float(np.mean(values)), _error(values)
    if first is None:
        return Value(mean, error, None, None, len(values))
    difference = np.array(values) - np.array(first)
    return Value(mean, error, float(difference.mean()), _error(difference.tolist()), len(values))


def _error(values: Sequence[float]) -> float:
    """Standard error of the mean; 0 of a single value, about which nothing is known."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def _fields(value: Value) -> Json:
    return {name: getattr(value, name) for name in Value.__dataclass_fields__}


def table(found: Json) -> tuple[list[str], list[list[str]]]:
    """The heads of the columns, one for each variant, and a row for each measure."""
    variants = found["variants"]
    rows = []
    if "perplexity" in variants[0]:
        ppl = [v["perplexity"] for v in variants]
        rows.append(["zeros", *(f"{v['zeros']:.1%}" for v in variants)])
        rows.append(["perplexity", *(f"{p['value']:.2f} ± {p['error']:.2f}" for p in ppl)])
        rows.append(["its change", "", *map(_change, ppl[1:])])
    for task in variants[0]["tasks"]:
        metric = TASKS[task].metrics[0]
        values = [v["tasks"][task][metric] for v in variants]
        rows.append([f"{task} {metric}", *(f"{100 * v['value']:.1f} ± {100 * v['error']:.1f}" for v in values)])
    if "mean" in variants[0]:
        rows.append(["mean", *(f"{100 * v['mean']:.1f}" for v in variants)])
    return ["", *(v["name"] for v in variants)], rows


def _change(perplexity: Json) -> str:
    change, error = perplexity["change"], perplexity["change_error"]
    return "other tokens" if change is None else f"{change:+.1%} ± {error:.1%}"


def markdown(found: Json) -> str:
    head, rows = table(found)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def plot(found: Json, path: Path) -> None:
    """Perplexity and the mean of the tasks over the share of zeros; 'NAME 40%', 'NAME 60%' are joined by a line.

    Raises: UsageError, HostError (as profile_plot.check), StorageError.
    """
    check(path)
    from matplotlib.figure import Figure  # without pyplot: no window system is asked for

    kinds = [k for k in ("perplexity", "mean") if k in found["variants"][0]]
    figure = Figure(figsize=(6 * len(kinds), 4.5), layout="constrained")
    for axes, kind in zip(np.ravel(figure.subplots(1, len(kinds))), kinds, strict=True):
        _draw(axes, found["variants"], kind)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise storage_error(path, "cannot be written", error) from None


def _draw(axes: Any, variants: Sequence[Json], kind: str) -> None:
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for v in variants:
        name = re.sub(r"\s*[\d.]+\s*%$", "", v["name"])
        value = v["perplexity"]["value"] if kind == "perplexity" else v["mean"]
        error = v["perplexity"]["error"] if kind == "perplexity" else 0.0
        lines.setdefault(name, []).append((100 * v.get("zeros", 0.0), value, error))
    for name, points in lines.items():
        x, y, _ = zip(*sorted(points), strict=True)
        axes.plot(x, y, marker="o", label=name)
    axes.set_xlabel("% of FFN products at zero")
    axes.set_ylabel("perplexity" if kind == "perplexity" else "mean of the tasks")
    if kind == "perplexity":
        axes.set_yscale("log")
    axes.legend()
