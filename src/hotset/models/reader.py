"""A config read strictly: types and ranges are checked, and every key is accounted for.

Ignored keys give plausible wrong text (a RoPE base that is not read, say), so a key that nothing asked for and that is
not known to be harmless is an error, like a missing key that has no default in transformers.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from enum import Enum
from typing import Any, NoReturn, TypeVar

from hotset.errors import ModelError

T = TypeVar("T")
D = TypeVar("D")
LIMIT = 2**31  # no size, count or index of a real model reaches it, and products of two still fit int64


class Absent(Enum):
    """Default of a key that has none."""

    ERROR = 0


REQUIRED = Absent.ERROR


class Reader:
    """A JSON object whose keys are taken one by one. A null value counts as absent."""

    def __init__(
        self, values: Mapping[str, Any], *, source: str = "config.json", prefix: str = "", ignore: Collection[str] = ()
    ) -> None:
        self.source = source
        self.prefix = prefix  # of the names in messages: "rope_scaling."
        self._ignore = frozenset(ignore)
        self._values = {key: value for key, value in values.items() if prefix + key not in self._ignore}
        self._taken: set[str] = set()

    def has(self, key: str) -> bool:
        """Whether the key is there, be it null."""
        return key in self._values

    def found(self, key: str) -> Any:
        """The value as it is, None if absent; the key counts as taken."""
        self._taken.add(key)
        return self._values.get(key)

    def _fallback(self, key: str, default: D | Absent) -> D:
        if isinstance(default, Absent):
            raise ModelError(
                f"{self.source} lacks the key '{self.prefix}{key}', which changes the result and has no default; "
                "take the file from the original model, or add the key"
            )
        return default

    def typed(self, key: str, kind: type[T], what: str, default: D | Absent = REQUIRED) -> T | D:
        value = self.found(key)
        if value is None:
            return self._fallback(key, default)
        if not isinstance(value, kind):
            self.refuse(key, what)
        return value

    def size(self, key: str, default: D | Absent = REQUIRED) -> int | D:
        """A whole number in 1 .. 2^31 - 1."""
        return self._whole(key, 1, default)

    def count(self, key: str, default: D | Absent = REQUIRED) -> int | D:
        """A whole number in 0 .. 2^31 - 1."""
        return self._whole(key, 0, default)

    def _whole(self, key: str, least: int, default: D | Absent) -> int | D:
        value = self.found(key)
        if value is None:
            return self._fallback(key, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < LIMIT:
            self.refuse(key, f"a whole number from {least} to {LIMIT - 1}")
        return value

    def number(self, key: str, default: D | Absent = REQUIRED) -> float | D:
        """A finite number."""
        return self._real(key, -math.inf, "a finite number", default)

    def positive(self, key: str, default: D | Absent = REQUIRED) -> float | D:
        """A finite number above 0."""
        return self._real(key, 0.0, "a number above 0", default)

    def _real(self, key: str, above: float, what: str, default: D | Absent) -> float | D:
        value = self.found(key)
        if value is None:
            return self._fallback(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(key, what)
        if not (abs(value) < 1e300 and value > above):  # as big as that only a slip of the pen is; NaN fails too
            self.refuse(key, what)
        return float(value)

    def flag(self, key: str, default: D | Absent = REQUIRED) -> bool | D:
        return self.typed(key, bool, "true or false", default)

    def text(self, key: str, default: D | Absent = REQUIRED) -> str | D:
        return self.typed(key, str, "a text", default)

    def section(self, key: str) -> Reader | None:
        """A nested object, or None if absent or empty; its own keys are accounted for by its own `finish`."""
        value = self.typed(key, dict, "an object", None)
        if not value:
            return None
        return Reader(value, source=self.source, prefix=f"{self.prefix}{key}.", ignore=self._ignore)

    def strings(self, key: str, choices: Collection[str], length: int) -> list[str] | None:
        """A list of `length` texts out of `choices`, or None if absent."""
        value = self.typed(key, list, "a list", None)
        if value is None:
            return None
        if len(value) != length or any(not isinstance(item, str) or item not in choices for item in value):
            self.refuse(key, f"a list of {length} out of {', '.join(sorted(choices))}")
        return value

    def only(self, key: str, *allowed: object, why: str = "hotset does not compute any other") -> None:
        """The key may be absent, or have one of these values."""
        value = self.found(key)
        if value is not None and not any(type(value) is type(a) and value == a for a in allowed):
            self.refuse(key, " or ".join(show(a) for a in allowed) or "its absence", why)

    def refuse(self, key: str, wanted: str, why: str = "") -> NoReturn:
        """Raises ModelError about the value of `key`."""
        name = self.prefix + key
        raise ModelError(
            f"{self.source}: '{name}' is {show(self._values.get(key))}; wanted {wanted}{f' ({why})' if why else ''}. "
            f"If it does not matter for this model, --ignore-key {name} runs it as if the key were absent"
        )

    def finish(self, inert: Collection[str] = ()) -> None:
        """Raises ModelError unless every key was taken, is null or is in `inert`."""
        unknown = [k for k, v in self._values.items() if k not in self._taken and k not in inert and v is not None]
        if not unknown:
            return
        listed = ", ".join(f"'{self.prefix}{key}' = {show(self._values[key])}" for key in unknown[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        flags = " ".join(f"--ignore-key {self.prefix}{key}" for key in unknown[:5])
        raise ModelError(
            f"{self.source} has keys that hotset does not know and that may change the result: {listed}{more}. "
            f"If they do not, run again with {flags}"
        )


def show(value: object) -> str:
    """A value as JSON would have it, shortened for a message."""
    import json

    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
