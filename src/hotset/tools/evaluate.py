"""`hotset evaluate`: perplexity and tasks for several variants of a model, resumable item by item."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from hotset import _core
from hotset.engine.likelihood import Continuation, likelihoods
from hotset.errors import InputError, StorageError, UsageError
from hotset.formats.files import Json, read_whole, storage_error
from hotset.formats.predictors import PREDICTORS_FILE
from hotset.formats.progress import Progress, silent
from hotset.formats.sketch import SKETCH_FILE
from hotset.formats.store import CONFIG, MANIFEST, Store
from hotset.planner.plan_file import Plan, write_plan
from hotset.tokenizer import Tokenizer
from hotset.tools.evaluate_journal import Journal
from hotset.tools.evaluate_tasks import Item, Task, choice_scores, find_data, generated_scores, read_items
from hotset.tools.resolve import cache_dir, resolve_model
from hotset.tools.threshold_bench import count_active

if TYPE_CHECKING:
    from hotset.llm import LLM

_QUANTS = ("q4_0", "q4_1", "q8_0", "f16", "bf16", "f32")
_BATCH = 8  # texts generated at once
_GUESSES = {"low-rank": PREDICTORS_FILE, "sketch": SKETCH_FILE}  # predictors that may miss neurons


@dataclass(frozen=True, slots=True)
class Variant:
    """A model and how it is run; the first of several is what the others are compared with."""

    name: str
    model: str
    quant: str = "auto"  # weights that it is converted to
    predicted: bool = False  # of a packed store: predictors choose the neurons, one token at a time


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    tasks: Sequence[Task] = ()
    data: Path | None = None  # folder of the tasks' files
    text: Path | None = None  # for perplexity
    windows: int | None = None  # of text, at most
    window: int = 512  # tokens, of which the second half is scored
    limit: int | None = None  # items of each task
    fewshot: int | None = None
    threads: int | None = None
    fresh: bool = False  # forget what earlier runs found

    def check(self) -> None:
        """Raises UsageError."""
        if not self.tasks and self.text is None:
            raise UsageError("there is nothing to evaluate: give --text FILE for perplexity, or --tasks with --data")
        if self.tasks and self.data is None:
            raise UsageError("tasks need their data: give --data FOLDER with files such as arc_easy_test.jsonl")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"limit is {self.limit}; wanted at least 1")
        if self.fewshot is not None and self.fewshot < 0:
            raise UsageError(f"fewshot is {self.fewshot}; wanted 0 or more")
        if self.window < 4 or (self.windows is not None and self.windows < 1):
            raise UsageError(f"{self.windows} windows of {self.window} tokens; wanted at least 1 of at least 4")


@dataclass(slots=True)
class VariantResult:
    """What was measured. Scores and surprises stay apart, so that variants are compared item by item."""

    variant: Variant
    path: str
    formats: Json = field(default_factory=dict)  # of weights, by kind
    surprise: list[float] = field(default_factory=list)  # mean -log p of each window
    window_tokens: int = 0  # scored in each window
    zeros: float | None = None  # share of FFN products at 0 in the scored tokens
    scores: dict[str, list[dict[str, float]]] = field(default_factory=dict)  # by task and item


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


def evaluate(variants: Sequence[Variant], options: EvaluateOptions, progress: Progress = silent) -> list[VariantResult]:
    """Evaluates each variant, one in memory at a time. What earlier runs found is taken from the cache.

    progress: called with items done and in all, and what of.
    Raises: UsageError, StorageError (no data), FormatError, and what loading raises.
    """
    options.check()
    if len({v.name for v in variants}) != len(variants):
        raise UsageError("two variants have the same name; name them, such as 'exact=PATH' 'predicted=PATH@predicted'")
    items = {}
    for task in options.tasks:
        assert options.data is not None
        path = find_data(task, options.data)
        items[task.name] = (task, path, read_items(task, path, options.fewshot, options.limit))
    return [_Evaluation(variant, options, progress).run(list(items.values())) for variant in variants]


class _Evaluation:
    """One variant."""

    def __init__(self, variant: Variant, options: EvaluateOptions, progress: Progress) -> None:
        self.variant, self.options, self.progress = variant, options, progress

    def run(self, tasks: Sequence[tuple[Task, Path, list[Item]]]) -> VariantResult:
        variant = self.variant
        store = resolve_model(variant.model, quant=variant.quant, progress=self.progress)
        with _opened(variant, store, self.options.threads) as llm:
            result = VariantResult(variant, str(store), llm.store.info.get("quant", {}))
            if self.options.text is not None:
                self._perplexity(llm, self.options.text, result)
            for task, path, items in tasks:
                result.scores[task.name] = self._task(llm, task, path, items)
        return result

    def _journal(self, llm: LLM, *key: object) -> Journal:
        guess = llm.plan.predictor if self.variant.predicted and llm.plan else None
        made = [_digest(llm.store), guess, _core.__version__, llm.isa, *key]
        return Journal(cache_dir() / "evaluations", made, fresh=self.options.fresh)

    def _perplexity(self, llm: LLM, path: Path, result: VariantResult) -> None:
        size = self.options.window
        if size > llm.context:
            raise UsageError(f"window is {size} tokens; wanted at most {llm.context}, the context")
        texts = _text_windows(llm.tokenizer, path, size)[: self.options.windows]
        found = []
        with self._journal(llm, "perplexity", size, _sha256(path)) as journal:
            for index, tokens in enumerate(texts):
                found.append(journal.get(index) or journal.put(index, self._window(llm, tokens)))
                self.progress(index + 1, len(texts), f"{self.variant.name}: windows")
        result.surprise = [f["surprise"] for f in found]
        result.window_tokens = size - size // 2 - 1
        result.zeros = float(np.mean([f["zeros"] for f in found]))

    def _window(self, llm: LLM, tokens: list[int]) -> Json:
        first = len(tokens) // 2 + 1
        llm.core.record(activations=True)
        try:
            group = [Continuation(tokens, first)]
            (found,) = next(likelihoods(llm.engine, [group], single=self.variant.predicted))
            active = llm.core.take_record()[0][first - 1 :]
        finally:
            llm.core.record(activations=False)
        products = len(active) * len(llm.config.layers) * llm.config.ffn
        return {
            "surprise": -found.value / (len(tokens) - first),
            "zeros": 1 - float(count_active(active).sum()) / products,
        }

    def _task(self, llm: LLM, task: Task, path: Path, items: list[Item]) -> list[dict[str, float]]:
        shots = task.fewshot if self.options.fewshot is None else self.options.fewshot
        with self._journal(llm, task.name, shots, _sha256(path)) as journal:
            missing = [i for i in range(len(items)) if journal.get(i) is None]
            scores = self._generated if task.most_tokens else self._chosen
            for done, (index, found) in enumerate(scores(llm, task, items, missing), len(items) - len(missing) + 1):
                journal.put(index, found)
                self.progress(done, len(items), f"{self.variant.name}: {task.name}")
            return [dict(journal.get(i) or {}) for i in range(len(items))]

    def _chosen(
        self, llm: LLM, task: Task, items: list[Item], wanted: Sequence[int]
    ) -> Iterator[tuple[int, dict[str, float]]]:
        groups = [[encode_pair(llm.tokenizer, *pair, llm.context + 1) for pair in items[i].pairs] for i in wanted]
        found = likelihoods(llm.engine, groups, single=self.variant.predicted)
        for index, some in zip(wanted, found, strict=True):
            yield index, choice_scores(items[index], [s.value for s in some], [s.greedy for s in some])

    def _generated(
        self, llm: LLM, task: Task, items: list[Item], wanted: Sequence[int]
    ) -> Iterator[tuple[int, dict[str, float]]]:
        size = 1 if self.variant.predicted else _BATCH  # several tokens of a step would share what is predicted
        room = llm.context - task.most_tokens
        if room < 1:
            raise InputError(f"{task.name} writes {task.most_tokens} tokens; the context holds {llm.context}")
        for at in range(0, len(wanted), size):
            batch = wanted[at : at + size]
            prompts = [llm.tokenize(items[i].pairs[0][0])[-room:] for i in batch]
            answers = llm.generate(prompts, max_tokens=task.most_tokens, stop=task.stops)
            for index, answer in zip(batch, answers, strict=True):
                yield index, generated_scores(items[index], answer.text)


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str, limit: int) -> Continuation:
    """Tokens of both together, cut at the left to `limit`. Spaces that end the context belong to the continuation.

    Source: TemplateLM._encode_pair of lm-evaluation-harness.
    """
    starts = [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    whole = starts + tokenizer.encode(context + continuation, add_special=False)
    first = len(starts) + len(tokenizer.encode(context, add_special=False))
    if first == 0:
        whole, first = [prefix_token(tokenizer), *whole], 1
    cut = max(len(whole) - limit, 0)
    return Continuation(whole[cut:], max(first - cut, 1))


def prefix_token(tokenizer: Tokenizer) -> int:
    found = [i for i in (tokenizer.bos_id, *sorted(tokenizer.eos_ids)) if i is not None]
    if not found:
        raise InputError("a continuation has no context, and the model has no token that begins a text")
    return found[0]


def _text_windows(tokenizer: Tokenizer, path: Path, size: int) -> list[list[int]]:
    """Whole windows side by side, the first token replaced by BOS where the model uses it, as `hotset eval ppl`."""
    try:
        tokens = tokenizer.encode(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise storage_error(path, "cannot be read", error) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason}); convert it first, for example with iconv") from None
    found = [tokens[at : at + size] for at in range(0, len(tokens) - size + 1, size)]
    if not found:
        raise InputError(f"{path} has {len(tokens)} tokens; a window takes {size}: give a longer text")
    if tokenizer.adds_bos and tokenizer.bos_id is not None:
        found = [[tokenizer.bos_id, *window[1:]] for window in found]
    return found


@contextmanager
def _opened(variant: Variant, store: Path, threads: int | None) -> Iterator[LLM]:
    """The model as the variant runs it. Raises UsageError if nothing would be predicted."""
    from hotset.llm import LLM

    with LLM(
        store, predict="auto" if variant.predicted else "exact", threads=threads, draft=not variant.predicted
    ) as llm:
        if not variant.predicted or (llm.plan is not None and llm.plan.predictor in _GUESSES):
            yield llm
            return
        plan = _with_guesses(variant, llm, threads)
    with TemporaryDirectory() as folder:
        write_plan(plan, Path(folder) / "plan.json")
        with LLM(store, predict="auto", plan=Path(folder) / "plan.json", threads=threads) as llm:
            yield llm


def _with_guesses(variant: Variant, llm: LLM, threads: int | None) -> Plan:
    """Where all neurons fit into memory a plan guesses none, and there would be no loss to see.

    Half of the neurons in memory and none of them always computed, as train-predictor measures.
    """
    from hotset.tools.plan import Wishes, make_plan

    found = [name for name, file in _GUESSES.items() if (llm.store.path / file).exists()]
    if llm.plan is None or not found:
        raise UsageError(f"{variant.name}: {llm.store.path} has nothing that predicts; `hotset train-predictor` first")
    half = len(llm.config.layers) * llm.config.ffn // 2
    settings = {"predictor": found[0], "hot": 0, "cold_slots": half}
    return make_plan(llm.store, llm.descriptor, Wishes(predict="auto", threads=threads), settings)


def _digest(store: Store) -> str:
    """Of what the store computes: its manifest has checksums of all weights, its config the thresholds."""
    names = [MANIFEST, CONFIG, *(name for name in (PREDICTORS_FILE, SKETCH_FILE) if (store.path / name).exists())]
    return hashlib.sha256(b"".join(hashlib.sha256(read_whole(store.path / n)).digest() for n in names)).hexdigest()


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from None
