"""`hotset threshold`: makes a model sparse without training it, by leaving out neurons that contribute little.

A neuron's score is what it adds to its layer's output, |product| times the length of its column of `down`; those below
their layer's threshold are skipped. Thresholds come from text: a small part of it tells how scores are distributed,
how much the answers change when a layer alone is thinned out tells how the wanted zeros are best spread over layers,
and text that neither has seen tells what all of it costs.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hotset import _core
from hotset.errors import InputError, UsageError
from hotset.formats.files import read_whole, storage_error
from hotset.formats.progress import Progress, silent
from hotset.formats.sparsity import METHODS, NORMS_FILE, Method, Sparsity, layer_floor, norms_bytes, read_sparsity
from hotset.formats.store import CONFIG, WEIGHT_FILES, Store, is_store, open_store
from hotset.formats.store_writer import StoreWriter, TakenFile
from hotset.loader import load_core
from hotset.models import Model, resolve
from hotset.models.gate import ZERO_BELOW
from hotset.tokenizer import Tokenizer
from hotset.tools.profile_text import Window, windows
from hotset.tools.threshold_bench import Bench, Cost
from hotset.tools.threshold_scores import LayerScores, score_layer
from hotset.tools.threshold_spread import MOST_ZEROS, spread, threshold_at
from hotset.tools.train_predictor_inputs import capture

_STEP = 512  # tokens of a window and of a step
_LEAST_TOKENS = 256
_NEAR = 0.002  # of the wanted share of zeros, or of a tenth of the wanted change of perplexity
_TRIES = 8
# Energy stands for divergence only roughly: half-way to the spread that it calls best is often better than either end.
_BLENDS = (0.0, 0.5, 1.0)
_PROBED = 0.4  # share of zeros at which a layer's sensitivity is measured where a loss is wanted


@dataclass(frozen=True, slots=True)
class ThresholdOptions:
    zeros: float | None = None  # wanted share of zeros; exactly one of these two
    loss: float | None = None  # wanted change of perplexity, relative
    method: Method = "contribution"
    even: bool = False  # the same share in every layer
    tokens: int = 8192  # of text, half of it to measure the result on
    measure: int = 512  # tokens on which each layer's sensitivity is measured
    threads: int = 0  # 0: all cores

    def check(self) -> None:
        """Raises UsageError."""
        if (self.zeros is None) == (self.loss is None):
            raise UsageError("want either a share of zeros or a change of perplexity, such as --zeros 40% or --loss 2%")
        if self.zeros is not None and not 0 < self.zeros <= MOST_ZEROS:
            raise UsageError(f"zeros is {self.zeros:g}; wanted more than 0 and at most {MOST_ZEROS:g}, such as 40%")
        if self.loss is not None and not 0 < self.loss < 10:
            raise UsageError(f"loss is {self.loss:g}; wanted more than 0 and less than 10, such as 0.02 or 2%")
        if self.method not in METHODS:
            raise UsageError(f"there is no method {self.method!r:.40}; choose one of {', '.join(METHODS)}")
        if self.tokens < _LEAST_TOKENS:
            raise UsageError(f"{self.tokens} tokens of text; wanted at least {_LEAST_TOKENS}, better 8192")
        if self.measure < 1:
            raise UsageError(f"{self.measure} tokens to measure on; wanted at least 1")


@dataclass(frozen=True, slots=True)
class ThresholdReport:
    path: Path
    sparsity: Sparsity
    cost: Cost
    sensitivity: tuple[float, ...]  # by layer: divergence for a unit of energy lost
    seconds: float


def threshold(
    model: Path,
    dest: Path,
    text: Sequence[Path],
    options: ThresholdOptions,
    progress: Progress = silent,
    force: bool = False,
) -> ThresholdReport:
    """Makes a store with thresholds out of a dense one; weights are linked, or copied to another drive.

    progress: called with what is done and in all of tokens, layers and runs.
    Raises: UsageError (values out of range, a model that is sparse already or packed, a destination that exists),
        InputError (no text, too little), StorageError, FormatError.
    """
    options.check()
    store = open_store(model)
    resolved = resolve(store.config)
    _check_source(store, resolved, options.method)
    if dest.exists() and not force and not (dest.is_dir() and not any(dest.iterdir())):
        what = "a store" if is_store(dest) else "not a store"
        raise UsageError(f"{dest} exists and is {what}; choose another destination, or --force to replace it")
    start = time.monotonic()
    finder = ThresholdFinder(store, resolved, text, options, progress)
    sparsity, cost = finder.find(options)
    write_store(store, dest, sparsity, finder.scores, force)
    return ThresholdReport(dest, sparsity, cost, tuple(finder.sensitivity), time.monotonic() - start)


def _check_source(store: Store, model: Model, method: Method) -> None:
    act = model.config.act_gate
    if store.neurons is not None:
        raise UsageError(f"{store.path} is packed; give the dense store that it was made from, and pack the result")
    if read_sparsity(store) is not None:
        raise UsageError(f"{store.path} has thresholds already; give the store that it was made from")
    if act in ZERO_BELOW:
        raise UsageError(f"{store.path} is sparse already: its FFN's {act} makes neurons exactly 0; `hotset pack` it")
    if method == "cats" and not model.config.gated:
        raise UsageError("cats looks at gates, and this model's FFN has none; use contribution")


class ThresholdFinder:
    """A model with its text: what scores are like, and what thresholds cost."""

    def __init__(
        self, store: Store, model: Model, text: Sequence[Path], options: ThresholdOptions, progress: Progress = silent
    ) -> None:
        self._model, self._method, self._progress = model, options.method, progress
        size = min(_STEP, model.config.context)
        calibration, held_out = _halves(windows(text, Tokenizer.load(store.path), size, options.tokens))
        core = load_core(
            store, model, None, threads=options.threads, kv_tokens=2 * _STEP, max_step_tokens=min(_STEP, size)
        )
        self.scores = self._score(store, core, calibration)
        self.bench = Bench(core, model.config, held_out, options.measure)
        probed = options.zeros or _PROBED
        self._blend = 0.0
        self.sensitivity = [1.0] * len(self.scores)
        if not options.even:
            self.sensitivity = self._sensitivity(probed)
            self._blend = min(_BLENDS, key=lambda blend: self._divergence(probed, blend))

    def find(self, options: ThresholdOptions) -> tuple[Sparsity, Cost]:
        """Thresholds that give the wanted share of zeros, or change of perplexity, on the held-out text."""
        if options.zeros is not None:
            return self._search(options.zeros, lambda cost: cost.zeros, options.zeros, _NEAR)
        assert options.loss is not None
        return self._search(_PROBED, lambda cost: cost.change, options.loss, options.loss / 10)

    def at(self, zeros: float, blend: float | None = None) -> Sparsity:
        """Thresholds for a mean share of zeros on the calibration text; what they cost is not known yet.

        blend: from 0, the same share in every layer, to 1, spread by sensitivity; None: the one that is best here.
        """
        curves = [s.curve for s in self.scores]
        part = self._blend if blend is None else blend
        best = spread(curves, self.sensitivity, zeros) if part else zeros
        shares = np.full(len(curves), (1 - part) * zeros) + part * best
        inputs = [threshold_at(s.inputs, share) for s, share in zip(self.scores, shares, strict=True) if s.inputs]
        return Sparsity(
            self._method,
            tuple(threshold_at(curve, share) for curve, share in zip(curves, shares, strict=True)),
            tuple(inputs),
            zeros=0.0,
            perplexity_change=0.0,
        )

    def measured(self, sparsity: Sparsity) -> tuple[Sparsity, Cost]:
        cost = self.bench.cost([layer_floor(sparsity, i, s.norms) for i, s in enumerate(self.scores)])
        return replace(sparsity, zeros=cost.zeros, perplexity_change=cost.change), cost

    def _search(self, share: float, got: Callable[[Cost], float], wanted: float, near: float) -> tuple[Sparsity, Cost]:
        """Tries shares until what is `got` is as wanted: by interpolation between the nearest on either side."""
        below, above = (0.0, 0.0), (MOST_ZEROS, float("inf"))
        tried = []
        for index in range(_TRIES):
            self._progress(index, _TRIES, "runs")
            found = self.measured(self.at(share))
            tried.append(found)
            value = got(found[1])
            if abs(value - wanted) <= near:
                break
            below, above = ((share, value), above) if value < wanted else (below, (share, value))
            part = (wanted - below[1]) / (above[1] - below[1]) if np.isfinite(above[1]) else wanted / max(value, 1e-9)
            share = below[0] + (above[0] - below[0]) * min(max(part, 0.1), 0.9)
        return min(tried, key=lambda found: abs(got(found[1]) - wanted))

    def _score(self, store: Store, core: _core.Engine, calibration: list[Window]) -> list[LayerScores]:
        layers = len(self._model.config.layers)
        found = []
        with tempfile.TemporaryDirectory(prefix="hotset-threshold-") as work:
            path = Path(work) / "inputs.npy"
            inputs = capture(core, calibration, path, self._model.config, _STEP, self._progress)
            for layer in range(layers):
                found.append(score_layer(store, self._model, layer, np.array(inputs[layer]), self._method))
                self._progress(layer + 1, layers, "layers scored")
        return found

    def _divergence(self, share: float, blend: float) -> float:
        sparsity = self.at(share, blend)
        return self.bench.divergence([layer_floor(sparsity, i, s.norms) for i, s in enumerate(self.scores)])

    def _sensitivity(self, share: float) -> list[float]:
        """Divergence for a unit of lost energy, of each layer alone with this share of zeros."""
        layers = len(self.scores)
        probe = self.at(share, blend=0)
        found = []
        for layer, scores in enumerate(self.scores):
            floors: list[Mapping[str, Any]] = [{}] * layers
            floors[layer] = layer_floor(probe, layer, scores.norms)
            divergence = self.bench.divergence(floors)
            lost = scores.curve.lost[max(scores.curve.at(share), 0)]
            found.append(max(divergence, 1e-9) / max(float(lost), 1e-30))
            self._progress(layer + 1, layers, "layers tried")
        return found


def write_store(store: Store, dest: Path, sparsity: Sparsity, scores: Sequence[LayerScores], force: bool) -> None:
    """Raises StorageError, UsageError."""
    section = store.info | {"sparsity": sparsity.as_json()}
    config = json.dumps(store.config | {"hotset": section}, indent=2, ensure_ascii=False).encode() + b"\n"
    small = [name for name in store.files if name not in (*WEIGHT_FILES, CONFIG)]
    files = {CONFIG: config, **{name: read_whole(store.path / name) for name in small}}
    if sparsity.method == "contribution":
        files[NORMS_FILE] = norms_bytes(np.stack([s.norms for s in scores]))
    taken = {name: TakenFile(store.path / name, store.files[name]) for name in WEIGHT_FILES}
    try:
        with StoreWriter(dest, [], json.dumps(section, sort_keys=True), taken) as writer:
            writer.commit(files, replace=force)
    except OSError as error:
        raise storage_error(dest, "cannot be written", error) from None


def _halves(parts: list[Window]) -> tuple[list[Window], list[Window]]:
    """Windows to find thresholds on and windows to measure on, both spread over the text. One window alone is cut."""
    if len(parts) == 1:
        half = len(parts[0]) // 2
        parts = [parts[0][:half], parts[0][half:]]
    tokens = sum(map(len, parts))
    if tokens < _LEAST_TOKENS:
        raise InputError(f"the text has {tokens} tokens; wanted at least {_LEAST_TOKENS}, better 8192: give more text")
    return parts[::2], parts[1::2]
