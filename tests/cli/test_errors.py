"""Whatever a person gets wrong: one paragraph, the documented exit code, no traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hotset import errors
from hotset.cli import main as cli


def assert_complaint(done, code: int, *parts: str) -> None:
    assert done.code == code
    assert done.out == ""
    assert done.err.startswith("hotset: ")
    assert done.err.count("\n") == 1
    assert "Traceback" not in done.err
    for part in parts:
        assert part in done.err


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["rn"], ["No such command 'rn'", "Did you mean 'run'?"]),
        (
            ["run", "m", "p", "--temprature", "1"],
            ["No such option: --temprature", "--temperature", "hotset run --help"],
        ),
        (["chat"], ["Missing argument 'MODEL'"]),
        (["run", "m", "p", "--top-p", "2"], ["top_p is 2.0", "above 0, at most 1"]),
        (["run", "m", "p", "--threads", "many"], ["--threads", "many"]),
        (["run", "m", "p", "--logit-bias", "x=1"], ["--logit-bias 'x=1'", "42=-1.5"]),
        (["bench", "m", "--threads", "1,x"], ["--threads '1,x'"]),
        (["inspect", "smollm2-135m-instrct"], ["did you mean smollm2-135m-instruct?"]),
        (["eval", "pple"], ["Did you mean 'ppl'?"]),
        (["eval", "ppl", "m", "--window", "2"], ["--window is 2", "at least 3", "--stride"]),
        (["run", "m", "p", "--top-k", "99999999999"], ["top_k is 99999999999", "at most 2147483647"]),
    ],
)
def test_wrong_usage(hotset, args, parts):
    assert_complaint(hotset(*args), 2, *parts)


@pytest.mark.parametrize(
    ("flag", "value", "parts"),
    [
        ("--memory", "lots", ["'lots' is no size", "4GiB"]),
        ("--threads", "0", ["threads is 0", "at least 1"]),
        ("--context", "9999", ["context is 9999", "limit is 256"]),
        ("--kv", "f8", ["kv is 'f8'", "'f16' or 'int8'"]),
        ("--load", "slowly", ["load is 'slowly'", "'mmap'"]),
        ("--logit-bias", "999=1", ["token id 999", "0 to 511"]),
        ("--system", "Be brief.", ["--system", "chat template"]),
    ],
)
def test_values_that_no_model_takes(hotset, store, flag, value, parts):
    assert_complaint(hotset("run", store, "p", flag, value), 2, *parts)


def test_unsupported_isa(hotset, store):
    assert_complaint(hotset("run", store, "p", "--isa", "avx9"), 9, "avx9", "scalar")


@pytest.mark.parametrize("command", ["run", "pack", "inspect", "convert", "bench"])
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Tell me of the sun. " * 20, "so long a name; a prompt comes after the model"),
        ("b" * 300 + "/c", "so long a name"),
        ("~nosuchuser/model", "nobody of that name has a home"),
    ],
)
def test_names_that_no_model_can_have(capsys, command, name, why):
    assert cli.main([command, name]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"hotset: '{name[:200].strip()}")
    assert "is no store, .gguf file or folder here, and no hub id (owner/name)" in error
    assert why in error


def test_other_paths_in_the_home_of_nobody(hotset, store):
    assert_complaint(hotset("run", store, "p", "--trace", "~nosuchuser/t"), 2, "a path with ~", "set HOME")


def test_a_terminal_is_no_text(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert cli.main(["run", "m"]) == 7
    assert "got no prompt; give it as an argument, with --file PATH or on standard input" in capsys.readouterr().err
    assert cli.main(["eval", "ppl", "m"]) == 7
    error = capsys.readouterr().err
    assert "got no text; name a file of it after the model, or give it on standard input" in error
    assert "--file" not in error


def test_a_text_that_is_missing(capsys, tmp_path):
    assert cli.main(["eval", "ppl", "m", str(tmp_path / "none")]) == 5
    assert f"cannot read the text from {tmp_path / 'none'}: No such file" in capsys.readouterr().err


def test_budget_that_cannot_work(hotset, store):
    assert_complaint(hotset("run", store, "p", "--memory", "1MiB"), 6, "1MiB", "the least that works is")


def test_invalid_utf8_on_standard_input(hotset, store):
    assert_complaint(hotset("run", store, stdin=b"ab\xff"), 7, "not UTF-8", "0xff at offset 2", "iconv")


def test_invalid_utf8_in_an_argument(hotset, store):
    assert_complaint(hotset("run", store, "\udcff"), 7, "not UTF-8")


def test_empty_prompt(hotset, store):
    assert_complaint(hotset("run", store, ""), 7, "empty")


def test_prompt_and_file(hotset, store, tmp_path):
    assert_complaint(hotset("run", store, "a", "--file", tmp_path / "b"), 7, "--file")


def test_missing_prompt_file(hotset, store, tmp_path):
    assert_complaint(hotset("run", store, "--file", tmp_path / "none"), 5, str(tmp_path / "none"))


def test_prompt_longer_than_context(hotset, store):
    assert_complaint(hotset("run", store, "a " * 200, "--context", "64"), 7, "64")


def test_model_that_is_none(hotset, tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"no model at all, but long enough to have a header")
    assert_complaint(hotset("inspect", tmp_path / "a.gguf"), 4, "GGUF")
    assert_complaint(hotset("inspect", tmp_path), 2, "config.json")


def test_unknown_architecture(hotset, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalML"]}))
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    assert_complaint(hotset("inspect", tmp_path), 3, "LlamaForCausalLM")


def test_damaged_store(hotset, store, tmp_path):
    import shutil

    damaged = shutil.copytree(store, tmp_path / "damaged")
    weights = bytearray((damaged / "neurons.safetensors").read_bytes())
    weights[-100] ^= 1
    (damaged / "neurons.safetensors").write_bytes(weights)
    done = hotset("inspect", damaged, "--verify")
    assert done.code == 5
    assert "neurons.safetensors" in done.err
    assert "checksum" in done.err


def test_unwritable_output(hotset, store):
    done = hotset("bench", store, "--prefill", "0", "--decode", "1", "-t", "1", "--no-bandwidth", "-o", "/proc/none/x")
    assert done.code == 5
    assert "/proc/none/x" in done.err


@pytest.mark.parametrize("kind", sorted(errors.HotsetError.__subclasses__(), key=lambda kind: kind.__name__))
def test_every_error_class_has_its_exit_code(monkeypatch, capsys, kind):
    def fail(*args, **kwargs):
        raise kind("got this,\nwanted that")

    monkeypatch.setattr("hotset.tools.doctor.host", fail)
    assert cli.main(["doctor", "--quick"]) == kind.exit_code
    assert capsys.readouterr().err == "hotset: got this, wanted that\n"


def test_exit_codes_are_documented():
    page = (Path(__file__).parents[2] / "docs/reference/exit-codes.md").read_text()
    for kind in errors.HotsetError.__subclasses__():
        assert f"| {kind.exit_code} | `{kind.__name__}` |" in page


def test_unexpected_exception(monkeypatch, capsys):
    monkeypatch.setattr("hotset.tools.doctor.host", lambda: 1 // 0)
    assert cli.main(["doctor", "--quick"]) == 70
    error = capsys.readouterr().err
    assert "unexpected ZeroDivisionError" in error
    assert "HOTSET_DEBUG=1" in error
    assert "Traceback" not in error
    monkeypatch.setenv("HOTSET_DEBUG", "1")
    assert cli.main(["doctor", "--quick"]) == 70
    assert "Traceback" in capsys.readouterr().err


def test_interrupt_tells_how_to_go_on(monkeypatch, capsys):
    def stopped(*args, **kwargs):
        error = KeyboardInterrupt()
        error.add_note("the same command goes on from there")
        raise error

    monkeypatch.setattr("hotset.tools.convert.convert", stopped)
    assert cli.main(["convert", __file__]) == 130
    assert "the same command goes on from there" in capsys.readouterr().err
