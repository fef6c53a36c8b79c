"""`hotset train-predictor --drafts-only`: how often drafts hold, of predictors that a store has already."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hotset.errors import UsageError
from hotset.formats.predictors import read_predictors, verify_predictors
from hotset.formats.predictors_file import write_drafts
from hotset.formats.progress import Progress, silent
from hotset.formats.store import open_store
from hotset.models import resolve
from hotset.tokenizer import Tokenizer
from hotset.tools.profile_text import windows
from hotset.tools.train_predictor import TrainOptions, split
from hotset.tools.train_predictor_calibrate import STEP, Bench
from hotset.tools.train_predictor_drafts import (
    DRAFTS,
    Drafts,
    draft_energies,
    measure_drafts,
    shares,
    write_answers,
)
from hotset.tools.train_predictor_report import drafts_as_json


@dataclass(frozen=True, slots=True)
class DraftReport:
    path: Path
    drafts: list[Drafts]  # by energy
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"path": str(self.path), "drafts": drafts_as_json(self.drafts)}


def measure_again(
    folder: Path, text: Sequence[Path], options: TrainOptions, progress: Progress = silent
) -> DraftReport:
    """Measures drafts with a packed store's predictors and writes into their file how often they hold.

    text: held out from it is what was when they were trained on the same. options: tokens, measure and threads count.
    Raises: UsageError (no predictors), InputError (no text, too little), StorageError, FormatError.
    """
    started = time.monotonic()
    store = open_store(folder)
    trained = read_predictors(folder, store.neurons) if store.neurons else None
    if trained is None:
        raise UsageError(f"{folder} has no predictors; make some with `hotset train-predictor` without --drafts-only")
    verify_predictors(folder)
    model, tokenizer = resolve(store.config), Tokenizer.load(folder)
    bench = Bench(store, model, options.threads)
    _, held_out = split(windows(text, tokenizer, min(STEP, model.config.context), options.tokens))
    answers = write_answers(bench, held_out, DRAFTS * options.measure, sorted(tokenizer.eos_ids))
    energies = draft_energies(trained.energy, max(energy for energy, _ in trained.measured))
    drafts = measure_drafts(bench, trained, energies, answers, progress)
    return DraftReport(write_drafts(folder, shares(drafts)), drafts, time.monotonic() - started)
