"""What becomes of an allocation that failed: one error that says what had no room and what takes less there."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from hotset.errors import HotsetError, MemoryBudgetError

# What PyTorch's allocators and those of its libraries say in an error that is no MemoryError.
_SAID = ("can't allocate memory", "cannot allocate memory", "out of memory", "could not create a memory")


@contextmanager
def memory_for(what: str, *less: str) -> Iterator[None]:
    """Raises MemoryBudgetError if there is no memory for `what`; other errors pass.

    less: what takes less there, the best first; '' for what does not apply to this run. A smaller model always does.
    """
    try:
        yield
    except HotsetError:
        raise
    except (RuntimeError, OSError, MemoryError) as error:
        if not is_failed_allocation(error):
            raise
        ways = [way for way in less if way]
        rest = f"{', '.join(ways)} or a smaller model" if ways else "a smaller model"
        raise MemoryBudgetError(f"out of memory for {what}; try {rest}") from None


def is_failed_allocation(error: Exception) -> bool:
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return any(text in str(error).lower() for text in _SAID)


def halved(flag: str, value: int) -> str:
    """'--micro-batch 4' of 8; '' of 1."""
    return f"{flag} {value // 2}" if value > 1 else ""


def a_pass(sequences: int, length: int) -> str:
    return f"a pass of {sequences} sequence{'s' if sequences > 1 else ''} of {length} tokens"
