"""Standard streams that are full, closed or of few characters: the documented exit code, nothing in the wrong place."""

from __future__ import annotations

import errno
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hotset.cli import main as cli
from hotset.cli.text import print_json

SHORT = ("--max-tokens", "4", "--ignore-eos", "--raw")


@pytest.fixture
def shell(environment):
    """Runs `hotset ARGS…` with a shell's redirections; buffered, as it is unless PYTHONUNBUFFERED says not to."""
    environment = environment | {"PYTHONUNBUFFERED": ""}

    def call(redirections: str, *args: str | Path) -> subprocess.CompletedProcess[str]:
        command = [
            "sh",
            "-c",
            f'exec "$@" {redirections}',
            "sh",
            sys.executable,
            "-m",
            "hotset.cli.main",
            *map(str, args),
        ]
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, timeout=120, check=False
        )

    return call


@pytest.mark.parametrize("args", [("--version",), ("run", "STORE", "the sun", *SHORT)])
def test_a_full_standard_output(shell, store, args):
    done = shell(">/dev/full", *(store if part == "STORE" else part for part in args))
    assert done.returncode == 5
    assert done.stderr.startswith("hotset: cannot use standard output or a file: No space left on device; ")
    assert done.stderr.count("\n") == 1


def test_a_full_standard_error(shell):
    done = shell("2>/dev/full", "run", "smollm2-135m-instrct", "x")
    assert (done.returncode, done.stdout) == (2, "")


def test_closed_outputs(shell, store):
    run = ("run", store, "the sun", *SHORT)
    whole = shell("", *run, "--json")
    silent = shell("2>&-", *run, "--json")
    assert (silent.returncode, silent.stderr) == (0, "")
    assert json.loads(silent.stdout)["text"] == json.loads(whole.stdout)["text"]
    unheard = shell("2>&-", "run", "smollm2-135m-instrct", "x")
    assert (unheard.returncode, unheard.stdout) == (2, "")
    unseen = shell(">&-", *run)
    assert (unseen.returncode, unseen.stdout) == (0, "")
    assert unseen.stderr.startswith("[load ")
    assert shell("<&- >&- 2>&-", *run).returncode == 0


def test_a_closed_input_is_an_empty_one(shell, store, tmp_path):
    done = shell("<&-", "run", store)
    assert (done.returncode, done.stdout) == (7, "")
    assert "the prompt is empty" in done.stderr
    talks = shutil.copytree(store, tmp_path / "talks")
    (talks / "chat_template.jinja").write_text("{{ messages[0].content }}")
    done = shell("<&-", "chat", talks)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_characters_that_the_output_does_not_have(hotset, store):
    asked = ("run", store, "schöne Grüße", "--echo", "--quiet", *SHORT)
    ascii_only = {"PYTHONIOENCODING": "ascii"}
    done = hotset(*asked, env=ascii_only)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(r"sch\xf6ne Gr\xfc\xdfe")
    done = hotset(*asked, "--json", env=ascii_only)
    assert json.loads(done.out)["text"] == json.loads(hotset(*asked, "--json").out)["text"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_can_be_read_back_from_any_output(monkeypatch, encoding):
    value = {"text": "schön\n🌞 \\xe9", "path": "not UTF-8: \udcff"}
    data = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(data, encoding=encoding, errors="backslashreplace"))
    print_json(value)
    assert json.loads(data.getvalue().decode()) == value


def test_errors_of_the_system_name_the_file(monkeypatch, capsys):
    def fail(*args, **kwargs):
        (Path("/proc/self/none")).read_bytes()

    monkeypatch.setattr("hotset.tools.doctor.host", fail)
    assert cli.main(["doctor", "--quick"]) == 5
    assert capsys.readouterr().err.startswith("hotset: cannot use /proc/self/none: No such file or directory; ")


def test_out_of_memory_of_the_system_is_no_matter_of_the_drive(monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("hotset.tools.doctor.host", fail)
    assert cli.main(["doctor", "--quick"]) == 6
    assert "out of memory" in capsys.readouterr().err
