"""LLM on packed stores: whatever is in memory changes no token; plans, stats, and what goes wrong."""

from __future__ import annotations

import json
import shutil
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from packed_stores import neurons_of
from probed_hosts import RATES, write_probe
from safetensors.numpy import load_file, save_file

from hotset import LLM, RunStats
from hotset.engine.budget import Host
from hotset.errors import FormatError, HotsetError, MemoryBudgetError, StorageError, UsageError
from hotset.formats.gates import gates_bytes
from hotset.formats.profile import fingerprint, read_profile, write_profile
from hotset.formats.store import NEURONS, open_store
from hotset.models import resolve
from hotset.planner.plan_file import Plan, read_plan, write_plan
from hotset.tools.convert import convert
from hotset.tools.pack import pack
from hotset.tools.plan import Wishes, make_plan
from hotset.tools.profile import ProfileOptions, profile
from hotset.tools.run_stats import lines

ROOT = Path(__file__).parents[2]
PROMPT = "Once upon a time"
TOKENS = 400
BUDGET = 1 << 30  # everything fits; what is in memory is chosen by settings


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("cache")
        patch.setenv("HOTSET_CACHE", str(path))
        yield path


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stories260K with ReLU in place of SiLU: about half of its neurons are zero, and its text is poor."""
    folder = tmp_path_factory.mktemp("relu")
    shutil.copytree(ROOT / "tests/golden/data/stories260k", folder / "source")
    config = json.loads((folder / "source/config.json").read_text())
    (folder / "source/config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    convert(folder / "source", folder / "dense", quant="f32")
    return folder / "dense"


@pytest.fixture(scope="module")
def untied(dense: Path, packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packed model with a head that is a copy of its embedding, in the same order of neurons."""
    folder = tmp_path_factory.mktemp("untied")
    source = dense.parent / "source"
    weights = load_file(source / "model.safetensors")
    shutil.copytree(source, folder / "source")
    save_file(weights | {"lm_head.weight": weights["model.embed_tokens.weight"]}, folder / "source/model.safetensors")
    config = json.loads((source / "config.json").read_text()) | {"tie_word_embeddings": False}
    (folder / "source/config.json").write_text(json.dumps(config))
    convert(folder / "source", folder / "dense", quant="f32")
    made = open_store(folder / "dense")
    write_profile(
        replace(read_profile(packed.parent / "dense/profile.safetensors"), model=fingerprint(made)),
        folder / "dense/profile.safetensors",
    )
    return pack(folder / "dense", folder / "packed", fmt="q8_0").dest


@pytest.fixture(scope="module")
def unprofiled(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(dense, tmp_path_factory.mktemp("plain") / "packed", fmt="q8_0").dest


@pytest.fixture(scope="module")
def packed(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a profile, in order of frequency."""
    folder = tmp_path_factory.mktemp("profiled")
    shutil.copytree(dense, folder / "dense")
    with LLM(folder / "dense") as llm:
        options = ProfileOptions(tokens=5000, window=200, sample=300, trace=250, neighbours=4)
        profile(llm, [ROOT / "LICENSE"], folder / "dense/profile.safetensors", options)
    found = pack(folder / "dense", folder / "packed", fmt="q8_0").dest
    if not (found / "profile.safetensors").exists():
        shutil.copy(folder / "dense/profile.safetensors", found)
    return found


def planned(store: Path, memory: int | None = BUDGET, **settings: Any) -> Plan:
    opened = open_store(store)
    return make_plan(opened, resolve(opened.config), Wishes(memory=memory), settings)


def tokens_of(store: Path, tmp_path: Path, **settings: Any) -> tuple[int, ...]:
    write_plan(planned(store, **settings), tmp_path / "plan.json")
    with LLM(store, plan=tmp_path / "plan.json") as llm:
        return llm.generate(PROMPT, max_tokens=TOKENS, temperature=0, ignore_eos=True).tokens


@pytest.fixture(scope="module")
def everything(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, ...]:
    return tokens_of(packed, tmp_path_factory.mktemp("all"), predictor="gate", hot=172)


@pytest.mark.parametrize("policy", ["clock", "lru", "lfu", "window"])
@pytest.mark.parametrize(("hot", "slots"), [(0, 0), (0, 100), (30, 300), (100, 50), (171, 5)])
def test_what_is_in_memory_changes_no_token(
    packed: Path, everything: tuple[int, ...], tmp_path: Path, hot: int, slots: int, policy: str
) -> None:
    got = tokens_of(packed, tmp_path, predictor="gate", hot=hot, cold_slots=slots, policy=policy)
    assert got == everything


def test_every_predictor_that_is_exact_gives_the_same(
    packed: Path, everything: tuple[int, ...], tmp_path: Path
) -> None:
    assert tokens_of(packed, tmp_path, predictor="all", hot=20, cold_slots=0) == everything


@pytest.fixture(scope="module")
def copied(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a copy of its gates."""
    return pack(shutil.copytree(packed, tmp_path_factory.mktemp("copied") / "packed"), gates=True).dest


@pytest.mark.parametrize("policy", ["clock", "lru", "lfu", "window"])
@pytest.mark.parametrize("slots", [0, 100, 400, 172 * 5])
def test_gates_that_are_read_change_no_token(
    copied: Path, everything: tuple[int, ...], tmp_path: Path, slots: int, policy: str
) -> None:
    assert tokens_of(copied, tmp_path, predictor="read-gate", cold_slots=slots, policy=policy) == everything


def test_gates_that_are_read_have_no_hot_neurons_beside_them(copied: Path, packed: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="choose cold_slots instead"):
        planned(copied, predictor="read-gate", hot=3)
    assert planned(copied, hot=3).predictor == "gate"
    plan = planned(copied, predictor="read-gate")
    write_plan(replace(plan, hot=(3,) * len(plan.hot)), tmp_path / "plan.json")
    with pytest.raises(FormatError, match="no neurons are hot"):
        read_plan(tmp_path / "plan.json")
    write_plan(plan, tmp_path / "plan.json")
    with pytest.raises(UsageError, match="no copy of its gates"):
        LLM(packed, plan=tmp_path / "plan.json")


def test_stats_tell_gates_read_in_order_from_what_is_missed(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOTSET_CACHE", str(tmp_path))
    write_probe(tmp_path, copied)
    write_plan(planned(copied, predictor="read-gate", cold_slots=200), tmp_path / "plan.json")
    with LLM(copied, plan=tmp_path / "plan.json") as llm:
        stats = llm.run_stats(llm.generate(PROMPT, max_tokens=60, temperature=0, ignore_eos=True))
    assert stats.mode == "exact" and stats.predictor == "read-gate"
    assert stats.neurons is not None and stats.neurons.bound is not None
    in_order = gates_bytes(neurons_of(open_store(copied)))
    assert stats.neurons.drive_bytes > in_order
    assert stats.neurons.bound.drive_bytes == pytest.approx(stats.neurons.drive_bytes)


def test_order_changes_little(packed: Path, unprofiled: Path) -> None:
    """Sums run in store order, so another order rounds differently: the same probabilities, not the same bits."""
    with LLM(packed) as first, LLM(unprofiled) as second:
        same = first.generate(PROMPT, max_tokens=20, temperature=0)
        assert second.generate(PROMPT, max_tokens=5, temperature=0).tokens == same.tokens[:5]


def test_the_packed_model_is_the_dense_one(dense: Path, packed: Path) -> None:
    """8-bit weights and activations against 32-bit ones."""
    text = "The little girl went to the park and saw a big dog. She was happy. " * 3
    with LLM(dense) as whole, LLM(packed) as llm:
        want, got = whole.perplexity(text, window=64, stride=32), llm.perplexity(text, window=64, stride=32)
    assert got.value == pytest.approx(want.value, rel=0.02)


def test_a_budget_is_planned_and_kept(packed: Path, cache: Path) -> None:
    budget = Host.measure().base + (160 << 20)  # whatever ran in this process before
    with LLM(packed, memory=budget, context=256) as llm:
        assert llm.plan is not None and llm.plan.bytes <= budget
        assert llm.generate(PROMPT, max_tokens=5).tokens
        assert llm.stats["neuron_bytes"] <= llm.plan.bytes
    kept = list((cache / "plans").glob("*.json"))
    assert len(kept) == 1 and read_plan(kept[0]) == llm.plan
    with LLM(packed, memory=budget, context=256) as again:
        assert again.plan == llm.plan
    kept[0].write_text("damaged")
    with LLM(packed, memory=budget, context=256) as third:
        assert third.plan is not None and third.plan.hot == llm.plan.hot


def test_an_embedding_on_the_drive_changes_no_token(untied: Path, everything: tuple[int, ...], tmp_path: Path) -> None:
    """The head is a copy of the embedding, so the text is that of the model in which they are one."""
    for embedding in ("memory", "drive"):
        settings = {"predictor": "gate", "hot": 30, "cold_slots": 300, "embedding": embedding}
        assert tokens_of(untied, tmp_path, **settings) == everything, embedding


def test_the_embedding_stays_on_the_drive_where_neurons_compete_for_memory(
    untied: Path, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Host, "measure", lambda: Host(base=50 << 20, free=1 << 34))  # to the byte, every time

    def works(store: Path, memory: int) -> bool:
        try:
            return bool(planned(store, memory=memory, context=256))
        except MemoryBudgetError:
            return False

    least = {store: bisect_left(range(1 << 30), True, key=lambda m, s=store: works(s, m)) for store in (untied, packed)}
    assert planned(untied, memory=least[untied], context=256).embedding == "drive"
    assert planned(packed, memory=least[packed], context=256).embedding == "memory"  # it is the head, too
    assert planned(untied).embedding == "memory"
    held, left = (planned(untied, embedding=where) for where in ("memory", "drive"))
    saved = open_store(untied).entries["model.embed_tokens.weight"].bytes
    assert held.memory["resident"] - left.memory["resident"] == saved
    with pytest.raises(UsageError, match="its head, too"):
        planned(packed, embedding="drive")


def test_too_small_a_budget_is_refused_before_loading(packed: Path) -> None:
    with pytest.raises(MemoryBudgetError, match=r"the least that works is (\d+)MiB") as refused:
        LLM(packed, memory="20MiB", context=256)
    least = int(str(refused.value).split("least that works is ")[1].split("MiB")[0])
    with pytest.raises(MemoryBudgetError):
        LLM(packed, memory=f"{least - 8}MiB", context=256)
    with LLM(packed, memory=f"{least + 8}MiB", context=256) as llm:  # 8: the process grows while it tries
        assert llm.generate(PROMPT, max_tokens=5).tokens


def test_plans_that_do_not_belong_here(packed: Path, unprofiled: Path, dense: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    write_plan(planned(unprofiled), file)
    with pytest.raises(UsageError, match="another model"):
        LLM(packed, plan=file)
    with pytest.raises(UsageError, match="is not: make one with `hotset pack"):
        LLM(dense, plan=file)
    with pytest.raises(UsageError, match="context is 100, the plan says"):
        LLM(unprofiled, plan=file, context=100)
    with pytest.raises(MemoryBudgetError, match="the plan takes"):
        LLM(unprofiled, plan=file, memory="50MiB")
    with pytest.raises(UsageError, match="KV cache"):
        LLM(unprofiled, plan=file, kv="int8")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"speed": 9}, UsageError, "no setting 'speed'; there are predictor, hot"),
        ({"hot": "x"}, UsageError, "hot=x: want a whole number"),
        ({"hot": 173}, UsageError, "a layer has 172 neurons"),
        ({"depth": 0}, UsageError, "at least 1"),
        ({"predictor": "oracle"}, UsageError, "want all, gate, read-gate, low-rank or sketch"),
        ({"embedding": "tape"}, UsageError, "want memory or drive"),
        ({"policy": "best"}, UsageError, "want lru, clock, lfu or window"),
        ({"cold_slots": 10**9}, MemoryBudgetError, "choose fewer"),
    ],
)
def test_settings_that_make_no_sense(
    packed: Path, settings: dict[str, Any], error: type[HotsetError], message: str
) -> None:
    with pytest.raises(error, match=message):
        planned(packed, **settings)


def test_notes_say_what_is_missing(packed: Path, unprofiled: Path) -> None:
    assert "not probed" in " ".join(planned(packed, cold_slots=50, hot=10).notes)
    assert "no profile" in " ".join(planned(unprofiled, cold_slots=50, hot=10).notes)


def test_stats_of_a_run(packed: Path, tmp_path: Path) -> None:
    write_plan(planned(packed, predictor="gate", hot=30, cold_slots=300), tmp_path / "plan.json")
    before: dict[str, float] = {}
    with LLM(packed, plan=tmp_path / "plan.json") as llm:
        with llm.stream(PROMPT, max_tokens=40, temperature=0, ignore_eos=True) as stream:
            for _ in stream:
                before = before or llm.stats
            stats: RunStats = llm.run_stats(stream.completion)
        after = llm.stats
    assert stats.tokens == 39 and stats.neurons is not None and stats.mode == "exact"
    assert 0 < stats.p50_s <= stats.p90_s <= stats.p99_s
    n, everyone = stats.neurons, llm.config.ffn * len(llm.config.layers)
    assert 0 < n.active <= n.candidates < everyone
    assert 0 < n.missed < n.candidates and n.reads <= n.missed
    bundles = n.missed * llm.store.neurons.stride
    assert bundles * 0.999 <= n.drive_bytes <= bundles + n.missed * (32 << 10)  # with gaps of up to 32 KiB
    for name, each in (("candidates", n.candidates), ("missed", n.missed), ("reads", n.reads)):
        assert 39 * each == pytest.approx(after[f"neuron_{name}"] - before[f"neuron_{name}"])
    assert n.hit_rate == pytest.approx(1 - n.missed / n.candidates) and n.miss_rate == pytest.approx(1 - n.hit_rate)
    text = "\n".join(lines(stats))
    assert "P99" in text and "missed" in text and "peak" in text and "run `hotset probe`" in text


def test_stats_leave_the_prompt_out_and_count_all_samples(packed: Path, tmp_path: Path) -> None:
    """Greedy samples of a prompt are alike, and so is what a token of theirs takes, however long the prompt was."""
    write_plan(planned(packed, predictor="gate", hot=0, cold_slots=0), tmp_path / "plan.json")
    options = {"temperature": 0, "max_tokens": 20, "ignore_eos": True}
    with LLM(packed, plan=tmp_path / "plan.json") as llm:
        one = llm.run_stats(llm.generate(PROMPT * 8, **options))
        llm.clear()
        three = llm.run_stats(llm.generate(PROMPT * 8, n=3, **options))
        assert llm.run_stats(llm.generate(PROMPT, max_tokens=1)).neurons is None
    assert (one.tokens, three.tokens) == (19, 57) and one.neurons is not None and three.neurons is not None
    assert three.neurons.active == pytest.approx(one.neurons.active)


def test_stats_of_a_probed_host_have_shares(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTSET_CACHE", str(tmp_path))
    write_probe(tmp_path, packed)
    write_plan(planned(packed, predictor="gate", hot=30, cold_slots=300), tmp_path / "plan.json")
    with LLM(packed, plan=tmp_path / "plan.json") as llm:
        stats = llm.run_stats(llm.generate(PROMPT, max_tokens=40, temperature=0, ignore_eos=True))
        threads, others = llm.threads, sum(e.bytes for e in llm.store.entries.values() if e.rows != 172 and e.cols)
        assert llm.store.neurons is not None
        vector, gates = llm.store.neurons.layout.vector_bytes, 172 * 5
    n = stats.neurons
    assert n is not None and n.bound is not None
    touched = others + (gates + 2 * n.active) * vector  # all gates are the predictor's
    assert n.bound.memory_s == pytest.approx(touched / RATES.memory_bytes_per_s[min(threads, 2)], rel=0.05)
    assert n.bound.drive_s >= max(n.reads / 50_000, n.drive_bytes / 4e9)
    assert stats.shares["drive"] == pytest.approx(stats.tokens_per_s * n.bound.drive_s)
    assert stats.reached == max(stats.shares.values())
    data = json.loads(json.dumps(stats.as_json()))
    assert data["reached"] == stats.reached and data["neurons"]["miss_rate"] == n.miss_rate
    assert data["neurons"]["bound"]["bound_tokens_per_s"] == pytest.approx(stats.tokens_per_s / stats.reached)
    assert f"reached {stats.reached:.0%}" in "\n".join(lines(stats))


def test_stats_of_a_dense_model_are_times_and_memory(dense: Path) -> None:
    with LLM(dense) as llm:
        stats = llm.run_stats(llm.generate(PROMPT, max_tokens=10, temperature=0, ignore_eos=True))
    assert stats.tokens == 9 and stats.tokens_per_s > 0 and stats.peak_bytes > 1 << 20
    assert stats.neurons is None and stats.shares == {} and stats.reached is None


def test_a_store_cut_while_running_is_told_and_nothing_lost(packed: Path, tmp_path: Path) -> None:
    store = shutil.copytree(packed, tmp_path / "store")
    write_plan(planned(store, predictor="gate", hot=0, cold_slots=20), tmp_path / "plan.json")
    whole = (store / NEURONS).read_bytes()
    with LLM(store, plan=tmp_path / "plan.json") as llm:
        want = llm.generate(PROMPT, max_tokens=10, temperature=0).tokens
        llm.clear()
        with (store / NEURONS).open("r+b") as file:
            file.truncate(len(whole) // 2)
        with pytest.raises((StorageError, FormatError), match=r"neurons\.safetensors"):
            llm.generate(PROMPT, max_tokens=10, temperature=0)
        (store / NEURONS).write_bytes(whole)
        assert llm.generate(PROMPT, max_tokens=10, temperature=0).tokens == want


def test_a_damaged_neuron_is_named(packed: Path, tmp_path: Path) -> None:
    store = shutil.copytree(packed, tmp_path / "store")
    info = open_store(store).neurons
    assert info is not None
    with (store / NEURONS).open("r+b") as file:
        file.seek(info.offsets[2] + 5 * info.stride + 7)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(FormatError, match=r"neuron 5 of layer 2 .*checksum"):
        LLM(store)


def test_neurons_of_another_shape_are_refused(packed: Path, tmp_path: Path) -> None:
    store = shutil.copytree(packed, tmp_path / "store", ignore=shutil.ignore_patterns("profile*"))
    config = json.loads((store / "config.json").read_text())
    text = json.dumps(config | {"intermediate_size": 180})
    (store / "config.json").write_text(text)
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["files"]["config.json"]["bytes"] = len(text)
    (store / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(HotsetError, match="172"):
        LLM(store)
