"""Exact mode with drafts on a real, if tiny, packed model: every answer is the one without drafts, to the last bit."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from draft_lengths import RandomLength

from bench.sparse_child import decode_drafted
from bench.sparse_quality import quality
from hotset import LLM, Completion, _core
from hotset.cli.main import main
from hotset.engine import Sample
from hotset.errors import StorageError
from hotset.formats.predictors import PREDICTORS_FILE
from hotset.formats.predictors_file import write_predictors
from hotset.formats.safetensors import read_header
from hotset.formats.store import Store, open_store
from hotset.formats.thresholds import Thresholds
from hotset.models import resolve
from hotset.planner.drafting import verification, with_drafts
from hotset.planner.model_cost import Demand, forecast
from hotset.planner.placement import Profiled
from hotset.planner.plan_file import Plan, write_plan
from hotset.planner.rates import Rates
from hotset.tools.convert import convert
from hotset.tools.pack import pack
from hotset.tools.plan import Wishes, make_plan
from hotset.tools.plan_sizes import neuron_sizes
from hotset.tools.run_stats import lines

ROOT = Path(__file__).parents[2]
FACTS = {"relu": False, "ahead": False, "active": 0.5, "energy": 0.01, "perplexity_change": 0.001}
PROMPTS = ["Once upon a time", "The dog", "Lily and Tom went to the park. They", "One day"]
# The map is the gate itself, so the limit alone says how good drafts are: all active neurons, few, none. The rough one
# is also given the wrong input, that of the layer before.
LIMITS = {"good": 1e-6, "rough": 0.3, "useless": 1e9}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOTSET_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    """stories260K with ReLU in place of SiLU, packed, by quality of its predictors."""
    folder = tmp_path_factory.mktemp("relu")
    shutil.copytree(ROOT / "tests/golden/data/stories260k", folder / "source")
    config = json.loads((folder / "source/config.json").read_text())
    (folder / "source/config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    convert(folder / "source", folder / "dense", quant="q8_0")
    dense, made = open_store(folder / "dense"), {}
    for name, limit in LIMITS.items():
        store = open_store(pack(dense.path, folder / name, fmt="q8_0").dest)
        assert store.neurons is not None
        hidden, layers = store.neurons.hidden, store.neurons.layers
        maps = [(np.eye(hidden, dtype=np.float32), gate) for gate in gates(dense)]
        table = np.array([[limit, 2 * limit]] * layers, np.float32)
        shares = np.full((layers, 2), 0.75, np.float32)
        tables = Thresholds(np.array([0.01, 0.1], np.float32), table, shares, shares)
        write_predictors(
            store.path, store.neurons, maps, tables, [(0.01, 0.001)], FACTS | {"ahead": name == "rough"}, "f32"
        )
        made[name] = store
    return made


def gates(dense: Store) -> Iterator[np.ndarray]:
    for spec in resolve(dense.config).tensors:
        if spec.role == "gate":
            e = dense.entries[spec.name]
            yield _core.decode(e.fmt, np.fromfile(e.path, np.uint8, e.bytes, offset=e.offset), e.rows, e.cols)


def planned(store: Store, **settings: Any) -> Plan:
    given = {"predictor": "low-rank", "hot": 20, "cold_slots": 300, "context": 160} | settings
    return make_plan(store, resolve(store.config), Wishes(memory=1 << 30), given)


def load(store: Store, tmp_path: Path, draft: bool = True, seed: int | None = 0, **settings: Any) -> LLM:
    """seed None: lengths as the clock says."""
    write_plan(planned(store, **settings), tmp_path / "plan.json")
    llm = LLM(store.path, plan=tmp_path / "plan.json", draft=draft)
    assert llm._engine is not None and (llm._engine.speculator is not None) == draft
    if llm._engine.speculator is not None and seed is not None:
        llm._engine.speculator.length = RandomLength(seed, 12)
    return llm


def untimed(completion: Completion) -> list[Sample]:
    return list(completion.samples)


@pytest.mark.parametrize("quality", ["good", "rough"])
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0},
        {"temperature": 0, "repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.2},
        {"temperature": 0.8, "top_p": 0.95, "seed": 1, "logprobs": 3},
        {"temperature": 1.0, "top_k": 20, "min_p": 0.02, "seed": 2, "repetition_penalty": 1.2, "n": 3},
        {"temperature": 0, "logit_bias": {410: 3.0, 300: -float("inf")}, "logprobs": 2},
        {"temperature": 0.6, "seed": 3, "stop": ["she", "mom", " the b"], "ignore_eos": True},
        {"temperature": 0, "max_tokens": 1},
        {"temperature": 0, "max_tokens": None, "ignore_eos": True},
    ],
    ids=str,
)
def test_every_answer_is_the_one_without_drafts(
    stores: dict[str, Store], tmp_path: Path, quality: str, options: dict[str, Any]
) -> None:
    options = {"max_tokens": 60} | options
    with load(stores[quality], tmp_path, draft=False) as llm:
        want = [untimed(llm.generate(prompt, **options)) for prompt in PROMPTS[:2]]
        assert llm.stats["neuron_layers"] == 0, "every step computes every neuron"
    with load(stores[quality], tmp_path) as llm:
        got = [llm.generate(prompt, **options) for prompt in PROMPTS[:2]]
        assert [untimed(completion) for completion in got] == want
        stats = got[0].stats
        if options["max_tokens"] != 1:
            assert stats.drafted > 0 and llm.stats["neuron_layers"] > 0
            assert stats.acceptance > 0.6 if quality == "good" else 0 < stats.accepted < stats.drafted
        with llm.stream(PROMPTS[0], **options) as stream:
            assert "".join(chunk.text for chunk in stream if chunk.index == 0) == got[0].text


def test_drafts_that_never_hold_cost_time_alone(stores: dict[str, Store], tmp_path: Path) -> None:
    with load(stores["useless"], tmp_path, draft=False) as plain, load(stores["useless"], tmp_path) as llm:
        want, got = (model.generate(PROMPTS[0], max_tokens=40, temperature=0) for model in (plain, llm))
    assert untimed(got) == untimed(want)
    assert got.stats.drafted > 20 and got.stats.acceptance < 0.1


@pytest.mark.parametrize("quality", ["good", "rough"])
def test_several_requests_at_once(stores: dict[str, Store], tmp_path: Path, quality: str) -> None:
    options = {"max_tokens": 50, "temperature": 0.7, "seed": 4, "n": 2}
    with load(stores[quality], tmp_path, draft=False) as llm:
        want = [untimed(llm.generate(prompt, **options)) for prompt in PROMPTS]
    with load(stores[quality], tmp_path) as llm:
        assert [untimed(c) for c in llm.generate(PROMPTS, **options)] == want
        first = llm.stream(PROMPTS[0], **options)
        head = [next(first) for _ in range(3)]
        second = llm.generate(PROMPTS[1], **options)  # comes while the first is under way
        rest = list(first)
        assert untimed(second) == want[1]
        assert [c.token for c in [*head, *rest] if c.index == 1] == list(want[0][1].tokens)


def test_a_conversation_goes_on_from_kept_pages(stores: dict[str, Store], tmp_path: Path) -> None:
    turns = {}
    for draft in (False, True):
        with load(stores["rough"], tmp_path, draft) as llm:
            first = llm.generate(PROMPTS[2], max_tokens=40, temperature=0, stop=["."])
            again = llm.generate(PROMPTS[2] + first.text + " Then", max_tokens=40, temperature=0)
            assert again.stats.cached_tokens > 8
            turns[draft] = [untimed(first), untimed(again), llm.perplexity(PROMPTS[2] * 5, window=32, stride=4)]
    assert turns[True] == turns[False]


@pytest.mark.parametrize("policy", ["clock", "lru", "lfu"])
def test_what_is_in_memory_changes_no_token(stores: dict[str, Store], tmp_path: Path, policy: str) -> None:
    found = []
    for hot, slots in [(0, 200), (50, 100), (172, 0)]:
        with load(stores["rough"], tmp_path, seed=None, hot=hot, cold_slots=slots, policy=policy) as llm:
            found.append(untimed(llm.generate(PROMPTS[0], max_tokens=120, temperature=0, ignore_eos=True)))
    assert found[0] == found[1] == found[2]


def test_ctrl_c_at_any_moment_leaves_the_model_usable(stores: dict[str, Store], tmp_path: Path) -> None:
    options = {"max_tokens": 80, "temperature": 0.8, "seed": 5, "ignore_eos": True}
    with load(stores["rough"], tmp_path, draft=False) as llm:
        want = untimed(llm.generate(PROMPTS[0], **options))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with load(stores["rough"], tmp_path) as llm:
            for tenths_ms in range(5, 300, 25):
                signal.setitimer(signal.ITIMER_REAL, tenths_ms * 1e-4)
                try:
                    found = llm.generate(PROMPTS[0], **options)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except KeyboardInterrupt:
                    continue
                assert untimed(found) == want
            assert untimed(llm.generate(PROMPTS[0], **options)) == want
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_stats_tell_of_drafts(stores: dict[str, Store], tmp_path: Path) -> None:
    with load(stores["good"], tmp_path) as llm:
        stats = llm.run_stats(llm.generate(PROMPTS[0], max_tokens=60, temperature=0, ignore_eos=True))
    with load(stores["good"], tmp_path, draft=False) as llm:
        assert llm.run_stats(llm.generate(PROMPTS[0], max_tokens=4)).mode == "exact"
    drafts = stats.drafts
    assert stats.mode == "exact, drafted"
    assert drafts is not None and drafts.passes + drafts.accepted == 59
    assert drafts.tokens_per_pass == pytest.approx(59 / drafts.passes) and drafts.acceptance > 0.6
    assert f"{drafts.accepted} of {drafts.drafted} tokens accepted" in "\n".join(lines(stats))


def test_the_command_line_drafts_unless_told_not_to(
    stores: dict[str, Store], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_plan(planned(stores["good"]), plan := tmp_path / "plan.json")
    given = [
        "run",
        str(stores["good"].path),
        PROMPTS[0],
        "--plan",
        str(plan),
        "--temperature",
        "0",
        "-n",
        "60",
        "--stats",
    ]
    shown = {}
    for flag in ([], ["--no-draft"]):
        assert main([*given, "--stats", "--ignore-eos", *flag]) == 0
        shown[bool(flag)] = capsys.readouterr()
    assert shown[False].out == shown[True].out
    assert "tokens accepted" in shown[False].err and "tokens accepted" not in shown[True].err


def test_the_benchmark_counts_rounds(stores: dict[str, Store], tmp_path: Path) -> None:
    with load(stores["rough"], tmp_path) as llm:
        prompt = llm.tokenize(PROMPTS[0])
        want = llm.generate(prompt, max_tokens=41, temperature=0, ignore_eos=True).tokens[1:]
        llm.clear()
        before = llm.core.sparse_stats["candidates"]
        found, stats = decode_drafted(llm, prompt, 40, seconds=60)
        assert tuple(found.tokens) == want and len(found.seconds) == 40 == stats.passes + stats.accepted
        assert len(set(found.seconds)) == stats.passes, "the tokens of a round share its time"
        assert sum(found.counts["candidates"]) == pytest.approx(llm.core.sparse_stats["candidates"] - before)


def test_damaged_predictors_are_told_when_they_are_loaded(stores: dict[str, Store], tmp_path: Path) -> None:
    folder = shutil.copytree(stores["good"].path, tmp_path / "store")
    store, path = open_store(folder), folder / PREDICTORS_FILE
    entry = read_header(path).entries["hotset.layers.3.predictor.up"]
    with path.open("r+b") as file:
        file.seek(entry.offset + 1000)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 4]))
    with pytest.raises(StorageError, match=r"layers\.3\.predictor\.up .* again with `hotset train-predictor`"):
        load(store, tmp_path)
    assert main(["inspect", str(folder), "--verify"]) == StorageError.exit_code


# --- plans -----------------------------------------------------------------------------------------------------------
def test_plans_draft_where_the_budget_is_short_and_only_then(stores: dict[str, Store]) -> None:
    store = stores["good"]
    model = resolve(store.config)
    chosen = planned(store)
    assert chosen.drafts and chosen.predictor == "low-rank"
    whole = make_plan(store, model, Wishes(memory=1 << 30))
    assert sum(whole.hot) == 5 * 172 and not whole.drafts
    auto = make_plan(store, model, Wishes(memory=1 << 30, predict="auto"), {"predictor": "low-rank"})
    assert auto.predictor == "low-rank" and not auto.drafts
    with LLM(store.path, memory=1 << 30) as llm:
        assert llm.plan is not None and not llm.plan.drafts


def test_drafts_lose_what_makes_them_fastest(
    stores: dict[str, Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss that is given is kept; without one it is neither the least nor the most, where both are slower."""
    folder = shutil.copytree(stores["good"].path, tmp_path / "copy")
    store = open_store(folder)
    assert store.neurons is not None
    hidden, layers = store.neurons.hidden, store.neurons.layers
    losses = np.array([0.001, 0.01, 0.1, 0.3], np.float32)
    shares = np.array([[0.9, 0.3, 0.2, 0.1]] * layers, np.float32)
    tables = Thresholds(losses, np.array([[0.1, 0.2, 0.3, 0.4]] * layers, np.float32), shares, shares)
    maps = [(np.eye(hidden, dtype=np.float32), np.ones((store.neurons.ffn, hidden), np.float32))] * layers
    measured = [(0.001, 0.001), (0.01, 0.01), (0.1, 0.1)]
    facts = FACTS | {"fetch": 1.0}
    drafts = [(0.001, 0.97), (0.01, 0.94), (0.1, 0.1)]
    write_predictors(folder, store.neurons, maps, tables, measured, facts, "f32", drafts)
    rates = Rates(2, 1e7, {4096: 2e3}, {4096: 64}, {4096: 3.0}, {2: 80e9}, {2: 600.0})  # so slow that drafts pay
    monkeypatch.setattr("hotset.tools.plan.host_rates", lambda _: rates)
    often = np.tile(np.linspace(0.4, 0, store.neurons.ffn, dtype=np.float32), (layers, 1))
    known = Profiled(np.stack([1 - (1 - often) ** n for n in range(1, 9)]), {})  # of tokens that share nothing
    monkeypatch.setattr("hotset.tools.plan.profiled", lambda *_: known)
    given = {"predictor": "low-rank", "hot": 20, "cold_slots": 300}

    def speed(loss: float | None) -> tuple[float, float | None]:
        plan = make_plan(store, resolve(store.config), Wishes(memory=1 << 30, loss=loss), given)
        assert plan.drafts and plan.forecast is not None
        return plan.forecast.tokens_per_s, plan.energy

    best, chosen = speed(None)
    assert chosen is not None and 0.002 < chosen < 0.1
    for loss in (0.001, 0.1):
        there, kept = speed(loss)
        assert kept == pytest.approx(loss, rel=1e-3) and there < 0.95 * best


def test_predictors_that_are_damaged_hurt_no_exact_plan(stores: dict[str, Store], tmp_path: Path) -> None:
    folder = shutil.copytree(stores["good"].path, tmp_path / "copy")
    (folder / PREDICTORS_FILE).write_bytes(b"damaged")
    store = open_store(folder)
    plan = make_plan(store, resolve(store.config), Wishes(memory=1 << 30))
    assert not plan.drafts and "the plan does without" in " ".join(plan.notes)


def test_the_forecast_of_drafts_follows_the_costs(stores: dict[str, Store]) -> None:
    store = stores["good"]
    sizes = replace(neuron_sizes(store, resolve(store.config), None), low_rank_bytes=1 << 20)
    rates = Rates(2, 4e9, {4096: 90e3}, {4096: 64}, {4096: 3.0}, {2: 80e9}, {2: 600.0})
    draft = forecast(sizes, "low-rank", Demand(200, 150, 100, 5, 5, 5 * sizes.stride), 1 << 20, rates, 2)
    verify = verification(sizes, 100, Demand(sizes.neurons, 300, 100, 0, 0, 0), 1 << 20, rates, 2)
    assert verify.drive_s == pytest.approx((sizes.neurons - 100) * sizes.stride / 4e9)
    known = {p: with_drafts(draft, verify, p) for p in (0.5, 0.9, 0.99)}
    speeds = [f.tokens_per_s for f in known.values()]
    assert speeds == sorted(speeds)
    for p, f in known.items():
        assert f.tokens_per_s <= f.bound_tokens_per_s
        every = [
            sum(p**i for i in range(k + 1)) / (k / draft.tokens_per_s + verify.seconds(k + 1)) for k in range(1, 65)
        ]
        assert f.tokens_per_s == pytest.approx(max(every))


def test_what_prediction_changed_is_told_beside_every_neuron(stores: dict[str, Store]) -> None:
    found = {}
    for name in LIMITS:
        with LLM(stores[name].path, predict="auto", context=160) as llm:
            tokens = llm.tokenize(PROMPTS[2] * 4)[:50]
            found[name] = quality(llm, tokens[:16], tokens[16:])
            assert quality(llm, tokens[:16], tokens[16:20]) is None
    good, rough, useless = (found[name] for name in LIMITS)
    assert good and rough and useless and good.tokens == 32
    # The map is f32, the gate 8 bit: they differ about zero.
    assert (good.recall, good.over_prediction) == pytest.approx((1, 1), abs=0.01)
    assert good.agreement >= 31 / 32 and good.divergence < 0.002, "one near tie"
    assert 0.1 < rough.recall < 0.9 and rough.divergence > 0.01
    assert (useless.recall, useless.over_prediction) == (0, 0) and useless.divergence > rough.divergence
