"""`hotset run` as text and as JSON."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time

FIGURES = re.compile(
    r"\[load \d+\.\d\d s, first token after \d+\.\d\d s for \d+ tokens, then \d+\.\d tokens/s for 8\]\n"
)


def test_answer_on_standard_output_figures_on_standard_error(hotset, store):
    done = hotset("run", store, "the sun", "--max-tokens", "8", "--ignore-eos")
    assert done.code == 0
    assert done.out.endswith("\n")
    assert FIGURES.fullmatch(done.err)


def test_quiet(hotset, store):
    done = hotset("run", store, "the sun", "--max-tokens", "8", "--quiet")
    assert (done.code, done.err) == (0, "")


def test_prompt_from_argument_file_and_standard_input(hotset, store, tmp_path):
    (tmp_path / "prompt.txt").write_text("schöne Grüße 🌞")
    answers = {
        hotset("run", store, "schöne Grüße 🌞", "--quiet").out,
        hotset("run", store, "--file", tmp_path / "prompt.txt", "--quiet").out,
        hotset("run", store, "--quiet", stdin="schöne Grüße 🌞").out,
    }
    assert len(answers) == 1


def test_json(hotset, store):
    done = hotset("run", store, "the sun", "--max-tokens", "8", "--ignore-eos", "--json", "--logprobs", "2")
    assert (done.code, done.err) == (0, "")
    answer = json.loads(done.out)
    assert answer["text"] + "\n" == hotset("run", store, "the sun", "--max-tokens", "8", "--ignore-eos", "-q").out
    assert len(answer["tokens"]) == len(answer["logprobs"]) == len(answer["top_logprobs"]) == 8
    assert [step[0]["token"] for step in answer["top_logprobs"]] == answer["tokens"]  # greedy
    assert (answer["finish_reason"], answer["prompt_tokens"] > 0) == ("length", True)
    assert answer["memory"]["weight_bytes"] > 0


def test_samples_are_lines_of_json_and_repeat_with_the_seed(hotset, store):
    args = ("run", store, "the sun", "--samples", "3", "--temperature", "1.5", "--seed", "7", "--max-tokens", "12")
    lines = hotset(*args, "--json").out.splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    assert len(texts) == 3
    assert all(answer["output_tokens"] == len(answer["tokens"]) for answer in map(json.loads, lines)), "of its own"
    assert len(set(texts)) > 1
    assert texts == [json.loads(line)["text"] for line in hotset(*args, "--json", "--threads", "1").out.splitlines()]
    shown = hotset(*args, "--quiet").out
    assert all(f"--- {i}\n{text}" in shown for i, text in enumerate(texts, 1))


def test_echo(hotset, store):
    done = hotset("run", store, "the sun", "--echo", "--max-tokens", "4", "--quiet")
    assert done.out.startswith("the sun")


def test_stop_text(hotset, store):
    full = json.loads(hotset("run", store, "the sun", "--max-tokens", "8", "--ignore-eos", "--json").out)["text"]
    stop = full[2:4]
    done = json.loads(
        hotset("run", store, "the sun", "--max-tokens", "8", "--ignore-eos", "--stop", stop, "--json").out
    )
    assert done["text"] == full[: full.index(stop)]
    assert (done["finish_reason"], done["stop_reason"]) == ("stop", stop)


def test_a_gguf_is_converted_once_and_answers_like_its_store(hotset, store, gguf, environment):
    args = ("the sun", "--max-tokens", "8", "--quiet")
    assert hotset("run", gguf, *args).out == hotset("run", store, *args).out == hotset("run", gguf, *args).out


def test_closed_pipe_is_silent(store, environment):
    command = [
        sys.executable,
        "-m",
        "hotset.cli.main",
        "run",
        str(store),
        "the sun",
        "--max-tokens",
        "200",
        "--ignore-eos",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 141


def test_interrupt_exits_130_without_a_word(store, environment):
    command = [sys.executable, "-m", "hotset.cli.main", "run", str(store), "--quiet"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        time.sleep(0.5)  # it waits for standard input
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[1] == b""
        assert process.returncode == 130


def test_a_trace_is_written(hotset, store, tmp_path):
    path = tmp_path / "t.json"
    assert hotset("run", store, "hi", "--raw", "--max-tokens", "4", "--ignore-eos", "--trace", path).code == 0
    steps = [e for e in json.loads(path.read_text())["traceEvents"] if e["name"] == "step"]
    assert len(steps) == 4
    flags = ("--prefill", "0", "--decode", "8", "-r", "1", "-t", "1", "--no-bandwidth")
    assert hotset("bench", store, *flags, "--trace", path).code == 0
    assert len([e for e in json.loads(path.read_text())["traceEvents"] if e["name"] == "step"]) == 16
    refused = hotset("run", store, "hi", "--trace", "/proc/none/t.json")
    assert (refused.code, "cannot write the trace /proc/none/t.json" in refused.err) == (5, True)
