"""A lock that is given in order of asking, so that a thread that steps in a loop does not starve one that waits."""

from __future__ import annotations

import threading
from collections import deque


class FairLock:
    """First come, first served; `threading.Lock` would mostly be taken again by the thread that just released it.

    Not re-entrant. Ctrl-C, which may come between any two instructions, interrupts waiting and leaves no lock behind.
    """

    def __init__(self) -> None:
        self._state = threading.Lock()  # of the fields below; held only for an instant
        self._holder: threading.Lock | None = None  # the turn that has come
        self._thread = 0  # whose turn that is
        self._waiting: deque[threading.Lock] = deque()

    def __enter__(self) -> None:
        turn = threading.Lock()
        turn.acquire()
        try:
            with self._state:
                # The thread that holds it and comes again was interrupted on its way out.
                if self._holder is None or self._thread == threading.get_ident():
                    self._holder = turn
                    turn.release()
                else:
                    self._waiting.append(turn)
            turn.acquire()
            self._thread = threading.get_ident()
        except BaseException:
            self._leave(turn)
            raise

    def __exit__(self, *exception: object) -> None:
        with self._state:
            self._pass_on()

    def _pass_on(self) -> None:
        self._holder = self._waiting.popleft() if self._waiting else None
        if self._holder is not None:
            self._holder.release()
        self._thread = 0  # at last: until then an interrupted thread may come again

    def _leave(self, turn: threading.Lock) -> None:
        """Gives up waiting; if the turn has come in the meantime, the next one gets it."""
        with self._state:
            if turn in self._waiting:
                self._waiting.remove(turn)
            elif self._holder is turn:
                self._pass_on()
