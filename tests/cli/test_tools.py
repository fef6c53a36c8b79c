"""inspect, convert, bench, eval and doctor as text and as JSON."""

from __future__ import annotations

import json
import math

import pytest
from probed_hosts import write_probe


def test_version_and_help(hotset):
    from hotset import __version__

    assert hotset("--version").out == f"hotset {__version__}\n"
    commands = ("run", "chat", "convert", "pull", "inspect", "bench", "doctor", "eval")
    shown = hotset("--help").out
    assert all(f"\n  {command} " in shown for command in commands)


def test_inspect_store_gguf_and_checkpoint_agree(hotset, store, gguf):
    of_store, of_gguf = (json.loads(hotset("inspect", model, "--json").out) for model in (store, gguf))
    assert (of_store["kind"], of_gguf["kind"]) == ("store", "gguf")
    for key in ("family", "parameters", "config", "context", "kv_bytes"):
        assert of_store[key] == of_gguf[key]
    assert sum(tensor["bytes"] for tensor in of_store["tensors"]) == of_store["weight_bytes"]


def test_inspect_as_text(hotset, store):
    shown = hotset("inspect", store, "--context", "128", "--tensors").out
    assert "llama, 0.1 M parameters" in shown
    assert "2, hidden 64, FFN 128 (gated, silu)" in shown
    assert "4 heads, 2 for keys and values, of 16" in shown
    # 2 layers x 2 heads x 2 pages of 64 tokens x 16 dimensions x 4 bytes (K and V in f16)
    assert "weights + 128 tokens of context" in shown
    assert "model.layers.1.mlp.down_proj.weight" in shown


def test_kv_bytes_by_hand(hotset, store):
    kv = json.loads(hotset("inspect", store, "--context", "65", "--json").out)["kv_bytes"]
    values = 2 * 128 * 2 * 2 * 16  # layers, tokens in whole pages, K and V, heads, head size
    scales = 2 * 128 * 2 * 2 * 2  # bf16: one for a key of up to 32 columns, one for a value
    assert kv == {"f16": values * 2, "int8": values + scales}


def test_verify_says_so(hotset, store):
    done = hotset("inspect", store, "--verify")
    assert (done.code, "every block" in done.err) == (0, True)


def test_verify_wants_a_store(hotset, gguf):
    done = hotset("inspect", gguf, "--verify")
    assert (done.code, "gguf model" in done.err) == (2, True)


def test_convert_reports_every_class(hotset, gguf, tmp_path):
    done = hotset("convert", gguf, tmp_path / "store")
    assert (done.code, done.err) == (0, "")
    assert "every value kept" in done.out
    assert done.out.endswith(f"{tmp_path / 'store'}\n")
    assert "is already this store" in hotset("convert", gguf, tmp_path / "store").out
    smaller = json.loads(hotset("convert", gguf, tmp_path / "q8", "--quant", "ffn=q8_0", "--json").out)
    assert {part["kind"]: part["formats"] for part in smaller["classes"]}["ffn"] == "q8_0"


def test_convert_to_an_unknown_format(hotset, gguf, tmp_path):
    done = hotset("convert", gguf, tmp_path / "store", "--quant", "q4_2")
    assert (done.code, "did you mean q4_" in done.err) == (2, True)
    assert not (tmp_path / "store").exists()


def test_bench_result(hotset, store, tmp_path):
    sizes = ("--prefill", "16,999", "--decode", "4", "--repeats", "2", "--threads", "1", "--no-bandwidth")
    done = hotset("bench", store, *sizes, "--output", tmp_path / "result.json")
    assert done.code == 0
    result = json.loads((tmp_path / "result.json").read_text())
    found = {(s["test"], s["unit"], len(s["samples"])) for s in result["series"]}
    assert found == {("load", "s", 1), ("prefill16", "tokens/s", 2), ("decode4", "tokens/s", 2)}  # 999 > context
    assert result["command"].startswith("main.py bench") or result["command"].startswith("hotset bench")
    assert result["host"]["cpu"]["cores"] >= 1
    assert result["model"]["bytes_per_token"] > 0
    assert "decode4" in done.out


def test_bench_states_the_share_of_the_bandwidth(hotset, store):
    sizes = ("--prefill", "0", "--decode", "4", "--repeats", "1", "--threads", "1")
    (bound,) = json.loads(hotset("bench", store, *sizes, "--json").out)["bounds"]
    moved = bound["bytes_per_token"] * bound["tokens_per_s"]
    assert math.isclose(bound["share"], moved / bound["bandwidth_bytes_per_s"])
    assert bound["bandwidth_bytes_per_s"] > 1e8


def test_bench_of_a_packed_model_is_that_of_a_run(hotset, packed, tmp_path):
    """The same answer as `run` gives takes the same neurons; the bound counts the FFN."""
    env = {"HOTSET_CACHE": str(tmp_path)}
    write_probe(tmp_path, packed)
    plan = tmp_path / "plan.json"
    assert hotset("plan", packed, "--set", "hot=30", "--set", "cold_slots=200", "-o", plan, env=env).code == 0
    sizes = ("--prefill", "16", "--decode", "24", "--repeats", "2", "--plan", plan)
    result = json.loads(hotset("bench", packed, *sizes, "--json", env=env).out)
    (answers,) = result["answers"]
    asked = ("--plan", plan, "-n", "25", "--ignore-eos", "--stats", "--json")
    for beginning, sample in zip(
        ("Once upon a time", "The history of the town begins"), answers["samples"], strict=True
    ):
        run = json.loads(hotset("run", packed, beginning, *asked, env=env).out)["stats"]
        assert (sample["tokens"], sample["mode"]) == (run["tokens"], run["mode"]) == (24, "exact")
        for name in ("candidates", "active"):
            assert sample["neurons"][name] == run["neurons"][name] > 0
        bound, neurons = sample["neurons"]["bound"], sample["neurons"]
        assert sample["reached"] == pytest.approx(sample["tokens_per_s"] / bound["bound_tokens_per_s"])
        assert 0 < neurons["missed"] < neurons["candidates"] and neurons["reads"] > 0
        assert bound["drive_bytes"] == neurons["drive_bytes"]
        assert bound["memory_bytes"] > neurons["active"] * 2 * 64  # up and down of 64 8-bit weights
    rates = {s["test"]: s["samples"] for s in result["series"]}
    assert rates["decode24"] == [sample["tokens_per_s"] for sample in answers["samples"]]
    assert (
        "bytes_per_token" not in result["model"] and result["bounds"] == [] and str(tmp_path) not in json.dumps(result)
    )
    shown = hotset("bench", packed, *sizes, env=env).out
    for text in ("mode     exact; predictor gate", "reads, ", "in memory)", "at most ", "reached "):
        assert text in shown


def test_bench_takes_the_flags_of_run(hotset, tmp_path):
    env = {"HOTSET_CACHE": str(tmp_path)}
    drafts = tmp_path / "drafts.json"
    chosen = ("--set", "predictor=low-rank", "--set", "hot=400", "--set", "cold_slots=600", "--context", "200")
    assert hotset("plan", "stories-13m", *chosen, "-o", drafts, env=env).code == 0
    for flags, mode in (
        (("--plan", drafts), "exact, drafted"),
        (("--plan", drafts, "--no-draft"), "exact"),
        (("--predict", "auto", "--loss", "5%", "--threads", "1"), "predicted within a loss of 5%"),
    ):
        sizes = ("--prefill", "0", "--decode", "16", "--repeats", "1", "--json")
        (answers,) = json.loads(hotset("bench", "stories-13m", *sizes, *flags, env=env).out)["answers"]
        (sample,) = answers["samples"]
        assert (sample["mode"], sample["drafts"] is not None) == (mode, mode == "exact, drafted")
        assert answers["plan"]["context"] == (200 if drafts in flags else 512)
    done = hotset("bench", "stories-13m", "--plan", drafts, "--threads", "7", "--decode", "4", env=env)
    assert done.code == 2 and "threads is 7, the plan says" in done.err


@pytest.mark.parametrize("extra", [(), ("--stride", "7")])
def test_perplexity_of_a_random_model_is_about_its_vocabulary(hotset, store, tmp_path, extra):
    (tmp_path / "text").write_text("the sun shines on the sea, and the sea is green. " * 8)
    done = hotset("eval", "ppl", store, tmp_path / "text", "--window", "32", "--json", *extra)
    found = json.loads(done.out)
    assert 512 / 8 < found["perplexity"] < 512 * 8
    assert found["windows"] > 1
    shown = hotset("eval", "ppl", store, tmp_path / "text", "--window", "32", *extra).out
    assert shown.startswith(f"perplexity {found['perplexity']:.4f} ± {found['error']:.4f} on {found['tokens']} tokens")


def test_perplexity_of_too_short_a_text(hotset, store):
    done = hotset("eval", "ppl", store, "--window", "32", stdin="short")
    assert (done.code, "too few" in done.err) == (7, True)


def test_doctor(hotset):
    done = hotset("doctor", "--quick")
    assert (done.code, done.err) == (0, "")
    lines = {line.split()[0] for line in done.out.splitlines()}
    assert {"hotset", "cpu", "kernels", "memory", "io_uring", "missing"} <= lines
    found = json.loads(hotset("doctor", "--quick", "--json").out)
    assert found["kernels"]["selected"] in found["kernels"]["usable"]
    assert "scalar" in found["kernels"]["usable"]
    assert (found["memory_bytes_per_s"], found["drive"]) == ({}, [])


def test_doctor_obeys_a_forced_isa(hotset):
    assert json.loads(hotset("doctor", "--quick", "--json", env={"HOTSET_ISA": "scalar"}).out)["kernels"][
        "selected"
    ] == ("scalar")


def test_doctor_measures_drive_and_memory(hotset, tmp_path):
    found = json.loads(hotset("doctor", "--json", "--path", tmp_path).out)
    assert all(rate > 1e8 for rate in found["memory_bytes_per_s"].values())
    assert {rate["backend"] for rate in found["drive"]} >= {"pread"}
    assert all(rate["bytes_per_s"] > 0 for rate in found["drive"])
    assert list(tmp_path.iterdir()) == []


def test_every_page_of_the_commands_has_the_present_flags():
    import subprocess
    import sys
    from pathlib import Path

    script = Path(__file__).parents[2] / "scripts/update_docs.py"
    assert subprocess.run([sys.executable, script, "--check"], check=False).returncode == 0
