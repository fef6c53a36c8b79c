"""Perplexity of a model made sparse without training, by how its neurons are scored: python -m bench.sparsity STORE …

Every FFN is sparse for every token: windows of 512 tokens from an empty context, all tokens but the first scored.
Contribution, CATS and TEAL run in the dense engine; sketches need a packed store and run token by token.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hotset import _core
from hotset.formats.sketch import read_sketch
from hotset.formats.sparsity import layer_floor
from hotset.formats.store import open_store
from hotset.loader import load_core
from hotset.models import resolve
from hotset.tokenizer import Tokenizer
from hotset.tools.result import record, write
from hotset.tools.sketch import SketchOptions, make_sketch, sketch_options
from hotset.tools.threshold import ThresholdFinder, ThresholdOptions

ZEROS = (0.25, 0.4, 0.5, 0.6)
WINDOW = 512
ROWS = 128  # of logits at once
Json = dict[str, Any]


def surprises(core: _core.Engine, windows: Sequence[list[int]], most: int) -> np.ndarray:
    """-log p of each token but the first of every window, in steps of at most `most` tokens."""
    found = []
    for window in windows:
        tokens, seq = np.array(window, np.int32), core.sequence_new()
        for at in range(0, len(tokens) - 1, most):
            part = tokens[at : min(at + most, len(tokens) - 1)]
            one = np.array([seq], np.int32), np.array([len(part)], np.int32)
            core.step(*one, part, np.full(1, 2, np.uint8), np.array([len(tokens)], np.int64))
            found.append(-core.token_logprobs(tokens[at + 1 : at + 1 + len(part)]))
        core.sequence_free(seq)
    return np.concatenate(found).astype(np.float64)


def compared(got: np.ndarray, exact: np.ndarray) -> Json:
    difference = got - exact
    error = float(difference.std(ddof=1) / math.sqrt(len(difference)))
    return {
        "perplexity": math.exp(got.mean()),
        "exact_perplexity": math.exp(exact.mean()),
        "change": math.expm1(difference.mean()),
        "change_error": math.exp(difference.mean()) * error,
        "tokens": len(got),
    }


def floors(arguments: argparse.Namespace, windows: Sequence[list[int]]) -> Iterator[Json]:
    """Contribution (shares of layers even, and spread), CATS and TEAL at every share of zeros."""
    store = open_store(arguments.store)
    model = resolve(store.config)
    core = load_core(store, model, None, threads=arguments.threads, kv_tokens=2 * WINDOW, max_step_tokens=WINDOW)
    exact = surprises(core, windows, ROWS)
    for method, even in (("contribution", True), ("cats", True), ("teal", True), ("contribution", False)):
        first = ThresholdOptions(zeros=0.5, method=method, even=even, tokens=4096, threads=arguments.threads)  # type: ignore[arg-type]
        finder = ThresholdFinder(store, model, arguments.calibration, first)
        for zeros in arguments.zeros:
            sparsity = finder.at(zeros)
            for layer, scores in enumerate(finder.scores):
                core.set_ffn_floor(layer, **layer_floor(sparsity, layer, scores.norms))
            core.record(activations=True)
            found = compared(surprises(core, windows, ROWS), exact)
            active = np.unpackbits(core.take_record()[0], axis=2, bitorder="little").mean()
            core.record(activations=False)
            name = f"{method}, {'even' if even else 'spread by sensitivity'}"
            yield {"score": name, "wanted": zeros, "zeros": 1 - float(active), **found}
    for layer in range(len(model.config.layers)):
        core.set_ffn_floor(layer)


def sketches(arguments: argparse.Namespace, windows: Sequence[list[int]]) -> Iterator[Json]:
    """Copies in 3 and 2 bits, the same share of zeros in every layer, one token at a time."""
    store = open_store(arguments.packed)
    model, info = resolve(store.config), store.neurons
    assert info is not None

    def core(sparse: _core.SparseOptions) -> _core.Engine:
        return load_core(store, model, sparse, threads=arguments.threads, kv_tokens=2 * WINDOW, max_step_tokens=WINDOW)

    exact = surprises(core(_core.SparseOptions([info.ffn] * info.layers, 0)), windows, ROWS)
    for bits in (3, 2):
        made = SketchOptions(bits, 0.5, tokens=2048, measure=8, threads=arguments.threads)
        make_sketch(arguments.packed, arguments.calibration, made)
        sketch = read_sketch(store.path, info)
        assert sketch is not None
        for zeros in arguments.zeros:
            keep = sketch.facts.limits(zeros)
            engine = core(sketch_options(sketch, [info.ffn] * info.layers, 0, keep, keep))
            found = compared(surprises(engine, windows, 1), exact)
            stats = engine.sparse_stats
            left = stats["active"] / (stats["layers"] * info.ffn)
            row = {"score": f"{bits}-bit sketch, even", "wanted": zeros, "zeros": 1 - left, "bytes": sketch.bytes}
            yield row | found


def run(parts: Sequence[Callable[[], Iterator[Json]]], out: Path, about: Json) -> None:
    """Writes after every line, so that what was measured is kept."""
    rows: list[Json] = json.loads(out.read_text())["rows"] if out.exists() else []
    for part in parts:
        for row in part():
            rows = [r for r in rows if (r["score"], r["wanted"]) != (row["score"], row["wanted"])] + [row]
            print(json.dumps(row), flush=True)
            write(record("sparsity without training", [], rows=rows, **about), out)


def plot(rows: Sequence[Json], path: Path) -> None:
    """Change of perplexity over the share of zeros, a line for each score."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for score in dict.fromkeys(row["score"] for row in rows):
        chosen = sorted((row for row in rows if row["score"] == score), key=lambda row: row["zeros"])
        zeros, change, error = ([100 * row[k] for row in chosen] for k in ("zeros", "change", "change_error"))
        axes.errorbar(zeros, change, error, marker="o", capsize=3, label=score)
    axes.set(xlabel="% of FFN products at zero", ylabel="change of perplexity, %", yscale="symlog")
    axes.set_yticks([0, 1, 2, 5, 10, 20, 50, 100], labels=[0, 1, 2, 5, 10, 20, 50, 100])
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path, help="dense store")
    parser.add_argument("--packed", type=Path, help="the same, packed as q8_0, for sketches")
    parser.add_argument("--text", type=Path, required=True, help="WikiText-2 test, raw")
    parser.add_argument("--calibration", type=Path, nargs="+", required=True)
    parser.add_argument("--windows", type=int, default=12)
    parser.add_argument("--sketch-windows", type=int, default=6)
    parser.add_argument("--zeros", type=float, nargs="+", default=ZEROS)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--only", choices=("floors", "sketches"), help="rows that are there already are kept")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    tokens = Tokenizer.load(arguments.store).encode(arguments.text.read_text(encoding="utf-8"))
    windows = [tokens[i * WINDOW : (i + 1) * WINDOW] for i in range(arguments.windows)]
    parts: list[Callable[[], Iterator[Json]]] = []
    if arguments.only != "sketches":
        parts.append(lambda: floors(arguments, windows))
    if arguments.packed and arguments.only != "floors":
        parts.append(lambda: sketches(arguments, windows[: arguments.sketch_windows]))
    about = {"model": {"name": arguments.store.name}, "text": arguments.text.name, "window": WINDOW}
    run(parts, arguments.out, about)
    if arguments.out.exists():
        plot(json.loads(arguments.out.read_text())["rows"], arguments.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
