"""`hotset train-predictor`: maps that say which neurons a token needs, fitted on text and calibrated on the engine.

The model runs the text once; the FFNs' inputs go to the drive. Then one layer after another is fitted
(train_predictor_fit.py), in memory for one layer, or the checkpoint's own maps are taken
(train_predictor_published.py); at last thresholds are chosen (train_predictor_calibrate.py).
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hotset.errors import InputError, UsageError
from hotset.formats.files import storage_error
from hotset.formats.predictors import MOST_ENERGY, Predictors, read_predictors
from hotset.formats.predictors_file import write_predictors
from hotset.formats.progress import Progress, silent
from hotset.formats.store import Store, open_store
from hotset.formats.thresholds import FETCH, Thresholds
from hotset.models import resolve
from hotset.planner.lowrank import moments
from hotset.tokenizer import Tokenizer
from hotset.tools.profile_text import Window, windows
from hotset.tools.train_predictor_calibrate import STEP, Bench, Passage, Quality, calibrate
from hotset.tools.train_predictor_drafts import DRAFTS, draft_energies, measure_drafts, shares, write_answers
from hotset.tools.train_predictor_fit import FORMAT, LOSSES, ROWS, LayerFit, LayerInputs, TrainingInputs, fit_layer
from hotset.tools.train_predictor_inputs import Floats, capture, read_neurons
from hotset.tools.train_predictor_published import check_published, published_maps, try_published
from hotset.tools.train_predictor_report import TrainReport, layer_report
from hotset.tools.train_predictor_written import continuations, kv_tokens

_HELD_OUT = 4  # one window in so many
_TRIED = 256  # held-out tokens on which a layer's maps are tried
_RANKS = (1 / 32, 1 / 16, 1 / 8)  # shares of the hidden size, see fit_layer
_LEAST_TOKENS = 256
_FOR_DRAFTS = 4  # times the most energy that was given up until then


@dataclass(frozen=True, slots=True)
class TrainOptions:
    tokens: int = 8192  # of text, a quarter of it held out
    written: int = 2048  # more tokens, which the model writes itself
    rank: int | None = None  # of all layers; None: each layer's own
    loss: float = 0.005  # allowed, relative, of perplexity
    measure: int = 256  # tokens taken one by one in each run that thresholds are tried in
    threads: int = 0  # 0: all cores
    ahead: bool = True  # maps are given the input of the FFN before
    fetch: float = FETCH  # share of energy given up where neurons are missing, to that where they are in memory
    published: bool = False  # take those of the checkpoint, which are given their own layer's input

    def check(self, hidden: int) -> None:
        """Raises UsageError."""
        if self.tokens < _LEAST_TOKENS:
            raise UsageError(f"{self.tokens} tokens to train on; wanted at least {_LEAST_TOKENS}, better 8192")
        if self.rank is not None and not (self.rank % ROWS == 0 < self.rank <= hidden):
            raise UsageError(
                f"rank is {self.rank}; wanted a multiple of {ROWS} up to {hidden}, the hidden size, or auto"
            )
        if self.published and self.rank is not None:
            raise UsageError("--rank is for maps to be fitted; published ones have their own: leave out one of both")
        if self.written and self.written < 2 * _LEAST_TOKENS:
            raise UsageError(f"{self.written} tokens to be written; wanted 0 or at least {2 * _LEAST_TOKENS}")
        if not 0 < self.loss < 1:
            raise UsageError(f"loss is {self.loss:g}; wanted more than 0 and less than 1, such as 0.005 or 0.5%")
        if not 1 <= self.fetch < math.inf:
            raise UsageError(f"fetch is {self.fetch:g}; wanted at least 1, where missing neurons are as others")
        if self.measure < 1:
            raise UsageError(f"{self.measure} tokens to measure on; wanted at least 1")


def train_predictor(
    folder: Path, text: Sequence[Path], options: TrainOptions | None = None, progress: Progress = silent
) -> TrainReport:
    """Trains predictors of all layers of a packed store, or takes its checkpoint's, and writes them beside it.

    Raises: UsageError (store that is not packed, or has none of its checkpoint), InputError (no text, too little),
        StorageError, FormatError.
    """
    store = open_store(folder)
    if store.neurons is None:
        raise UsageError(f"{folder} is not packed, so its neurons are not read one by one; use `hotset pack` first")
    try:
        scratch = tempfile.TemporaryDirectory(dir=folder, prefix=".train-predictor-")
    except OSError as error:
        raise storage_error(folder, "cannot be written", error) from None
    with scratch as work:
        return _Training(store, options or TrainOptions(), Path(work), progress).run(text)


class _Training:
    """One run of the tool."""

    def __init__(self, store: Store, options: TrainOptions, work: Path, progress: Progress) -> None:
        self.options, self.work, self.progress = options, work, progress
        self.model = resolve(store.config)
        options.check(self.model.config.hidden)
        if options.published:
            check_published(store, self.model)
        self.bench = Bench(store, self.model, options.threads)
        self.store, self.info = store, self.bench.info
        self.maps: list[tuple[Floats, Floats]] = []  # by layer; files in `work`, rows of up in the model's own order
        self.fits: list[LayerFit] = []

    def run(self, text: Sequence[Path]) -> TrainReport:
        start = time.monotonic()
        size = min(STEP, self.model.config.context)
        tokenizer = Tokenizer.load(self.store.path)
        training, held_out = split(windows(text, tokenizer, size, self.options.tokens))
        ends = sorted(tokenizer.eos_ids)
        answers = write_answers(self.bench, held_out, DRAFTS * self.options.measure, ends)
        for part, written in zip((training, held_out), self._written(training, tokenizer), strict=True):
            part += written
        if self.options.published:
            inputs, passages = self._inputs([], held_out)
            self._take(inputs)
        else:
            inputs, passages = self._inputs(training, held_out)
            self._fit(inputs, sum(len(window) - 1 for window in training))
        runs = self._calibrate(passages)
        layers = [layer_report(fit, runs[-1].energy) for fit in self.fits]
        tried = draft_energies(runs[-1].energy, max(run.energy for run in runs))
        drafts = measure_drafts(self.bench, self._everything(), tried, answers, self.progress)
        took = time.monotonic() - start
        loss, fetch, published = self.options.loss, self.options.fetch, self.options.published
        report = TrainReport(layers, runs[-1], runs[:-1], drafts, loss, fetch, published, inputs.shape[1], took)
        facts, held = self._facts(report.facts), shares(drafts)
        path = write_predictors(
            self.store.path, self.info, self.maps, self._tables(), report.measured, facts, FORMAT, held
        )
        return replace(report, path=path)

    def _written(self, training: list[Window], tokenizer: Tokenizer) -> tuple[list[Window], list[Window]]:
        """What the model writes itself, to fit on and held out."""
        if not self.options.written:
            return [], []
        tokens, context = self.options.written, self.model.config.context
        core = self.bench.exact(kv_tokens(tokens, context))
        return split(continuations(core, training, tokens, sorted(tokenizer.eos_ids), context, self.progress))

    def _inputs(self, training: list[Window], held_out: list[Window]) -> tuple[Floats, list[Passage]]:
        core = self.bench.exact()
        path = self.work / "inputs.npy"
        inputs = capture(core, [*training, *held_out], path, self.model.config, STEP, self.progress)
        return inputs, self.bench.passages(core, held_out, self.options.measure)

    def _fit(self, inputs: Floats, count: int) -> None:
        """count: tokens to fit on; the rest is held out."""
        hidden = self.model.config.hidden
        own = sorted({max(round(share * hidden / ROWS), 1) * ROWS for share in _RANKS})
        ranks = own if self.options.rank is None else [self.options.rank]
        every = max(1, (inputs.shape[1] - count) // _TRIED)
        before: TrainingInputs | None = None
        for layer in range(self.info.layers):
            neurons = read_neurons(self.store, self.model, layer)
            x, held_out = np.array(inputs[layer, :count]), np.array(inputs[layer, count::every])
            found = moments(x)
            before = before or TrainingInputs(x, x, found, found)
            if not self.options.ahead:
                before = TrainingInputs(x, x, found, found)
            training = TrainingInputs(x, before.x, found, before.moments)
            seen = held_out if before.x is x else np.array(inputs[layer - 1, count::every])
            down, up, fit = fit_layer(neurons, training, LayerInputs(held_out, seen), ranks, self.options.loss)
            before = training
            own_order = np.empty_like(up)
            own_order[self.info.read_order(layer)] = up
            self._add(layer, down, own_order, fit)

    def _take(self, inputs: Floats) -> None:
        """The checkpoint's maps, tried on inputs that all are held out."""
        every = max(1, inputs.shape[1] // _TRIED)
        for layer in range(self.info.layers):
            down, up = published_maps(self.store, self.model, layer)
            neurons = read_neurons(self.store, self.model, layer)
            fit = try_published(neurons, down, up[self.info.read_order(layer)], np.array(inputs[layer, ::every]))
            self._add(layer, down, up, fit)

    def _add(self, layer: int, down: Floats, up: Floats, fit: LayerFit) -> None:
        """up: rows in the model's own order."""
        self.maps.append((self._kept(f"down-{layer}", down), self._kept(f"up-{layer}", up)))
        self.fits.append(fit)
        self.progress(layer + 1, self.info.layers, "layers")

    def _kept(self, name: str, matrix: Floats) -> Floats:
        """A matrix in a file, so that memory need not hold those of all layers."""
        path = self.work / f"{name}.npy"
        try:
            np.save(path, matrix)
        except OSError as error:
            raise storage_error(path, "cannot be written", error) from None
        return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]

    def _calibrate(self, passages: list[Passage]) -> list[Quality]:
        trained = self._everything()
        done = 0

        def measure(energy: float) -> Quality:
            nonlocal done
            done += 1
            self.progress(done, done + 1, "runs to set thresholds")
            return self.bench.measure(trained, energy, passages)

        runs = calibrate(measure, self.options.loss)
        # Drafts may be wrong more often than answers: one run for what that would cost, and the last is the one to use.
        return [measure(min(_FOR_DRAFTS * max(run.energy for run in runs), MOST_ENERGY)), *runs]

    def _tables(self) -> Thresholds:
        found = [fit.tried for fit in self.fits]
        scores, predicted, recall = (
            np.array([getattr(t, name) for t in found]) for name in ("thresholds", "predicted", "recall")
        )
        return Thresholds(LOSSES, scores, predicted, recall)

    def _facts(self, facts: Mapping[str, bool | float]) -> dict[str, bool | float]:
        published = self.options.published
        return {**facts, "relu": published, "ahead": self.options.ahead and not published, "fetch": self.options.fetch}

    def _everything(self) -> Predictors:
        """The maps as the engine reads them, not calibrated."""
        facts = self._facts({"active": 1.0, "energy": 0.0, "perplexity_change": 0.0})
        write_predictors(self.work, self.info, self.maps, self._tables(), [(1.0, 1.0)], facts, FORMAT)
        trained = read_predictors(self.work, self.info)
        assert trained is not None
        return trained


def split(parts: list[Window]) -> tuple[list[Window], list[Window]]:
    """Windows to fit on and windows held out, both spread over the text. One window alone is cut.

    Short rests are left out: thresholds and loss would be those of beginnings. Raises InputError.
    """
    parts = [window for window in parts if 2 * len(window) > max(map(len, parts))]
    if len(parts) == 1 and len(parts[0]) >= _LEAST_TOKENS:
        cut = len(parts[0]) * (_HELD_OUT - 1) // _HELD_OUT
        parts = [parts[0][:cut], parts[0][cut:]]
    tokens = sum(map(len, parts))
    if tokens < _LEAST_TOKENS:
        raise InputError(f"the text has {tokens} tokens; wanted at least {_LEAST_TOKENS}, better 8192: give more text")
    held_out = parts[-1::-_HELD_OUT][::-1]
    chosen = {id(window) for window in held_out}
    return [window for window in parts if id(window) not in chosen], held_out
