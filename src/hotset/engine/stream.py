"""An answer as it comes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

from hotset.engine.engine import Engine
from hotset.engine.output import Chunk, Completion
from hotset.engine.sequence import Request


class Stream(Iterator[Chunk]):
    """Chunks of one answer as they come. Closing it, or dropping it, cancels what is left.

    Several streams may be open at once; each advances all of them. Not for two threads at once.
    Raises: what its request failed with, such as ModelError if the model computes no numbers; UsageError if the LLM was
    closed before the answer was whole.
    """

    def __init__(self, engine: Engine, request: Request) -> None:
        self._engine, self._request = engine, request

    def __next__(self) -> Chunk:
        try:
            while not self._request.chunks and not self._request.finished:
                self._engine.advance(self._request)
        except BaseException:
            self.close()
            raise
        if not self._request.chunks:
            if self._request.error is not None:  # it failed in a step that another request drove
                raise self._request.error
            raise StopIteration
        return self._request.chunks.popleft()

    def close(self) -> None:
        """Cancels the request, if it is not finished."""
        self._engine.cancel(self._request)

    def abandon(self) -> None:
        """Like close, but without waiting for a running step: the engine cancels the request before its next one."""
        self._request.abandoned = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.abandon()  # not close: this may run in the middle of a step of the same thread

    @property
    def completion(self) -> Completion:
        """The answer as far as it has come."""
        return self._request.completion()
