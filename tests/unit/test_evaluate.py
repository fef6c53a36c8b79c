"""Evaluation: prompts and scores by hand, then whole on a small real model, against logits of one text at a time."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from hotset import LLM
from hotset.errors import FormatError, HotsetError, StorageError, UsageError
from hotset.tools.convert import convert
from hotset.tools.evaluate import EvaluateOptions, encode_pair, evaluate
from hotset.tools.evaluate_report import as_json, markdown
from hotset.tools.evaluate_tasks import TASKS, Item, choice_scores, chosen_tasks, generated_scores, read_items
from hotset.tools.evaluate_variants import Variant, parse_variant
from hotset.tools.resolve import packaged
from hotset.tools.threshold import ThresholdOptions, threshold

ROOT = Path(__file__).parent.parent.parent
TEXT = ROOT / "LICENSE"
ARC = [
    {"query": "Question: Who is Lily?", "choices": ["a girl", "the sun over there"], "gold": 0},
    {"query": "Question: Where is the ball?", "choices": ["in the park", "no", "I like it"], "gold": 1},
    {"query": "Question: What is big?", "choices": ["the tree", "a tree"], "gold": 0},
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOTSET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = ROOT / "tests/golden/data/stories260k"
    return convert(source, tmp_path_factory.mktemp("stories") / "store", quant="f32").dest


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "arc_easy_test.jsonl", ARC)
    wino = {"context_options": ["Tom saw Ann so Tom", "Tom saw Ann so Ann"], "continuation": "ran home.", "gold": 1}
    write(folder / "winogrande_dev.jsonl", [wino] * 2)
    gsm = [{"question": f"What is {i} and {i}?", "answer": f"It is {2 * i}.\n#### {2 * i}"} for i in range(9)]
    write(folder / "gsm8k_test.jsonl", gsm)
    return folder


def write(path: Path, docs: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(doc) + "\n" for doc in docs))


def options(data: Path, *tasks: str, **more: object) -> EvaluateOptions:
    return EvaluateOptions(chosen_tasks(tasks), data, **more)  # type: ignore[arg-type]


# --- by hand --------------------------------------------------------------------------------------------


def test_scores_by_hand() -> None:
    item = Item((("", ""),) * 3, (4, 10, 2), gold=1)
    assert choice_scores(item, [-4.0, -5.0, -9.0], [False] * 3) == {"acc": 0.0, "acc_norm": 1.0}  # -1, -0.5, -4.5
    assert choice_scores(item, [-5.0, -5.0, -9.0], [False] * 3)["acc"] == 0.0  # of equals the first
    assert choice_scores(Item((("a", " b"),)), [-1.0], [True])["acc"] == 1.0
    number = Item((("", ""),), answer="1,234")
    for text, right in (("so\n#### 1234", 1), ("#### $1234", 0), ("#### 1,234.", 1), ("1234", 0), ("#### 12", 0)):
        assert generated_scores(number, text) == {"exact_match": float(right)}


def test_prompts_are_the_harness_s() -> None:
    def first(task: str, doc: dict[str, object]) -> Item:
        return TASKS[task].item(doc)

    arc = first("arc_easy", ARC[0])
    assert arc.pairs[0] == ("Question: Who is Lily?\nAnswer:", " a girl")
    assert arc.lengths == (6, 18)
    piqa = first("piqa", {"query": "Question: dresser\n", "choices": ["a", "b"], "gold": 1})
    assert piqa.pairs[1] == ("Question: dresser\nAnswer:", " b")
    hella = first("hellaswag", {"query": "High jump: A boy runs. the boy", "choices": ["a"] * 4, "gold": 2})
    assert hella.pairs[3] == ("High jump: A boy runs. The boy", " a")
    wino = first("winogrande", {"context_options": ["so Tom", "so Ann"], "continuation": "ran.", "gold": 0})
    assert wino.pairs == (("so Tom", " ran."), ("so Ann", " ran."))
    boolq = {"query": "Passage: P.\nQuestion: is it?", "choices": ["no", "yes"], "gold": 0}
    assert first("boolq", boolq).pairs[1] == ("P.\nQuestion: is it?\nAnswer:", " yes")
    mmlu = first("mmlu", {"subject": "human_aging", "query": " Q? ", "choices": ["1", "2", "3", "4"], "gold": 3})
    assert mmlu.pairs[3] == (
        "The following are multiple choice questions (with answers) about human aging.\n\n"
        "Q?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:",
        " D",
    )
    assert first("lambada_openai", {"context": "a b", "continuation": "c"}).pairs == (("a b", " c"),)


def test_examples_come_from_the_end_and_are_not_scored(data: Path) -> None:
    items = read_items(TASKS["gsm8k"], data / "gsm8k_test.jsonl", fewshot=2)
    assert len(items) == 7
    assert items[0].pairs[0][0] == (
        "Question: What is 7 and 7?\nAnswer: It is 14.\n#### 14\n\n"
        "Question: What is 8 and 8?\nAnswer: It is 16.\n#### 16\n\nQuestion: What is 0 and 0?\nAnswer:"
    )
    assert (items[3].answer, len(read_items(TASKS["gsm8k"], data / "gsm8k_test.jsonl", 0))) == ("6", 9)


# --- on a model -------------------------------------------------------------------------------------------


def log_likelihood(llm: LLM, context: str, continuation: str) -> float:
    """The plain way: both texts together, one log-softmax at a time."""
    whole = llm.tokenizer.encode(context + continuation)
    first = len(llm.tokenizer.encode(context))
    logits = llm.logits(whole).astype(np.float64)
    logp = (
        logits
        - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
        - logits.max(1, keepdims=True)
    )
    return float(sum(logp[i - 1, whole[i]] for i in range(first, len(whole))))


def test_tasks_equal_one_text_at_a_time(store: Path, data: Path) -> None:
    (result,) = evaluate([Variant("stories", str(store))], options(data, "arc_easy", "winogrande"))
    with LLM(store) as llm:
        for doc, scores in zip(ARC, result.scores["arc_easy"], strict=True):
            values = [log_likelihood(llm, f"{doc['query']}\nAnswer:", f" {c}") for c in doc["choices"]]  # type: ignore[attr-defined]
            normed = [v / len(c) for v, c in zip(values, doc["choices"], strict=True)]  # type: ignore[call-overload]
            assert scores == {
                "acc": float(np.argmax(values) == doc["gold"]),
                "acc_norm": float(np.argmax(normed) == doc["gold"]),
            }
        pair = [log_likelihood(llm, f"Tom saw Ann so {who}", " ran home.") for who in ("Tom", "Ann")]
        assert (
            result.scores["winogrande"] == [{"acc": float(pair[1] > pair[0]), "acc_norm": float(pair[1] > pair[0])}] * 2
        )


def test_perplexity_equals_eval_ppl_and_counts_zeros(store: Path, tmp_path: Path) -> None:
    found = threshold(store, tmp_path / "sparse", [TEXT], ThresholdOptions(zeros=0.5, tokens=1500, measure=100))
    variants = [Variant("dense", str(store)), Variant("sparse", str(found.path))]
    results = evaluate(variants, EvaluateOptions(text=TEXT, window=128, windows=6))
    report = as_json(results)
    for result, shown in zip(results, report["variants"], strict=True):
        with LLM(result.path, context=256) as llm:
            whole = llm.perplexity(TEXT.read_text(), window=128, most_windows=6)
        assert shown["perplexity"]["value"] == pytest.approx(whole.value, rel=1e-4)
        assert shown["perplexity"]["tokens"] == whole.tokens
    assert report["variants"][0]["zeros"] < 0.01
    assert report["variants"][1]["zeros"] == pytest.approx(0.5, abs=0.05)
    change = report["variants"][1]["perplexity"]
    values = [v["perplexity"]["value"] for v in report["variants"]]
    assert change["change"] == pytest.approx(values[1] / values[0] - 1)
    assert 0 < change["change_error"] < change["error"] / change["value"]  # the same windows: paired


def test_predicted_is_not_exact_where_all_neurons_fit_into_memory(tmp_path: Path) -> None:
    """The plan of so small a model would compute every gate; what is reported must be what predictors lose."""
    (tmp_path / "story.txt").write_text(
        "Once upon a time there was a cat. She saw a big dog and ran to the tree. " * 20
    )
    stories = str(packaged("stories-13m"))
    variants = [Variant("exact", stories), Variant("predicted", stories, predicted=True)]
    exact, predicted = evaluate(variants, EvaluateOptions(text=tmp_path / "story.txt", window=128, windows=2))
    assert exact.zeros is not None and predicted.zeros is not None
    assert exact.zeros < predicted.zeros < exact.zeros + 0.05
    assert predicted.surprise != exact.surprise
    assert np.mean(predicted.surprise) == pytest.approx(np.mean(exact.surprise), rel=0.02)


def test_windows_of_another_tokenizer_are_not_compared(store: Path, tmp_path: Path) -> None:
    """There are more of them or fewer, or they are of other text."""
    (tmp_path / "story.txt").write_text("Once upon a time there was a cat. She saw a big dog and ran home. " * 12)
    variants = [Variant("a", str(store)), Variant("b", str(packaged("stories-13m"))), Variant("c", str(store))]
    for most in (None, 2):
        results = evaluate(variants, EvaluateOptions(text=tmp_path / "story.txt", window=64, windows=most))
        assert (len(results[0].surprise) == len(results[1].surprise)) == (most == 2)
        report = json.loads(json.dumps(as_json(results), allow_nan=False))
        one, other, same = (v["perplexity"] for v in report["variants"])
        assert (other["change"], other["change_error"]) == (None, None) and other["value"] > 1 and other["error"] > 0
        assert (one["change"], same["change"], same["change_error"]) == (0, 0, 0)
        assert "| its change |  | other tokens | +0.0% ± 0.0% |" in markdown(report)


def test_generation_is_scored(store: Path, data: Path) -> None:
    (result,) = evaluate([Variant("stories", str(store))], options(data, "gsm8k", fewshot=1, limit=3))
    assert result.scores["gsm8k"] == [{"exact_match": 0.0}] * 3


def test_a_stopped_run_goes_on(store: Path, data: Path, own_cache: Path) -> None:
    whole = evaluate([Variant("stories", str(store))], options(data, "arc_easy"))[0].scores
    (journal,) = (own_cache / "evaluations").iterdir()
    lines = journal.read_text().splitlines()
    assert len(lines) == len(ARC)
    first = {"item": 0, "acc": 7.0, "acc_norm": 7.0}  # told apart from what would be found
    journal.write_text(json.dumps(first) + "\n" + lines[1][:10])
    resumed = evaluate([Variant("stories", str(store))], options(data, "arc_easy"))[0].scores
    assert resumed["arc_easy"] == [{"acc": 7.0, "acc_norm": 7.0}, *whole["arc_easy"][1:]]
    fresh = evaluate([Variant("stories", str(store))], options(data, "arc_easy", fresh=True))[0].scores
    assert fresh == whole


def test_standard_errors_are_those_of_means(store: Path, data: Path) -> None:
    results = evaluate([Variant("a", str(store)), Variant("b", str(store))], options(data, "arc_easy"))
    results[1].scores["arc_easy"] = [{"acc": x, "acc_norm": x} for x in (1.0, 0.0, 1.0)]
    results[0].scores["arc_easy"] = [{"acc": x, "acc_norm": x} for x in (0.0, 0.0, 1.0)]
    found = as_json(results)["variants"][1]["tasks"]["arc_easy"]["acc"]
    assert found["value"] == pytest.approx(2 / 3)
    assert found["error"] == pytest.approx(math.sqrt((1 / 9 + 4 / 9 + 1 / 9) / 2 / 3))
    assert (found["change"], found["change_error"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert "| arc_easy acc | 33.3 ± 33.3 | 66.7 ± 33.3 |" in markdown(as_json(results))


def test_pairs_are_cut_at_the_left(store: Path) -> None:
    with LLM(store) as llm:
        whole = encode_pair(llm.tokenizer, "Once upon a time there was ", "a girl", 512)
        cut = encode_pair(llm.tokenizer, "Once upon a time there was ", "a girl", 6)
        assert cut.tokens == whole.tokens[-6:]
        assert cut.tokens[cut.first :] == whole.tokens[whole.first :]
        assert llm.tokenizer.decode(whole.tokens[whole.first :]).strip() == "a girl"


@pytest.mark.parametrize(
    ("text", "variant"),
    [
        ("a/b", Variant("b", "a/b")),
        ("mine=a/b@predicted", Variant("mine", "a/b", predicted=True)),
        ("a/b@q4_0", Variant("b q4_0", "a/b", "q4_0")),
    ],
)
def test_variants(text: str, variant: Variant) -> None:
    assert parse_variant(text) == variant


def test_bad_input(store: Path, data: Path, tmp_path: Path) -> None:
    variant = Variant("stories", str(store))
    cases: list[tuple[type[HotsetError], str, object]] = [
        (UsageError, "did you mean arc_easy", lambda: chosen_tasks(["arc_eesy"])),
        (UsageError, "after @ comes predicted", lambda: parse_variant("a@fast")),
        (UsageError, "nothing to evaluate", lambda: evaluate([variant], EvaluateOptions())),
        (UsageError, "need their data", lambda: evaluate([variant], EvaluateOptions(chosen_tasks(["piqa"])))),
        (StorageError, "no data of piqa", lambda: evaluate([variant], options(data, "piqa"))),
        (UsageError, "limit is 0", lambda: evaluate([variant], options(data, "arc_easy", limit=0))),
        (UsageError, "made without examples", lambda: evaluate([variant], options(data, "arc_easy", fewshot=1))),
        (UsageError, "leave nothing", lambda: evaluate([variant], options(data, "gsm8k", fewshot=9))),
        (UsageError, "same name", lambda: evaluate([variant, variant], options(data, "arc_easy"))),
        (
            UsageError,
            "nothing that predicts",
            lambda: evaluate([Variant("p", str(store), predicted=True)], options(data, "arc_easy")),
        ),
    ]
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()  # type: ignore[operator]
    write(data / "arc_easy_test.jsonl", [{"query": "Question"}])
    with pytest.raises(FormatError, match=r"not what arc_easy reads: KeyError 'choices'"):
        evaluate([variant], options(data, "arc_easy"))
    (tmp_path / "short").write_text("short")
    with pytest.raises(HotsetError, match="give a longer text"):
        evaluate([variant], EvaluateOptions(text=tmp_path / "short"))
