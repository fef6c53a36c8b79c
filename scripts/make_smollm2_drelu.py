#!/usr/bin/env python3
"""Makes SmolLM2-135M with dReLU from the original, a control with SwiGLU, and measures both beside it.

    scripts/make_smollm2_drelu.py OUT --original MODEL --text DIR --calibration FILE --wikitext FILE --tasks DIR

DIR of --text holds textbooks.jsonl.zst and so on, see SHARES. Interrupted runs go on, finished ones are not repeated.
MODEL is a Hugging Face folder or a GGUF file, whose rounded weights are then the original. Other flags, such as -t 2,
go to `hotset sparsify`. All runs have the same settings, loss and tokens: the control, whose activation has nothing to
learn in the first stage, has that stage's tokens in the whole network. --only relu trains a third one, which is then
measured with the others, and by bench.activations.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ship_story_model import bare, curve, run

from hotset.cli.sparsify import parse_count
from hotset.formats.files import read_json
from hotset.formats.profile import PROFILE_FILE, read_profile
from hotset.formats.text import documents
from hotset.tools.result import Series, record, write
from hotset.tools.sketch import SketchOptions, make_sketch

SHARES = {  # of the training tokens; Wikipedia, textbooks and the web are closest to what is measured
    "textbooks": 0.25,
    "web_docs": 0.2,
    "wiki": 0.2,
    "books": 0.15,
    "instruct_dialog": 0.1,
    "math": 0.05,
    "code": 0.05,
}
EXCERPT = 4_000_000  # characters of each text, more than a run on a CPU reads
METHOD = {"sequence": 256, "batch": 8, "lr": 3e-4, "warmup": 3, "distill": 0.8, "log-every": 2}
ZEROS = 0.85
DENSE, NEURONS = "q8_0", "q4_0"
KINDS = {"swiglu": "SwiGLU", "drelu": "dReLU", "relu": "ReLU"}


def make_original(source: Path, folder: Path) -> Path:
    """A Hugging Face folder of a GGUF file, by transformers; a folder is taken as it is."""
    if source.is_dir():
        return source
    if (folder / "config.json").is_file():
        return folder
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    read = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype="float32")
    config = read.config
    for name in ("quantization_config", "_model_name_or_path", "_name_or_path"):
        config.__dict__.pop(name, None)
    model = LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict())
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def excerpt(source: Path, dest: Path) -> Path:
    """The first documents of a text."""
    if not dest.is_file():
        dest.parent.mkdir(parents=True, exist_ok=True)
        left, lines = EXCERPT, []
        for text in documents(source):
            lines.append(json.dumps({"text": text}) + "\n")
            left -= len(text)
            if left < 0:
                break
        dest.write_text("".join(lines))
    return dest


def method(kind: str, tokens: str, ffn_tokens: str) -> dict[str, Any]:
    """Flags of a run; the control goes through the tokens of both stages in one."""
    if kind == "swiglu":
        return METHOD | {"activation": "keep", "tokens": str(parse_count(ffn_tokens) + parse_count(tokens))}
    return METHOD | {"activation": kind, "zeros": ZEROS, "tokens": tokens, "ffn-tokens": ffn_tokens}


def train(out: Path, kind: str, original: Path, known: argparse.Namespace, more: list[str]) -> None:
    """OUT/drelu, OUT/relu or OUT/swiglu, the control, on the same texts in the same order."""
    if (out / kind / "sparsify.json").is_file():
        return
    data = []
    for name, share in SHARES.items():
        path = excerpt(known.text / f"{name}.jsonl.zst", out / "text" / f"{name}.jsonl")
        data += ["-d", f"{path}={share}"]
    chosen = method(kind, known.tokens, known.ffn_tokens)
    flags = [part for name, value in chosen.items() for part in (f"--{name}", value)]
    run("sparsify", original, *data, *flags, "--output", out / kind, *more)
    if not (out / kind / "sparsify.json").is_file():
        raise SystemExit("stopped; the same command goes on from there")


def trained(out: Path) -> list[str]:
    """Of the control and the sparse ones what is done."""
    return [kind for kind in KINDS if (out / kind / "sparsify.json").is_file()]


def make_stores(out: Path, original: Path) -> None:
    """OUT/NAME.store of the original and what was trained, in 8 bits."""
    sources = {"original": original} | {kind: out / kind for kind in trained(out)}
    for name, source in sources.items():
        run("convert", source, out / f"{name}.store", "--quant", DENSE, "--force")


def make_packed(out: Path, calibration: Path) -> dict[str, Any]:
    """OUT/packed, of dReLU in 4 bits, and what its sketch finds."""
    if not (out / "drelu.store" / PROFILE_FILE).is_file():
        run("profile", out / "drelu.store", "--text", calibration, "--no-replay", "-n", "8192")
    run("pack", out / "drelu.store", out / "packed", "--format", NEURONS, "--force")
    # A low-rank map would ask for nearly all neurons.
    sketch = make_sketch(out / "packed", [calibration], SketchOptions(loss=0.0025))
    found = {} if sketch.found is None else asdict(sketch.found)
    return {"bits": sketch.facts.bits, "bytes": sketch.bytes, "found": found, "quality": asdict(sketch.quality)}


def measure(out: Path, known: argparse.Namespace) -> dict[str, Any]:
    """OUT/evaluate.json: perplexity and tasks of all variants."""
    stores = [f"{name}={out / name}.store" for name in ("original", *trained(out))]
    packed = []
    if not known.dense_only:
        packed = [f"drelu 4-bit={out / 'packed'}", f"drelu 4-bit predicted={out / 'packed'}@predicted"]
    amounts = ["--windows", known.windows, "--limit", known.limit]
    texts = ["--text", known.wikitext, "--tasks", known.task_list, "--data", known.tasks]
    run("evaluate", *stores, *packed, *texts, *amounts, "--out", out / "evaluate.json")
    found: dict[str, Any] = read_json(out / "evaluate.json")
    return found


def statistics(store: Path) -> dict[str, Any]:
    """What the profile of a sparse model says, beside the synthetic workloads' own."""
    from hotset.tools.profile_report import report

    found = report(read_profile(store / PROFILE_FILE))
    return {
        "tokens": found.tokens,
        "zeros": found.model.zeros,
        "zeros_per_layer": [layer.zeros for layer in found.layers],
        "concentration_mean": found.model.concentration,
        "concentration_of_all": found.model_wide_concentration,
        "reuse": found.model.reuse,
        "missed_by_lru_with_half": next(r.mean for r in found.replayed if (r.policy, r.share) == ("lru", 0.5)),
    }


def plot(curves: dict[str, list[dict[str, Any]]], layers: list[dict[str, Any]], zeros: list[float], path: Path) -> None:
    """Training: loss and zeros over tokens; zeros of each layer at the end."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.2), layout="constrained")
    loss, share, layer = figure.subplots(1, 3)
    for kind, entries in curves.items():
        trained = [entry for entry in entries if entry["kind"] == "train"]
        tokens = [entry["tokens"] / 1e3 for entry in trained]
        loss.plot(tokens, [entry["loss"] for entry in trained], label=KINDS[kind])
        if kind != "swiglu":
            share.plot(tokens, [sum(entry["zeros"]) / len(entry["zeros"]) for entry in trained], label=KINDS[kind])
    layer.plot([entry["zeros"] for entry in layers], label="after the first stage, text trained on")
    layer.plot(zeros, label="at the end, held-out text")
    loss.set(xlabel="thousand tokens", ylabel="loss", title="next token, second stage")
    share.set(xlabel="thousand tokens", ylabel="share of neurons", title="zeros, second stage")
    layer.set(xlabel="layer", ylabel="share of neurons", title="zeros of dReLU")
    for part in (loss, share, layer):
        part.legend()
    figure.savefig(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    for name, what in (
        ("original", "Hugging Face folder or GGUF file of SmolLM2-135M"),
        ("text", "folder of the training texts"),
        ("calibration", "text for profile and predictors"),
        ("wikitext", "WikiText-2 test"),
        ("tasks", "folder of the tasks' files"),
    ):
        parser.add_argument(f"--{name}", type=Path, required=True, help=what)
    parser.add_argument("--ffn-tokens", default="81920", help="of the first stage")
    parser.add_argument("--tokens", default="819200", help="of the second stage")
    parser.add_argument("--task-list", default="arc_easy,piqa,hellaswag")
    parser.add_argument("--limit", default="100", help="items of each task")
    parser.add_argument("--windows", default="40", help="of WikiText-2, 512 tokens each")
    parser.add_argument("--only", choices=("drelu", "swiglu", "relu", "measure"), help="one part of the work")
    parser.add_argument("--dense-only", action="store_true", help="measure nothing packed")
    parser.add_argument("--result", type=Path, help="where the figures are written; the plot lies beside")
    known, more = parser.parse_known_args()
    original = make_original(known.original, known.out / "original")
    for kind in ("drelu", "swiglu", "relu"):
        if known.only == kind or (known.only is None and kind != "relu"):
            train(known.out, kind, original, known, more)
    if known.only not in (None, "measure"):
        return 0
    make_stores(known.out, original)
    packed = {}
    if not known.dense_only:
        packed["sketch"] = make_packed(known.out, known.calibration)
        packed["statistics"] = statistics(known.out / "drelu.store")
    found = measure(known.out, known)
    if known.result is not None:
        save(known.out, found, packed, known.result)
    return 0


def save(out: Path, found: dict[str, Any], packed: dict[str, Any], path: Path) -> None:
    runs = {kind: bare(read_json(out / kind / "sparsify.json")) for kind in trained(out)}
    curves = {kind: curve(out / kind) for kind in runs}
    layers = [json.loads(line) for line in (out / "drelu" / "ffn.jsonl").read_text().splitlines()]
    series = [
        Series("perplexity", "", (each["perplexity"]["value"],), model=each["name"]) for each in found["variants"]
    ]
    more = {"runs": runs, "curves": curves, "first_stage": layers} | packed
    write(bare(record("SmolLM2-135M with dReLU", series, evaluated=found["variants"], **more)), path)
    plot(curves, layers, runs["drelu"]["as_measured"]["zeros_per_layer"], path.with_suffix(".svg"))


if __name__ == "__main__":
    raise SystemExit(main())
