"""Tasks of `hotset evaluate`: what a model reads and which answer counts, as in lm-evaluation-harness 0.4.

Each task reads one file of JSON lines. Multiple choice: the answer whose log-likelihood is largest (acc), or largest
for each character of it (acc_norm). Source of prompts and metrics: github.com/EleutherAI/lm-evaluation-harness.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotset.errors import FormatError, HostError, StorageError, UsageError
from hotset.formats.files import Json, parse_json, quoted, read_whole

Doc = Json


@dataclass(frozen=True, slots=True)
class Item:
    """What of one document is scored: log p of continuations after contexts, or a generated text."""

    pairs: tuple[tuple[str, str], ...]  # (context, continuation); one only, and empty continuation: generated
    lengths: tuple[int, ...] = ()  # of the choices, in characters
    gold: int = 0
    answer: str = ""  # of what is generated


@dataclass(frozen=True, slots=True)
class Task:
    name: str
    files: tuple[str, ...]  # the first that is there
    item: Callable[[Doc], Item]
    metrics: tuple[str, ...]  # the first is the one that tables show
    shots: Callable[[Doc], str] | None = None  # a document with its answer, as an example before others
    fewshot: int = 0
    stops: tuple[str, ...] = ()
    most_tokens: int = 0  # of what is generated


def _choices(context: str, choices: Sequence[str], gold: int) -> Item:
    return Item(tuple((context, f" {c}") for c in choices), tuple(len(c) for c in choices), gold)


def _question(doc: Doc) -> Item:
    return _choices(doc["query"].rstrip("\n") + "\nAnswer:", doc["choices"], doc["gold"])


def _plain(doc: Doc) -> Item:
    return _choices(doc["query"], doc["choices"], doc["gold"])


def _hellaswag(doc: Doc) -> Item:
    """The file has the last sentence, which the choices continue, in small letters; the harness capitalizes it."""
    query = re.sub(r"(?<=[.!?:] )([a-z])(?=[^.!?]*$)", lambda m: m[0].upper(), doc["query"])
    return _choices(query, doc["choices"], doc["gold"])


def _winogrande(doc: Doc) -> Item:
    """The sentence's end is scored after each beginning, of which no length is the answer's."""
    pairs = tuple((option, f" {doc['continuation']}") for option in doc["context_options"])
    return Item(pairs, (1,) * len(pairs), doc["gold"])


def _boolq(doc: Doc) -> Item:
    return _choices(doc["query"].removeprefix("Passage: ") + "\nAnswer:", doc["choices"], doc["gold"])


def _mmlu(doc: Doc) -> Item:
    subject = doc["subject"].replace("_", " ")
    lines = [f"{letter}. {choice}" for letter, choice in zip("ABCD", doc["choices"], strict=True)]
    head = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
    return _choices("\n".join([head + doc["query"].strip(), *lines, "Answer:"]), "ABCD", doc["gold"])


def _lambada(doc: Doc) -> Item:
    return Item(((doc["context"], " " + doc["continuation"].strip()),))


def _gsm8k(doc: Doc) -> Item:
    return Item(((f"Question: {doc['question']}\nAnswer:", ""),), answer=doc["answer"].rpartition("#### ")[2])


def _gsm8k_shot(doc: Doc) -> str:
    return f"Question: {doc['question']}\nAnswer: {doc['answer']}\n\n"


_BOTH = ("acc_norm", "acc")
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("hellaswag", ("hellaswag_val_full.jsonl.zst", "hellaswag_val_1000.jsonl"), _hellaswag, _BOTH),
        Task("arc_easy", ("arc_easy_test.jsonl",), _question, ("acc", "acc_norm")),
        Task("arc_challenge", ("arc_challenge_test.jsonl",), _question, _BOTH),
        Task("piqa", ("piqa_val.jsonl",), _question, ("acc", "acc_norm")),
        Task("winogrande", ("winogrande_dev.jsonl",), _winogrande, ("acc",)),
        Task("openbookqa", ("openbookqa_test.jsonl",), _plain, _BOTH),
        Task("boolq", ("boolq_val.jsonl.zst",), _boolq, ("acc",)),
        Task("mmlu", ("mmlu_test_subset.jsonl.zst",), _mmlu, ("acc",)),
        Task("lambada_openai", ("lambada_openai_test.jsonl.zst",), _lambada, ("acc",)),
        Task(
            "gsm8k", ("gsm8k_test.jsonl",), _gsm8k, ("exact_match",), _gsm8k_shot, 5,
            ("Question:", "</s>", "<|im_end|>"), 256,
        ),
    )
}  # fmt: skip
_NUMBER = re.compile(r"#### (\-?[0-9\.\,]+)")


def chosen_tasks(names: Sequence[str]) -> list[Task]:
    """Raises UsageError for a name that is none."""
    for name in names:
        if name not in TASKS:
            from difflib import get_close_matches

            close = get_close_matches(name, TASKS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(TASKS)}"
            raise UsageError(f"there is no task {quoted(name, 40)}; {hint}")
    return [TASKS[name] for name in dict.fromkeys(names)]


def find_data(task: Task, folder: Path) -> Path:
    """The task's file. Raises StorageError naming what is missing."""
    for name in task.files:
        for path in (folder / name, (folder / name).with_suffix("") if name.endswith(".zst") else folder / name):
            if path.is_file():
                return path
    raise StorageError(f"{folder} has no data of {task.name}: wanted {' or '.join(task.files)}; see --data")


def read_docs(path: Path) -> list[Doc]:
    """All documents of a file of JSON lines, plain or packed by zstd. Raises StorageError, FormatError, HostError."""
    data = _unpacked(path) if path.suffix == ".zst" else read_whole(path)
    return [parse_json(line, f"{path}, line {i}") for i, line in enumerate(data.split(b"\n"), 1) if line.strip()]


def read_items(task: Task, path: Path, fewshot: int | None = None, limit: int | None = None) -> list[Item]:
    """The task's items. Examples come from the end of the same file, and are not among the items.

    Raises: FormatError for a document that lacks something, UsageError for more examples than there are.
    """
    docs = read_docs(path)
    wanted = task.fewshot if fewshot is None else fewshot
    if wanted and task.shots is None:
        raise UsageError(f"{task.name} is made without examples; --fewshot {wanted} is for gsm8k")
    if wanted >= len(docs):
        raise UsageError(f"{path} has {len(docs)} documents; {wanted} examples leave nothing to score")
    try:
        shots = "".join(task.shots(doc) for doc in docs[len(docs) - wanted :]) if task.shots else ""
        items = [task.item(doc) for doc in docs[: len(docs) - wanted][:limit]]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise FormatError(f"{path} is not what {task.name} reads: {type(error).__name__} {error}") from None
    if not items:
        raise FormatError(f"{path} has no documents")
    if not shots:
        return items
    return [Item(tuple((shots + c, t) for c, t in i.pairs), i.lengths, i.gold, i.answer) for i in items]


def choice_scores(item: Item, values: Sequence[float], greedy: Sequence[bool]) -> dict[str, float]:
    """acc and acc_norm of one item from the log-likelihoods of its continuations; the first of equals is taken."""
    if len(item.pairs) == 1:
        return {"acc": float(greedy[0])}
    best = max(range(len(values)), key=lambda i: (values[i], -i))
    normed = max(range(len(values)), key=lambda i: (values[i] / item.lengths[i], -i))
    return {"acc": float(best == item.gold), "acc_norm": float(normed == item.gold)}


def generated_scores(item: Item, text: str) -> dict[str, float]:
    """exact_match of the number after ####, commas, dollar signs and a last full stop aside (strict-match)."""
    found = _NUMBER.search(text)
    plain = [re.sub(r",|\$|\.$", "", t).lower().strip() for t in (found[1] if found else "[invalid]", item.answer)]
    return {"exact_match": float(plain[0] == plain[1])}


def _unpacked(path: Path) -> bytes:
    try:
        done = subprocess.run(["zstd", "-dcq", str(path)], capture_output=True, check=True)
    except FileNotFoundError:
        raise HostError(f"{path} is packed and the program zstd is not installed; unpack it, or install zstd") from None
    except subprocess.CalledProcessError as error:
        raise FormatError(f"{path} cannot be unpacked: {error.stderr.decode(errors='replace').strip()[:200]}") from None
    return done.stdout


def as_key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
