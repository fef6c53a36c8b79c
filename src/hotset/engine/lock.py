"""A lock that is given in order of asking, so that a thread that steps in a loop does not starve one that waits."""

from __future__ import annotations

import threading
from collections import deque


class FairLock:
    """First come, first served; `threading.Lock` would mostly be taken again by the thread that just released it.

    Not re-entrant. Waiting can be interrupted by Ctrl-C.
    """

    def __init__(self) -> None:
        self._state = threading.Lock()  # of the two fields below; held only for an instant
        self._taken = False
        self._waiting: deque[threading.Lock] = deque()

    def __enter__(self) -> None:
        with self._state:
            if not self._taken:
                self._taken = True
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        try:
            turn.acquire()
        except BaseException:
            self._leave(turn)
            raise

    def __exit__(self, *exception: object) -> None:
        with self._state:
            self._pass_on()

    def _pass_on(self) -> None:
        if self._waiting:
            self._waiting.popleft().release()  # the next one holds the lock from here on
        else:
            self._taken = False

    def _leave(self, turn: threading.Lock) -> None:
        """Gives up waiting; if the turn has come in the meantime, the next one gets it."""
        with self._state:
            if turn in self._waiting:
                self._waiting.remove(turn)
            else:
                self._pass_on()
