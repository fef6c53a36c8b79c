"""Quality over sparsity of activations that were trained on the same tokens, each with neurons left out beyond its own.

    python -m bench.activations SwiGLU=runs/swiglu dReLU=runs/drelu ReLU=runs/relu \
        --text wikitext2_test.raw --calibration calib.jsonl --out OUT.json

Runs are folders of `hotset sparsify`, such as scripts/make_smollm2_drelu.py makes; `keep` is the control, whose neurons
are left out by threshold alone. Further neurons go as in bench.zeros. Source of the comparison: TurboSparse,
arXiv:2406.05955, section 4.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.common import table
from bench.sparsity import WINDOW, Json
from bench.zeros import ZEROS, curve, plot
from hotset.errors import UsageError
from hotset.formats.files import read_json
from hotset.tools.convert import convert
from hotset.tools.result import record, write

# What an activation has of its own: how it is pulled to zero, and a first stage, whose tokens count.
_ITS_OWN = {"activation", "threshold", "zeros", "l1", "l1_steps", "swap_steps", "steps"}
_ITS_OWN |= {"ffn_sequences", "ffn_batch", "ffn_lr"}


def read_run(folder: Path) -> Json:
    """Of a finished run: settings, as_measured, tokens. Raises UsageError."""
    path = folder / "sparsify.json"
    if not path.is_file():
        raise UsageError(f"{folder} has no sparsify.json; give the --output of a `hotset sparsify` that has ended")
    found = read_json(path)
    s = found["settings"]
    tokens = (s["ffn_sequences"] + s["steps"] * s["batch"]) * s["sequence"]
    return {"settings": s, "tokens": tokens, "as_measured": found["as_measured"]}


def without_paths(run: Json) -> Json:
    """What a result keeps of a run: nothing that tells where files lie on its machine."""
    settings = {key: value for key, value in run["settings"].items() if key not in ("model", "data")}
    reached = {key: run["as_measured"].get(key) for key in ("step", "loss", "perplexity", "zeros", "speed")}
    return {"tokens": run["tokens"], "settings": settings, "as_measured": reached}


def differences(runs: Mapping[str, Json]) -> list[str]:
    """What makes the runs another comparison than that of their activations."""
    (first, one), *rest = runs.items()
    found = []
    for name, other in rest:
        pairs = {"tokens": (one["tokens"], other["tokens"])}
        pairs |= {key: (one["settings"][key], other["settings"].get(key)) for key in set(one["settings"]) - _ITS_OWN}
        found += [f"{key}: {first} {a}, {name} {b}" for key, (a, b) in sorted(pairs.items()) if a != b]
    return found


def measure(runs: Mapping[str, Path], arguments: argparse.Namespace) -> list[Json]:
    """Rows of bench.zeros with the run's name."""
    rows: list[Json] = []
    with TemporaryDirectory(prefix="hotset-activations-") as work:
        for name, folder in runs.items():
            store = convert(folder, Path(work) / "store", quant=arguments.quant, force=True).dest
            found = curve(store, arguments.text, arguments.calibration, arguments.zeros, arguments.windows)
            for row in found:
                rows.append({"model": name} | row)
                print(f"{name}: zeros {row['zeros']:.1%}, perplexity {row['perplexity']:.2f}", flush=True)
    return rows


def summary(rows: list[Json]) -> str:
    """Perplexity by share of zeros; a model's own where it has more than were wanted."""
    names = list(dict.fromkeys(row["model"] for row in rows))
    shares = sorted({row["wanted"] for row in rows} - {0.0})
    own = {row["model"]: row for row in rows if not row["wanted"]}
    at = {(row["model"], row["wanted"]): row for row in rows}
    lines = [["by itself", *(f"{own[n]['perplexity']:.2f} ({own[n]['zeros']:.0%})" for n in names)]]
    lines += [[f"{s:.0%}", *(f"{at.get((n, s), own[n])['perplexity']:.2f}" for n in names)] for s in shares]
    return table(["zeros", *names], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN", help="what `hotset sparsify` wrote")
    parser.add_argument("--text", type=Path, required=True, help="UTF-8 text that none was trained on")
    parser.add_argument("--calibration", type=Path, nargs="+", required=True, help="text for the thresholds")
    parser.add_argument("--zeros", type=float, nargs="+", default=ZEROS)
    parser.add_argument("--windows", type=int, default=12, help=f"of the text, {WINDOW} tokens each")
    parser.add_argument("--quant", default="q8_0", help="weights that runs are converted to")
    parser.add_argument("--unequal", action="store_true", help="compare runs of other tokens or settings, too")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    folders = {name: Path(path) for name, path in (each.split("=", 1) for each in arguments.runs)}
    runs = {name: read_run(folder) for name, folder in folders.items()}
    if (unequal := differences(runs)) and not arguments.unequal:
        raise UsageError(f"the runs differ by more than their activation: {'; '.join(unequal)}; or give --unequal")
    rows = measure(folders, arguments)
    about = {"text": arguments.text.name, "window": WINDOW, "quant": arguments.quant, "unequal": unequal}
    kept = {name: without_paths(run) for name, run in runs.items()}
    write(record("perplexity over zeros, by activation", [], rows=rows, runs=kept, **about), arguments.out)
    plot(rows, arguments.out.with_suffix(".svg"))
    print(f"\n{summary(rows)}\n\nwritten to {arguments.out}")


if __name__ == "__main__":
    main()
