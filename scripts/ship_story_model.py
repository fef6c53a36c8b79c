#!/usr/bin/env python3
"""Makes the store of the package from what scripts/make_story_model.py trained, and records what all its models reach.

    scripts/ship_story_model.py OUT --calibration stories.jsonl --held-out other_stories.jsonl [--result FILE]

OUT/store, OUT/control and OUT/first are the converted models, OUT/packed is what src/hotset/data/stories-13m holds.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

from hotset import LLM
from hotset.cli.main import main as hotset
from hotset.formats.files import read_json
from hotset.formats.text import documents
from hotset.tools.result import Series, record, write

DENSE = "q8_0"  # of everything but the neurons, a third of the weights
NEURONS = "q4_0"
STORIES = 120  # held out, whose perplexity is taken
RUNS = {"drelu": "store", "swiglu": "control", "teacher": "first"}  # and the converted models
LABELS = {"drelu": "dReLU", "swiglu": "SwiGLU", "teacher": "teacher (SwiGLU)"}


def run(*arguments: Any) -> None:
    if code := hotset([str(part) for part in arguments]):
        raise SystemExit(code)


def make_stores(out: Path, calibration: Path) -> None:
    """OUT/packed with profile and predictors, and the dense models."""
    for kind, name in RUNS.items():
        run("convert", out / kind, out / name, "--quant", DENSE, "--force")
    run("profile", out / "store", "--text", calibration, "--no-replay")
    run("pack", out / "store", out / "packed", "--format", NEURONS, "--force")
    run("train-predictor", out / "packed", "--text", calibration)


def perplexity(store: Path, stories: list[str], **options: Any) -> float:
    """Of whole stories, each from an empty context; tokens count alike."""
    total = tokens = 0.0
    with LLM(store, **options) as llm:
        for story in stories:
            size = len(llm.tokenizer.encode(story))
            window = max(2, min(size, llm.context))
            found = llm.perplexity(story, window=window, stride=window)
            total += math.log(found.value) * found.tokens
            tokens += found.tokens
    return math.exp(total / tokens)


def third_in_memory(out: Path, predictor: str) -> Path:
    """A plan with a third of the neurons in memory, two thirds of these always and the rest as a cache."""
    path = out / f"plan-{predictor}.json"
    shape = read_json(out / "config/config.json")
    layers, ffn = shape["num_hidden_layers"], shape["intermediate_size"]
    hot = ffn * 2 // 9
    settings = {"predictor": predictor, "hot": hot, "cold_slots": layers * (ffn // 3 - hot)}
    choices = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    run("plan", out / "packed", *(["--predict", "auto"] if predictor == "low-rank" else []), *choices, "-o", path)
    return path


def measure(out: Path, held_out: Path) -> dict[str, Any]:
    stories, packed = list(islice(documents(held_out), STORIES)), out / "packed"
    return {
        f"SwiGLU teacher, {DENSE}": perplexity(out / "first", stories),
        f"SwiGLU control, {DENSE}": perplexity(out / "control", stories),
        f"dReLU, {DENSE}": perplexity(out / "store", stories),
        f"dReLU, neurons {NEURONS}, exact": perplexity(packed, stories, plan=third_in_memory(out, "gate")),
        f"dReLU, neurons {NEURONS}, predicted": perplexity(
            packed, stories, plan=third_in_memory(out, "low-rank"), predict="auto"
        ),
    }


def bare(value: Any) -> Any:
    """Without the folders that files lay in on the machine of the run."""
    if isinstance(value, dict):
        return {bare(key): bare(item) for key, item in value.items()}
    if isinstance(value, list):
        return [bare(item) for item in value]
    return " ".join(Path(word).name for word in value.split(" ")) if isinstance(value, str) and "/" in value else value


def curve(run: Path) -> list[dict[str, Any]]:
    """Logged steps: step, tokens, loss, mean zeros; and what was measured on held-out text."""
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    keep = ("kind", "step", "tokens", "loss", "perplexity", "zeros", "rate")
    return [{key: entry[key] for key in keep if key in entry} for entry in entries]


def plot(curves: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Loss and zeros over the tokens trained on."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for kind, entries in curves.items():
        trained = [entry for entry in entries if entry["kind"] == "train"]
        tokens = [entry["tokens"] / 1e6 for entry in trained]
        left.plot(tokens, [entry["loss"] for entry in trained], label=LABELS[kind])
        if kind == "drelu":
            for layer, zeros in enumerate(zip(*(entry["zeros"] for entry in trained), strict=True)):
                right.plot(tokens, zeros, label=f"layer {layer}")
    left.set(xlabel="million tokens", ylabel="loss", title="training loss")
    right.set(xlabel="million tokens", ylabel="share of neurons", title="zeros of dReLU", ylim=(0.4, 1))
    left.legend()
    right.legend(loc="lower right")
    figure.savefig(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--calibration", type=Path, required=True, help="text for profile and predictors")
    parser.add_argument("--held-out", type=Path, required=True, help="stories that were not trained on")
    parser.add_argument("--result", type=Path, help="where the figures are written")
    parser.add_argument("--ship", type=Path, help="copy the packed store to this folder")
    known = parser.parse_args()
    make_stores(known.out, known.calibration)
    reached = measure(known.out, known.held_out)
    print(json.dumps(reached, indent=1))
    if known.result is not None:
        runs = {kind: bare(read_json(known.out / kind / "sparsify.json")) for kind in RUNS}
        curves = {kind: curve(known.out / kind) for kind in runs}
        series = [Series("perplexity", "", (value,), model=name) for name, value in reached.items()]
        write(record("story model", series, stories=STORIES, runs=runs, curves=curves), known.result)
        plot(curves, known.result.with_suffix(".svg"))
    if known.ship is not None:
        shutil.copytree(known.out / "packed", known.ship, dirs_exist_ok=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
