"""Chat templates: the features that models' templates use, and no way out of the sandbox."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hotset.errors import ModelError, UsageError
from hotset.tokenizer.chat import ChatTemplate, find_template

USER = [{"role": "user", "content": "Hi"}]


def render(source: str, messages: Any = USER, *, prompt: bool = True, **variables: Any) -> str:
    return ChatTemplate(source).render(messages, add_generation_prompt=prompt, **variables)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% for m in messages %}\n  {% if m.role %}\n{{ m['content'] }}\n  {% endif %}\n{% endfor %}\n", "Hi\n"),
        ("{% for m in 'abcd' %}{% if m == 'b' %}{% continue %}{% endif %}{% if m == 'd' %}{% break %}{% endif %}{{ m }}{% endfor %}", "ac"),  # noqa: E501
        ("{% set ns = namespace(n=0) %}{% for i in range(3) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "3"),
        ("{{ messages | tojson }}", '[{"role": "user", "content": "Hi"}]'),
        ('{{ {"a": "<é>"} | tojson(indent=1) }}', '{\n "a": "<é>"\n}'),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}!", "Hi!"),
        ("{{ bos_token }}{{ tools is none }}{% if add_generation_prompt %}>{% endif %}", "<s>True>"),
        ("{{ strftime_now('%Y') | int > 2000 }}", "True"),
        ("{{ messages[0].content.strip().split('i')[0] }}{{ '%s' % 1 }}{{ 'a' ~ 1 }}", "H1a1"),
        ("{%- macro f(x) -%}[{{ x }}]{%- endmacro -%}{{ f(messages | length) }}", "[1]"),
    ],
)  # fmt: skip
def test_features(source: str, text: str) -> None:
    assert render(source, bos_token="<s>") == text


def test_refusals_of_a_template_are_the_users_to_mend() -> None:
    with pytest.raises(UsageError, match="refuses these messages: roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize(
    "source",
    ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ cycler.__init__.__globals__ }}", "{{ 1 / 0 }}", "{{ x.y.z }}"],  # noqa: E501
)  # fmt: skip
def test_what_a_template_may_not_or_cannot_do_is_an_error(source: str) -> None:
    with pytest.raises(ModelError, match="chat template failed"):
        render(source)


@pytest.mark.parametrize("source", ["{% if %}", "{% endfor %}", "{{ unclosed"])
def test_a_broken_template_is_an_error(source: str) -> None:
    with pytest.raises(ModelError, match="not valid Jinja"):
        ChatTemplate(source)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "empty"),
        ("Hi", "is a str; wanted a list"),
        ({"role": "user", "content": "Hi"}, "is a dict; wanted a list"),
        (["Hi"], r"messages\[0\] is a str"),
        ([{"content": "Hi"}], r"messages\[0\] has no 'role'"),
        ([*USER, {"role": "user"}], r"messages\[1\] \(role 'user'\) has no 'content'"),
    ],
)
def test_malformed_messages_are_named(messages: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        render("x", messages)


def test_where_templates_are_found(tmp_path: Path) -> None:
    assert find_template(tmp_path, {}) is None
    assert find_template(tmp_path, {"chat_template": "in config"}) == "in config"
    several = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    assert find_template(tmp_path, {"chat_template": several}) == "d"
    (tmp_path / "chat_template.json").write_text('{"chat_template": "json"}')
    assert find_template(tmp_path, {"chat_template": "in config"}) == "json"
    (tmp_path / "chat_template.jinja").write_text("jinja")
    assert find_template(tmp_path, {}) == "jinja"
