"""Perplexity over the share of zeros, for models that were trained to have them and models that were not.

    python -m bench.zeros original=STORE drelu=STORE --text wikitext2_test.raw --calibration calib.jsonl --out OUT.json

From the zeros that a model has by itself on, the neurons that contribute least are left out, by one threshold a layer
for the same share of zeros in each. Source of the comparison: TurboSparse, arXiv:2406.05955, section 4.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from bench.sparsity import ROWS, WINDOW, Json, compared, surprises
from hotset import _core
from hotset.errors import InputError
from hotset.formats.sparsity import layer_floor
from hotset.formats.store import open_store
from hotset.loader import load_core
from hotset.models import resolve
from hotset.tokenizer import Tokenizer
from hotset.tools.result import record, write
from hotset.tools.threshold import ThresholdFinder, ThresholdOptions
from hotset.tools.threshold_bench import count_active

ZEROS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93)


def curve(path: Path, text: Path, calibration: Sequence[Path], zeros: Sequence[float], windows: int) -> Iterator[Json]:
    """Of a dense store: by itself, then at each share of zeros that it has not by itself."""
    store = open_store(path)
    model = resolve(store.config)
    ids = Tokenizer.load(path).encode(text.read_text(encoding="utf-8"))
    if len(ids) < windows * WINDOW:
        raise InputError(f"{text} has {len(ids)} tokens; wanted {windows * WINDOW}: give more text or fewer --windows")
    parts = [ids[i * WINDOW : (i + 1) * WINDOW] for i in range(windows)]
    core = load_core(store, model, None, threads=0, kv_tokens=2 * WINDOW, max_step_tokens=WINDOW)
    neurons = len(model.config.layers) * model.config.ffn
    exact, own = _run(core, parts, neurons)
    yield {"wanted": 0.0, "zeros": own} | compared(exact, exact)
    finder = ThresholdFinder(store, model, calibration, ThresholdOptions(zeros=0.5, even=True, tokens=4096))
    for share in (each for each in zeros if each > own):
        sparsity = finder.at(share)
        for layer, scores in enumerate(finder.scores):
            core.set_ffn_floor(layer, **layer_floor(sparsity, layer, scores.norms))
        got, found = _run(core, parts, neurons)
        yield {"wanted": share, "zeros": found} | compared(got, exact)


def _run(core: _core.Engine, parts: Sequence[list[int]], neurons: int) -> tuple[np.ndarray, float]:
    """Surprise of each token, and the share of zeros of all layers' neurons."""
    core.record(activations=True)
    found = surprises(core, parts, ROWS)
    bits = core.take_record()[0]
    core.record(activations=False)
    return found, 1 - float(count_active(bits).sum()) / (len(bits) * neurons)


def plot(rows: Sequence[Json], path: Path) -> None:
    """Perplexity of each model over its zeros."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row["model"] for row in rows):
        chosen = [row for row in rows if row["model"] == name]
        axes.plot([100 * r["zeros"] for r in chosen], [r["perplexity"] for r in chosen], marker="o", label=name)
    axes.set(xlabel="% of FFN products at zero", ylabel="perplexity", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=STORE", help="dense stores")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, nargs="+", required=True)
    parser.add_argument("--zeros", type=float, nargs="+", default=ZEROS)
    parser.add_argument("--windows", type=int, default=12, help="512 tokens each")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows: list[Json] = []
    for name, path in (each.split("=", 1) for each in arguments.models):
        found = curve(Path(path), arguments.text, arguments.calibration, arguments.zeros, arguments.windows)
        for row in found:
            rows.append({"model": name} | row)
            print(f"{name}: zeros {row['zeros']:.1%}, perplexity {row['perplexity']:.2f}", flush=True)
    about = {"text": arguments.text.name, "window": WINDOW}
    write(record("perplexity over zeros", [], rows=rows, **about), arguments.out)
    plot(rows, arguments.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
