"""From the name of a model to a loaded one, with a progress bar where that takes long."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from hotset.cli.options import EngineFlags
from hotset.cli.progress import progress_bar
from hotset.cli.text import note

if TYPE_CHECKING:
    from hotset.llm import LLM


def load_model(model: str, flags: EngineFlags, *, quiet: bool = False) -> LLM:
    """Fetches and converts the model if need be, then loads it. Raises what these raise."""
    from hotset.llm import LLM
    from hotset.tools import resolve_model

    warnings.showwarning = _tell
    arguments = flags.arguments()
    with progress_bar(not quiet) as progress:
        store = resolve_model(model, ignore_keys=arguments.get("ignore_keys", ()), progress=progress)
    llm = LLM(store, **arguments)
    if llm.plan is not None and not quiet and "plan" not in arguments:  # whoever made a plan was told
        for remark in llm.plan.notes:
            note(f"note: {remark}")
    return llm


def _tell(message: Warning | str, *_: Any, **__: Any) -> None:
    """What the library warns of while running, such as a memory limit that falls, in a line of its own."""
    note(f"hotset: {message}")
