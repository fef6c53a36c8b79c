"""The core as the parts of an engine have it: `close` takes it back from all of them, so that its memory is freed."""

from __future__ import annotations

from typing import Any, NoReturn

from hotset.engine.backend import Core
from hotset.errors import UsageError

CLOSED = "this LLM is closed; make a new one"


class Revocable:
    """Stands for a core until `revoke`: whoever keeps this does not keep the core's memory.

    Raises: UsageError for whatever is asked of the core afterwards.
    """

    def __init__(self, core: Core) -> None:
        self._core: Core | None = core

    def __getattr__(self, name: str) -> Any:
        core = self._core
        return refuse() if core is None else getattr(core, name)

    def revoke(self) -> None:
        self._core = None


def refuse(*_: object) -> NoReturn:
    """Takes the place of functions that hold the core. Raises: UsageError."""
    raise UsageError(CLOSED)
