"""`hotset sketch`: low-bit copies of gate and up, which tell before they are read what neurons will contribute.

Nothing is trained: text only tells the mean input, for which a sketch is made right, which columns count, and where the
thresholds lie.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hotset import _core
from hotset.errors import UsageError
from hotset.formats.files import storage_error
from hotset.formats.progress import Progress, silent
from hotset.formats.sketch import BITS, SHARES, Part, Sketch, SketchFacts, read_sketch, write_sketch
from hotset.formats.sparsity import read_sparsity
from hotset.formats.store import open_store
from hotset.formats.thresholds import Thresholds, fetch_energy, limits
from hotset.models import resolve
from hotset.tokenizer import Tokenizer
from hotset.tools.profile_text import windows
from hotset.tools.threshold_spread import MOST_ZEROS
from hotset.tools.train_predictor import split
from hotset.tools.train_predictor_calibrate import STEP, Bench, Quality, calibrate
from hotset.tools.train_predictor_fit import LOSSES, Tried, try_scores
from hotset.tools.train_predictor_inputs import Floats, Neurons, capture, read_neurons

_TABLES = ("thresholds", "predicted", "recall")
_TRIED = 512  # held-out tokens from which thresholds are taken
_STEPS = 1001  # quantiles of what scores are at most


@dataclass(frozen=True, slots=True)
class SketchOptions:
    bits: int = 3
    zeros: float | None = None  # share of the neurons of every layer that is left out; else as many as `loss` allows
    loss: float = 0.005  # of perplexity, relative
    tokens: int = 4096  # of text, a quarter of it held out
    measure: int = 256  # tokens taken one by one in each run that thresholds are tried in
    threads: int = 0  # 0: all cores

    def check(self) -> None:
        """Raises UsageError."""
        if self.bits not in BITS:
            raise UsageError(f"{self.bits} bits; wanted {' or '.join(map(str, BITS))}")
        if self.zeros is not None and not 0 < self.zeros <= MOST_ZEROS:
            raise UsageError(f"zeros is {self.zeros:g}; wanted more than 0 and at most {MOST_ZEROS:g}, such as 40%")
        if not 0 < self.loss < 1:
            raise UsageError(f"loss is {self.loss:g}; wanted more than 0 and less than 1, such as 0.005 or 0.5%")
        if self.measure < 1:
            raise UsageError(f"{self.measure} tokens to measure on; wanted at least 1")


@dataclass(frozen=True, slots=True)
class Found:
    """On held-out tokens, means of all layers."""

    active: float  # share of all neurons
    predicted: float  # share of all neurons
    recall: float  # share of the active ones that are predicted


@dataclass(frozen=True, slots=True)
class SketchReport:
    path: Path
    facts: SketchFacts
    quality: Quality
    found: Found | None  # where every neuron is in memory; None if no share of energy was given up
    bytes: int
    seconds: float


def make_sketch(
    folder: Path, text: Sequence[Path], options: SketchOptions | None = None, progress: Progress = silent
) -> SketchReport:
    """Sketches all layers of a packed store and writes them beside it.

    Raises: UsageError (store that is not packed), InputError (no text, too little), StorageError, FormatError.
    """
    options = options or SketchOptions()
    options.check()
    start = time.monotonic()
    store = open_store(folder)
    if store.neurons is None:
        raise UsageError(f"{folder} is not packed, so its neurons are not read one by one; use `hotset pack` first")
    try:
        scratch = tempfile.TemporaryDirectory(dir=folder, prefix=".sketch-")
    except OSError as error:
        raise storage_error(folder, "cannot be written", error) from None
    with scratch as work:
        return _making(folder, text, options, Path(work), start, progress)


def _making(
    folder: Path, text: Sequence[Path], options: SketchOptions, work: Path, start: float, progress: Progress
) -> SketchReport:
    store = open_store(folder)
    model = resolve(store.config)
    bench = Bench(store, model, options.threads)
    size = min(STEP, model.config.context)
    training, held_out = split(windows(text, Tokenizer.load(store.path), size, options.tokens))
    core = bench.exact()
    inputs = capture(core, [*training, *held_out], work / "inputs.npy", model.config, STEP, progress)
    passages = bench.passages(core, held_out, options.measure)
    count = sum(len(window) - 1 for window in training)
    sparsity, tried, quantiles = read_sparsity(store), list[Tried](), list[tuple[float, ...]]()
    bounds: list[Floats] = []
    made: list[list[Part]] = []
    for layer in range(bench.info.layers):
        neurons = read_neurons(store, model, layer)
        parts, guessed = sketch_layer(neurons, np.array(inputs[layer, :count]), options.bits, options.threads)
        x = np.array(inputs[layer, count :: max(1, (inputs.shape[1] - count) // _TRIED)])
        scores, contributions = guessed.contributions(x), neurons.contributions(x)
        if sparsity is not None and sparsity.method == "contribution":
            contributions[contributions < sparsity.thresholds[layer]] = 0
        if guessed.gate is not None:
            bounds.append(np.quantile(guessed.bounds(x), np.linspace(0, 1, _STEPS)).astype(np.float32))
        tried.append(try_scores(scores, np.square(contributions)))
        quantiles.append(tuple(np.quantile(scores, SHARES).tolist()))
        made.append(parts)
        progress(layer + 1, bench.info.layers, "layers")
    none = (0.0,) * bench.info.layers
    facts = SketchFacts(options.bits, none, none, tuple(quantiles), 1.0, 1.0, 0.0, 1.0)
    write_sketch(work, bench.info, made, facts)
    sketch = read_sketch(work, bench.info)
    tables = Thresholds(LOSSES, *(np.array([getattr(t, part) for t in tried]) for part in _TABLES))

    def measure(keep: Sequence[float], fetch: Sequence[float], energy: float) -> Quality:
        assert sketch is not None
        chosen = sketch_options(sketch, bench.hot, bench.slots, keep, fetch)
        return bench.quality(chosen, energy, passages)

    if options.zeros is not None:
        keep = fetch = facts.limits(options.zeros)
        quality, found = measure(keep, fetch, 0.0), None
        wanted = quality.predicted
    else:
        quality = calibrate(lambda energy: measure(*limits(tables, energy), energy), options.loss)[-1]
        keep, fetch = limits(tables, quality.energy)
        found, wanted = _found(tried, quality.energy), tables.share(fetch_energy(quality.energy))
    facts = replace(
        facts,
        keep=keep,
        fetch=fetch,
        candidates=quality.predicted,
        wanted=min(wanted, quality.predicted),
        perplexity_change=quality.change,
        up_share=_open(bounds, keep),
    )
    path = write_sketch(folder, bench.info, made, facts)
    assert sketch is not None
    return SketchReport(path, facts, quality, found, sketch.bytes, time.monotonic() - start)


def _found(layers: Sequence[Tried], energy: float) -> Found:
    at = [layer.at(energy) for layer in layers]
    active = np.array([layer.active for layer in layers])
    recall = (np.array([recall for _, _, recall, _ in at]) * active).sum() / max(active.sum(), 1e-9)
    return Found(float(active.mean()), float(np.mean([predicted for _, predicted, _, _ in at])), float(recall))


def _open(bounds: Sequence[Floats], keep: Sequence[float]) -> float:
    """Share of the neurons that reach `keep` as far as their gates tell. bounds: quantiles of the most that scores are,
    by layer; none in plain FFNs, of which every neuron is looked at.
    """
    shares = [1 - np.searchsorted(b, k) / len(b) for b, k in zip(bounds, keep, strict=False)]
    return float(np.mean(shares)) if shares else 1.0


def sketch_options(
    sketch: Sketch, hot: Sequence[int], cold_slots: int, keep: Sequence[float], fetch: Sequence[float]
) -> _core.SparseOptions:
    """What makes an engine choose neurons by a sketch."""
    file = _core.SketchFile(str(sketch.path), sketch.facts.bits, sketch.offsets)
    return _core.SparseOptions(hot, cold_slots, "clock", "sketch", keep, fetch, sketch=file)


def sketch_layer(neurons: Neurons, x: Floats, bits: int, threads: int = 0) -> tuple[list[Part], Neurons]:
    """The parts of a layer's sketch, and the layer as the sketch has it. x: inputs [tokens, hidden].

    Columns count by their mean square in x. What a sketch is wrong by for the mean of x is added to its limits; its
    scores are the expected ones under the rest, with ups no larger than the largest of x.
    """
    mean = x.mean(axis=0)
    importance = np.square(x).mean(axis=0) + np.float32(1e-12)
    matrices = {"up": neurons.up} if neurons.gate is None else {"gate": neurons.gate, "up": neurons.up}
    parts: list[Part] = []
    changed: dict[str, Floats] = {}
    noise: list[Floats] = []
    for role, w in matrices.items():
        data = np.zeros(_core.sketch_bytes(bits, *w.shape), np.uint8)
        _core.encode_sketch(bits, np.ascontiguousarray(w), importance, data, threads)
        parts.append((role, data))
        changed[role] = _core.decode_sketch(bits, data, *w.shape)
        limit = neurons.gate_limit if role == "gate" else neurons.up_limit
        wrong = w - changed[role]
        changed[f"{role}_limit"] = limit - wrong @ mean
        noise.append(np.sqrt(np.square(wrong) @ np.maximum(importance - np.square(mean), 0)))
    guessed = replace(neurons, **changed, noise=tuple(noise))  # type: ignore[arg-type]
    most = _largest(guessed, x)
    offsets = guessed.offsets()
    vectors = [offsets[0], offsets[-1], neurons.reach, noise[0], noise[-1], most]
    return [*parts, ("vectors", np.stack(vectors).astype("<f4"))], replace(guessed, most=most)


def _largest(guessed: Neurons, x: Floats) -> Floats:
    """[ffn]: the largest size of up's activation that is expected for any of x."""
    parts = [guessed.expected(x[i : i + STEP])[-1].max(axis=0) for i in range(0, len(x), STEP)]
    out: Floats = np.max(parts, axis=0)
    return out
