"""The variants that `hotset evaluate` compares: what they are, how their models are run, what their figures rest on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from hotset import _core
from hotset.errors import UsageError
from hotset.formats.files import sha256
from hotset.formats.predictors import PREDICTORS_FILE
from hotset.formats.sketch import SKETCH_FILE
from hotset.formats.store import CONFIG, MANIFEST, Store, open_store
from hotset.models import resolve
from hotset.planner.plan_file import Plan, write_plan
from hotset.tools.resolve import finished_store

if TYPE_CHECKING:
    from hotset.llm import LLM

_QUANTS = ("q4_0", "q4_1", "q8_0", "f16", "bf16", "f32")
_GUESSES = {"low-rank": PREDICTORS_FILE, "sketch": SKETCH_FILE}  # predictors that may miss neurons


@dataclass(frozen=True, slots=True)
class Variant:
    """A model and how it is run; the first of several is what the others are compared with."""

    name: str
    model: str
    quant: str = "auto"  # weights that it is converted to
    predicted: bool = False  # of a packed store: predictors choose the neurons, one token at a time


def parse_variant(text: str) -> Variant:
    """'[NAME=]MODEL[@predicted|@q4_0|…]'. Raises UsageError."""
    name, equals, model = text.rpartition("=")
    model, at, mode = model.rpartition("@") if "@" in model else (model, "", "")
    if at and mode != "predicted" and mode not in _QUANTS:
        raise UsageError(f"{text!r:.80}: after @ comes predicted or one of {', '.join(_QUANTS)}")
    if not model:
        raise UsageError(f"{text!r:.80}: want [NAME=]MODEL, such as 'sparse=./smollm2-sparse'")
    shown = name if equals else Path(model).name + (f" {mode}" if mode else "")
    return Variant(shown, model, "auto" if mode in ("", "predicted") else mode, mode == "predicted")


def check_variants(variants: Sequence[Variant]) -> None:
    """Raises UsageError for a name that stands twice, and for weights to convert to where nothing is converted."""
    if len({v.name for v in variants}) != len(variants):
        raise UsageError("two variants have the same name; name them, such as 'exact=PATH' 'predicted=PATH@predicted'")
    finished = [f"{v.model}@{v.quant}" for v in variants if v.quant != "auto" and finished_store(v.model)]
    if finished:
        raise UsageError(
            f"{', '.join(finished)}: the weights of a finished store stay as they are; wanted a GGUF file, a Hugging "
            "Face folder or a hub id before @q4_0, @q8_0, …: name what the store was made from, or leave out the @"
        )


@contextmanager
def opened(variant: Variant, path: Path, threads: int | None) -> Iterator[LLM]:
    """The model of a store as the variant runs it.

    Raises: UsageError if nothing would be predicted, and what planning and loading raise.
    """
    from hotset.llm import LLM

    if not variant.predicted:
        with LLM(path, threads=threads) as llm:
            yield llm
        return
    plan = _guessing_plan(variant, path, threads)  # before a model takes the memory that is planned with
    with TemporaryDirectory() as folder:
        write_plan(plan, Path(folder) / "plan.json")
        with LLM(path, predict="auto", plan=Path(folder) / "plan.json", threads=threads, draft=False) as llm:
            yield llm


def _guessing_plan(variant: Variant, path: Path, threads: int | None) -> Plan:
    """That of this host, or where all neurons fit into memory, so that it guesses none and there is no loss to see,
    half of the neurons in memory and none of them always computed, as train-predictor measures.
    """
    from hotset.tools.plan import Wishes, make_plan

    store = open_store(path)
    found = [name for name, file in _GUESSES.items() if (path / file).exists()]
    if store.neurons is None or not found:
        raise UsageError(f"{variant.name}: {path} has nothing that predicts; `hotset train-predictor` first")
    model, wishes = resolve(store.config), Wishes(predict="auto", threads=threads, draft=False)
    plan = make_plan(store, model, wishes)
    if plan.predictor in _GUESSES:
        return plan
    half = store.neurons.layers * store.neurons.ffn // 2
    return make_plan(store, model, wishes, {"predictor": found[0], "hot": 0, "cold_slots": half})


def basis(llm: LLM, predicted: bool) -> list[object]:
    """What a variant's figures rest on, as JSON has it: weights, kernels and, if neurons are guessed, which and how.

    Reads the predictors once, so it takes a while for large ones. Raises StorageError.
    """
    plan = llm.plan if predicted else None
    guess = None if plan is None else _guessed(plan)
    return [_digest(llm.store, plan), guess, _core.__version__, llm.isa]


def _guessed(plan: Plan) -> list[object]:
    """All that decides which neurons are computed: missing ones need higher scores than those in memory."""
    return [plan.predictor, plan.hot, plan.cold_slots, plan.policy, plan.spill, plan.energy, plan.loss]


def _digest(store: Store, plan: Plan | None) -> str:
    """Of what the store computes: its manifest has checksums of all weights, its config the thresholds."""
    names = [MANIFEST, CONFIG, *([] if plan is None else [_GUESSES[plan.predictor]])]
    return hashlib.sha256(b"".join(bytes.fromhex(sha256(store.path / name)) for name in names)).hexdigest()
