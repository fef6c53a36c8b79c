"""Chat templates: Jinja text that comes with a model, run in a sandbox.

Features and names are those that Hugging Face's templates rely on (transformers, `apply_chat_template`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hotset.errors import ModelError, UsageError
from hotset.tokenizer.files import read_json, read_text

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment


def find_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The chat template of a folder: chat_template.jinja, chat_template.json, or the one in tokenizer_config.json."""
    if (folder / "chat_template.jinja").is_file():
        return read_text(folder / "chat_template.jinja")
    found = (read_json(folder / "chat_template.json") or config).get("chat_template")
    if isinstance(found, list):  # several named templates
        found = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}.get("default")
    return found if isinstance(found, str) and found else None


class ChatTemplate:
    """A compiled template. Raises ModelError if it cannot be compiled."""

    def __init__(self, source: str) -> None:
        from jinja2 import TemplateError

        try:
            self._template = _environment().from_string(source)
        except (TemplateError, RecursionError) as error:
            raise ModelError(f"the model's chat template is not valid Jinja: {error}") from None

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool, **variables: Any) -> str:
        """Raises UsageError for malformed messages or what the template refuses, ModelError if the template fails."""
        _check(messages)
        values = {"tools": None, "documents": None, "bos_token": "", "eos_token": ""} | variables
        try:
            return self._template.render(messages=messages, add_generation_prompt=add_generation_prompt, **values)
        except _RefusedError as error:
            raise UsageError(f"the model's chat template refuses these messages: {error}") from None
        except Exception as error:  # a template can fail in any way that Python can
            raise ModelError(f"the model's chat template failed: {type(error).__name__}: {error}") from None


class _RefusedError(Exception):
    """A template called raise_exception."""


def _check(messages: Sequence[Mapping[str, Any]]) -> None:
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise UsageError(f"messages is a {type(messages).__name__}; wanted a list of {{'role': …, 'content': …}}")
    if not messages:
        raise UsageError("messages is empty; a chat needs at least one message")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise UsageError(f"messages[{i}] is a {type(message).__name__}; wanted {{'role': …, 'content': …}}")
        if not isinstance(message.get("role"), str):
            raise UsageError(f"messages[{i}] has no 'role'; wanted 'system', 'user' or 'assistant'")
        if "content" not in message and "tool_calls" not in message:
            raise UsageError(f"messages[{i}] (role {message['role']!r}) has no 'content'")


def _environment() -> ImmutableSandboxedEnvironment:
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %}…{% endgeneration %} marks the assistant's text for training; here it is only text."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    return environment


def _refuse(message: str) -> NoReturn:
    raise _RefusedError(message)


def _now(form: str) -> str:
    from datetime import datetime

    return datetime.now().astimezone().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: Jinja's own filter escapes <, >, & and ' for web pages."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
