"""`hotset chat` through a pipe, and its /commands."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import pty
import re
import select
import shutil
import sys
from pathlib import Path

import pytest
from probed_hosts import write_probe

from hotset.cli.chat_input import Entry, Input
from hotset.cli.conversation import Conversation, obey
from hotset.errors import UsageError

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


@pytest.fixture(scope="module")
def chat_store(store, tmp_path_factory):
    path = shutil.copytree(store, tmp_path_factory.mktemp("chat") / "store")
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return path


def test_conversation_through_a_pipe(hotset, chat_store, tmp_path):
    saved = tmp_path / "talk.json"
    lines = [
        "hello",
        '"""',
        "two",
        "lines",
        '"""',
        "a \\",
        "b",
        "/stats",
        f"/save {saved}",
        "/sytem x",
        "/quit",
        "never",
    ]
    done = hotset("chat", chat_store, "--system", "Be brief.", "--max-tokens", "5", stdin="\n".join(lines))
    assert done.code == 0
    messages = json.loads(saved.read_text())
    assert [m["content"] for m in messages if m["role"] == "user"] == ["hello", "two\nlines", "a \nb"]
    assert messages[0] == {"role": "system", "content": "Be brief."}
    answers = [m["content"] for m in messages if m["role"] == "assistant"]
    assert done.out == "".join(f"{answer}\n" for answer in answers)
    assert "first token after" in done.err
    assert "known)" in done.err  # the beginning was not computed again
    assert "there is no command /sytem; did you mean /system?" in done.err
    assert "never" not in done.err


def test_stats_after_each_answer(hotset, chat_store, packed, tmp_path):
    of_dense = hotset("chat", chat_store, "--stats", "--max-tokens", "5", stdin="hello\nagain\n")
    assert of_dense.code == 0 and of_dense.err.count("first token after") == of_dense.err.count("[P99 ") == 2
    assert "in memory" not in of_dense.err

    talks = shutil.copytree(packed, tmp_path / "packed")
    (talks / "chat_template.jinja").write_text(TEMPLATE)
    env = {"HOTSET_CACHE": str(tmp_path)}
    write_probe(tmp_path, talks)
    plan = tmp_path / "plan.json"
    assert hotset("plan", talks, "--set", "hot=30", "--set", "cold_slots=200", "-o", plan, env=env).code == 0
    given = ("--stats", "--max-tokens", "9", "--ignore-eos", "--plan", plan)
    done = hotset("chat", talks, *given, stdin="hello\n/stats\n/quit\n", env=env)
    (line, again) = (line for line in done.err.splitlines() if line.startswith("[P99 "))
    assert line == again, "/stats says it again"
    shape = r"\[P99 \d+ ms, exact, [\d.]+% in memory, \d+ reads of [\d.]+ MB, [\d.]+ ms waiting a token, \d+% of the "
    assert re.match(shape + r"(drive|memory|compute) bound; peak \d+ MiB\]$", line)
    assert "[P99" not in hotset("chat", talks, *given[1:], stdin="hello\n/stats\n", env=env).err


def test_pasted_code_is_no_command_and_the_end_of_the_input_ends_a_message(hotset, chat_store, tmp_path):
    saved = tmp_path / "talk.json"
    lines = ['"""', "// a comment", "int x;", '"""', '"""/help"""', f"/save {saved}", '"""', "/tail"]
    done = hotset("chat", chat_store, "--max-tokens", "3", stdin="\n".join(lines))
    assert done.code == 0
    assert "no command" not in done.err
    messages = json.loads(saved.read_text())
    assert [m["content"] for m in messages if m["role"] == "user"] == ["// a comment\nint x;", "/help"]
    assert done.out.count("\n") >= 3, "the last message, which nothing ends, is answered, too"


@pytest.mark.parametrize(
    ("piped", "want"),
    [
        ("/help\nhi\n", [Entry("/help"), Entry("hi")]),
        ('"""one line"""\n', [Entry("one line", plain=False)]),
        ('"""\n/a\n\nb', [Entry("/a\n\nb", plain=False)]),
        ('"""a\nb\n', [Entry("a\nb", plain=False)]),
        ('"""\n\n', []),
        ("/a\\\nb\n", [Entry("/a\nb", plain=False)]),
        ("a\\\nb\\\n", [Entry("a\nb", plain=False)]),
        ("a\\", [Entry("a", plain=False)]),
        ("\\", []),
        ("", []),
    ],
)
def test_messages_of_piped_input(monkeypatch, tmp_path, piped, want):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(piped.encode())))
    with Input(tmp_path / "history") as source:
        assert list(iter(source.message, None)) == want


def test_model_without_template(hotset, store):
    done = hotset("chat", store)
    assert done.code == 3
    assert "chat template" in done.err


def test_invalid_utf8(hotset, chat_store):
    done = hotset("chat", chat_store, stdin=b"caf\xe9\n")
    assert done.code == 7
    assert "not UTF-8" in done.err


class Terminal:
    """A process in a terminal of its own, and what it shows."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.shown = ""  # since the last text waited for
        self.process, self._end = pty.fork()
        if self.process == 0:
            os.execve(command[0], command, environment)

    def wait_for(self, text: str) -> None:
        while text not in self.shown:
            assert select.select([self._end], [], [], 30)[0], f"no {text!r} after {self.shown!r}"
            self.shown += os.read(self._end, 4096).decode(errors="replace").replace("\r\n", "\n")
        self.shown = self.shown.partition(text)[2]

    def press(self, keys: str) -> None:
        os.write(self._end, keys.encode())

    def press_until_heard(self, keys: str) -> None:
        """Readline drops what is typed while it takes the terminal over, which is after it has shown its prompt."""
        for _ in range(5):
            self.press(keys)
            if select.select([self._end], [], [], 10)[0]:
                return
        raise AssertionError(f"{keys!r} is not heard after {self.shown!r}")

    def exit_code(self) -> int:
        with contextlib.suppress(OSError):  # the terminal hangs up when the process ends
            while os.read(self._end, 4096):
                pass
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])


def test_in_a_terminal_ctrl_c_twice_leaves_and_lines_are_kept(chat_store, environment):
    command = [sys.executable, "-m", "hotset.cli.main", "chat", str(chat_store), "--max-tokens", "5"]
    terminal = Terminal(command, environment)
    terminal.wait_for("> ")
    terminal.press("hello\n")
    terminal.wait_for("hello\n")
    terminal.wait_for("\n> ")
    terminal.press_until_heard("\x03")
    terminal.wait_for("leaves)")
    terminal.wait_for("> ")
    terminal.press_until_heard("\x03")
    assert terminal.exit_code() == 0
    assert "hello" in (Path(environment["HOTSET_CACHE"]) / "chat_history").read_text()


@pytest.fixture
def chat() -> Conversation:
    return Conversation(llm=None, sampling={})  # type: ignore[arg-type]  # no command here asks the model


def test_system_clear_undo(chat):
    assert obey("/system Be kind.", chat) == "system message set"
    chat.add("user", "a")
    chat.add("assistant", "b")
    assert obey("/undo", chat) == "took back: a"
    assert obey("/undo", chat) == "nothing to take back"
    chat.add("user", "a")
    obey("/clear", chat)
    assert chat.messages == [{"role": "system", "content": "Be kind."}]
    obey("/system", chat)
    assert chat.messages == []


def test_save_and_load(chat, tmp_path):
    chat.add("user", "schön")
    obey(f"/save {tmp_path / 'x'}", chat)
    chat.clear()
    assert obey(f"/load {tmp_path / 'x'}", chat) == "loaded 1 messages"
    assert chat.messages == [{"role": "user", "content": "schön"}]


@pytest.mark.parametrize("text", ["", "[1]", '{"role": "user"}', '[{"role": "king", "content": "x"}]'])
def test_load_refuses_what_is_no_conversation(chat, tmp_path, text):
    (tmp_path / "x").write_text(text)
    with pytest.raises(Exception, match="no saved conversation"):
        obey(f"/load {tmp_path / 'x'}", chat)


def test_set(chat):
    assert obey("/set temperature 0.5", chat) == "temperature = 0.5"
    assert chat.sampling == {"temperature": 0.5}
    assert obey("/set", chat) == "temperature = 0.5"
    with pytest.raises(UsageError, match="did you mean temperature"):
        obey("/set temprature 1", chat)
    with pytest.raises(UsageError, match="top_p is 7"):
        obey("/set top_p 7", chat)
    with pytest.raises(UsageError, match="no JSON value"):
        obey("/set top_p high", chat)
    assert chat.sampling == {"temperature": 0.5}


@pytest.mark.parametrize("setting", ["n 2", "n 1", "echo true"])
def test_set_refuses_what_a_chat_cannot_keep(chat, setting):
    with pytest.raises(UsageError, match=r"/set (n|echo): a chat has one answer.*--samples and --echo"):
        obey(f"/set {setting}", chat)
    assert chat.sampling == {}


def test_set_logit_bias_and_numbers_too_large(chat):
    obey('/set logit_bias {"42": -100, "7": -Infinity}', chat)
    assert chat.sampling == {"logit_bias": {42: -100, 7: -math.inf}}
    with pytest.raises(UsageError, match="logit_bias has 'dog': 1; wanted a mapping from token id"):
        obey('/set logit_bias {"dog": 1}', chat)
    with pytest.raises(UsageError, match="logit_bias is 5"):
        obey("/set logit_bias 5", chat)
    with pytest.raises(UsageError, match="top_k is 99999999999"):
        obey("/set top_k 99999999999", chat)
    assert obey("/set logit_bias {}", chat) and chat.sampling == {"logit_bias": {}}


@pytest.mark.parametrize("command", ["save", "load"])
def test_files_in_the_home_of_nobody(chat, command):
    with pytest.raises(UsageError, match=f"/{command} ~nosuchuser/x: nobody of that name"):
        obey(f"/{command} ~nosuchuser/x", chat)


def test_help_lists_every_command(chat):
    shown = obey("/help", chat)
    for name in ("help", "clear", "system", "undo", "save", "load", "set", "stats", "quit"):
        assert f"/{name}" in shown
