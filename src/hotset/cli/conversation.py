"""The state of `hotset chat` and its /commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hotset.cli.text import note
from hotset.errors import HotsetError, InputError, UsageError

if TYPE_CHECKING:
    from hotset.llm import LLM

Message = dict[str, str]
_NOT_HERE = ("n", "echo")  # a chat keeps one answer to a question, and what it keeps goes into the next prompt


@dataclass
class Conversation:
    """Messages so far and how to continue them."""

    llm: LLM
    sampling: dict[str, Any]  # keyword arguments of SamplingParams
    messages: list[Message] = field(default_factory=list)
    stats: str = "no answer yet"
    show_stats: bool = False  # after each answer, and more of them
    ended: bool = False

    def add(self, role: str, content: str) -> None:
        self.messages.append({"role": role, "content": content})

    @property
    def system(self) -> str:
        """The system message; empty if there is none."""
        first = self.messages[0] if self.messages else {"role": ""}
        return first["content"] if first["role"] == "system" else ""

    def set_system(self, text: str) -> None:
        if self.system:
            del self.messages[0]
        if text:
            self.messages.insert(0, {"role": "system", "content": text})

    def clear(self) -> None:
        """Forgets everything but the system message."""
        self.messages = self.messages[:1] if self.system else []

    def answer(self, question: str) -> None:
        """Prints the answer as it comes and keeps both. Ctrl-C ends it; what came until then is kept.

        Raises what the model's template or the engine has against it; the question is then forgotten.
        """
        from hotset.cli.run import figures
        from hotset.params import SamplingParams

        self.add("user", question)
        try:
            stream = self.llm.stream(self.messages, SamplingParams(**self.sampling))
        except Exception:
            self.messages.pop()
            raise
        with stream:
            try:
                for chunk in stream:
                    print(chunk.text, end="", flush=True)
            except KeyboardInterrupt:
                print(" [stopped]", end="")
        print(flush=True)
        self.add("assistant", stream.completion.text)
        self.stats = figures(stream.completion)
        if self.show_stats:
            from hotset.tools.run_stats import short

            self.stats += "\n" + short(self.llm.run_stats(stream.completion))
            note(self.stats)

    def undo(self) -> str | None:
        """Takes back the last question and its answer; returns the question."""
        while self.messages and self.messages[-1]["role"] != "system":
            message = self.messages.pop()
            if message["role"] == "user":
                return message["content"]
        return None


def obey(line: str, chat: Conversation) -> str:
    """Runs one /command and returns what to say about it.

    Raises UsageError for an unknown command, or what the command raises.
    """
    name, _, argument = line.removeprefix("/").partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        close = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean /{close[0]}?" if close else "/help lists them"
        raise UsageError(f"there is no command /{name}; {hint}")
    return command(chat, argument.strip())


def _help(chat: Conversation, argument: str) -> str:
    """what these commands do"""
    lines = [f"  /{name:<8} {command.__doc__}" for name, command in COMMANDS.items()]
    keys = [
        '  """        starts and ends a message of several lines; so does a \\ at the end of a line',
        "  Ctrl-C     stops an answer; twice, or Ctrl-D, leaves",
    ]
    return "\n".join([*lines, *keys])


def _clear(chat: Conversation, argument: str) -> str:
    """forget the conversation, keep the system message"""
    chat.clear()
    return "cleared"


def _system(chat: Conversation, argument: str) -> str:
    """TEXT: set the system message; empty removes it"""
    chat.set_system(argument)
    return "system message set" if argument else "system message removed"


def _undo(chat: Conversation, argument: str) -> str:
    """take back the last question and its answer"""
    question = chat.undo()
    return "nothing to take back" if question is None else f"took back: {question}"


def _save(chat: Conversation, argument: str) -> str:
    """FILE: write the conversation as JSON"""
    path = _path(argument, "save")
    try:
        path.write_text(json.dumps(chat.messages, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
    return f"saved {len(chat.messages)} messages to {path}"


def _load(chat: Conversation, argument: str) -> str:
    """FILE: go on with a saved conversation"""
    path = _path(argument, "load")
    try:
        messages = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path} is no saved conversation: {error}") from None
    if not isinstance(messages, list) or not all(_is_message(message) for message in messages):
        raise InputError(f'{path} is no saved conversation: want a list of {{"role": …, "content": …}}')
    chat.messages = messages
    return f"loaded {len(messages)} messages"


def _is_message(value: object) -> bool:
    roles = ("system", "user", "assistant")
    return isinstance(value, dict) and value.get("role") in roles and isinstance(value.get("content"), str)


def _path(argument: str, command: str) -> Path:
    if not argument:
        raise UsageError(f"/{command} wants a file name")
    try:
        return Path(argument).expanduser()
    except RuntimeError:
        raise UsageError(
            f"/{command} {argument}: nobody of that name has a home here; write the path in full"
        ) from None


def _set(chat: Conversation, argument: str) -> str:
    """NAME VALUE: change a sampling parameter; alone shows those set"""
    from hotset.params import SamplingParams

    if not argument:
        return ", ".join(f"{name} = {value}" for name, value in chat.sampling.items()) or "all defaults"
    name, _, text = argument.partition(" ")
    names = [f.name for f in fields(SamplingParams)]
    if name not in names:
        close = get_close_matches(name, names, n=1)
        raise UsageError(f"there is no parameter '{name}'; " + (f"did you mean {close[0]}?" if close else str(names)))
    if name in _NOT_HERE:
        raise UsageError(
            f"/set {name}: a chat has one answer, without the question; `hotset run` has --samples and --echo"
        )
    try:
        changed = {**chat.sampling, name: _value(name, text)}
        SamplingParams(**changed)
    except (ValueError, TypeError) as error:
        if isinstance(error, HotsetError):
            raise
        raise UsageError(
            f"/set {name}: '{text}' is no JSON value that fits; for example /set temperature 0.7"
        ) from None
    chat.sampling = changed
    return f"{name} = {text}"


def _value(name: str, text: str) -> Any:
    """A value in JSON, whose keys are texts: those of logit_bias are token ids."""
    value = json.loads(text)
    if name == "logit_bias" and isinstance(value, dict):
        return {int(key) if key.isdecimal() else key: bias for key, bias in value.items()}
    return value


def _stats(chat: Conversation, argument: str) -> str:
    """speed of the last answer"""
    return chat.stats


def _quit(chat: Conversation, argument: str) -> str:
    """leave"""
    chat.ended = True
    return ""


COMMANDS: dict[str, Callable[[Conversation, str], str]] = {
    "help": _help,
    "clear": _clear,
    "system": _system,
    "undo": _undo,
    "save": _save,
    "load": _load,
    "set": _set,
    "stats": _stats,
    "quit": _quit,
}
