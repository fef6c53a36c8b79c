"""`hotset evaluate`: perplexity and tasks for several variants of a model, resumable item by item."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hotset.engine.likelihood import Continuation, likelihoods
from hotset.errors import InputError, UsageError
from hotset.formats.files import Json, sha256, storage_error
from hotset.formats.progress import Progress, silent
from hotset.tokenizer import Tokenizer
from hotset.tools.evaluate_journal import Journal
from hotset.tools.evaluate_tasks import Item, Task, choice_scores, find_data, generated_scores, read_items
from hotset.tools.evaluate_variants import Variant, basis, check_variants, opened
from hotset.tools.resolve import cache_dir, resolve_model
from hotset.tools.threshold_bench import count_active

if TYPE_CHECKING:
    from hotset.llm import LLM

_BATCH = 8  # texts generated at once


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
    windows: str = ""  # SHA-256 of the windows' tokens: surprises at other tokens are not comparable
    window_tokens: int = 0  # scored in each window
    zeros: float | None = None  # share of FFN products at 0 in the scored tokens
    scores: dict[str, list[dict[str, float]]] = field(default_factory=dict)  # by task and item


def evaluate(variants: Sequence[Variant], options: EvaluateOptions, progress: Progress = silent) -> list[VariantResult]:
    """Evaluates each variant, one in memory at a time. What earlier runs found is taken from the cache.

    progress: called with items done and in all, and what of.
    Raises: UsageError, StorageError (no data), FormatError, and what loading raises.
    """
    options.check()
    check_variants(variants)
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
        self._basis: list[object] = []

    def run(self, tasks: Sequence[tuple[Task, Path, list[Item]]]) -> VariantResult:
        variant = self.variant
        store = resolve_model(variant.model, quant=variant.quant, progress=self.progress)
        with opened(variant, store, self.options.threads) as llm:
            self._basis = basis(llm, variant.predicted)
            result = VariantResult(variant, str(store), llm.store.info.get("quant", {}))
            if self.options.text is not None:
                self._perplexity(llm, self.options.text, result)
            for task, path, items in tasks:
                result.scores[task.name] = self._task(llm, task, path, items)
        return result

    def _journal(self, *key: object) -> Journal:
        return Journal(cache_dir() / "evaluations", [*self._basis, *key], fresh=self.options.fresh)

    def _perplexity(self, llm: LLM, path: Path, result: VariantResult) -> None:
        size = self.options.window
        if size > llm.context:
            raise UsageError(f"window is {size} tokens; wanted at most {llm.context}, the context")
        texts = _text_windows(llm.tokenizer, path, size)[: self.options.windows]
        found = []
        with self._journal("perplexity", size, sha256(path)) as journal:
            for index, tokens in enumerate(texts):
                found.append(journal.get(index) or journal.put(index, self._window(llm, tokens)))
                self.progress(index + 1, len(texts), f"{self.variant.name}: windows")
        result.surprise = [f["surprise"] for f in found]
        result.windows = hashlib.sha256(np.array(texts, np.int32).tobytes()).hexdigest()
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
        with self._journal(task.name, shots, sha256(path)) as journal:
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
