"""Where time goes, as a timeline that Perfetto (ui.perfetto.dev) and chrome://tracing show.

Rows: every thread's spans; the drive's reads, as many rows as were in flight at once; counters. Format: "Trace Event
Format" of Chromium, JSON. A read ends where its completion was taken, which may be later than the drive was done.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Self

import numpy as np
from numpy.typing import NDArray

from hotset import _core
from hotset.errors import StorageError, UsageError

_SPAN, _READ, _COUNTER = range(3)
_NO_LAYER = 2**32 - 1
_COLUMNS = 5
_WINDOW_NS = 10_000_000  # over which the drive's rate is averaged
_ENOUGH = 0.25  # share of a ring after which it is emptied; one step may need the rest

Events = NDArray[np.uint64]


class Trace:
    """Records from its creation to `close`, which writes the file. One at a time in a process.

    `flush` is to be called between steps: it moves what was recorded out of memory, into a file without a name.
    Raises: StorageError if the file cannot be written; UsageError while another trace runs.
    """

    _running = False

    def __init__(self, path: str | Path) -> None:
        if Trace._running:
            raise UsageError("another trace is being recorded; close it first")
        self.path = Path(path).expanduser()
        self._raw = self._open_beside()
        Trace._running = True
        self._lost, self._whole = 0, 0  # events; bytes of whole records
        self._full: OSError | None = None  # why nothing is recorded any more
        self._threads: dict[int, str] = {}
        _core.trace_take()  # what an earlier trace left
        self._start = _core.trace_now()
        _core.trace_enable(True)

    def flush(self, *, force: bool = False) -> None:
        """Empties the rings if they have filled up, or by `force`.

        If the drive is full, the timeline ends there, and `close` says so: no answer fails for it.
        """
        if self._full is not None or (not force and _core.trace_filled() < _ENOUGH):
            return
        try:
            for thread, name, lost, events in _core.trace_take():
                self._threads[thread] = name
                self._lost += lost
                self._append(thread, events)
        except OSError as error:
            self._full = error
            self._raw.truncate(self._whole)
            _core.trace_enable(False)

    def close(self) -> None:
        """Writes the file; a second call does nothing. Raises: StorageError if it is not whole."""
        if self._raw.closed:
            return
        _core.trace_enable(False)
        Trace._running = False
        try:
            self.flush(force=True)
            with self.path.open("w") as out:
                self._write(out)
        except OSError as error:
            raise StorageError(
                f"cannot write the trace {self.path}: {error.strerror}; free some space or name a file elsewhere"
            ) from None
        finally:
            self._raw.close()
        if self._full is not None:
            raise StorageError(
                f"the trace {self.path} ends early: {self._full.strerror}; free some space or name a file elsewhere"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _append(self, thread: int, events: Events) -> None:
        """One record. Not by NumPy's tofile, which is silent about what its buffer could not write."""
        record = memoryview(np.array([thread, len(events)], np.uint64).tobytes() + events.tobytes())
        self._raw.seek(self._whole)
        while record:
            record = record[self._raw.write(record) :]
        self._whole = self._raw.tell()

    def _open_beside(self) -> IO[bytes]:
        try:
            self.path.open("a").close()
            return tempfile.TemporaryFile(dir=self.path.parent, buffering=0)
        except OSError as error:
            raise StorageError(
                f"cannot write the trace {self.path}: {error.strerror}; name a file in a folder that you may write to"
            ) from None

    def _write(self, out: IO[str]) -> None:
        drive = _Drive(self._start)
        names = _core.trace_names()
        head = {"displayTimeUnit": "ms", "otherData": {"lost_events": self._lost}}
        out.write(json.dumps(head)[:-1] + ', "traceEvents": [\n')
        labels = [*self._threads.items(), (0, "drive")]
        out.write(
            ",\n".join(
                json.dumps({"ph": "M", "pid": 1, "tid": thread, "name": "thread_name", "args": {"name": name}})
                for thread, name in labels
            )
        )
        for thread, events in self._records():
            for line in (*_spans(events, thread, names, self._start), *drive.reads(events)):
                out.write(",\n" + line)
        for line in drive.rates():
            out.write(",\n" + line)
        out.write("\n]}\n")

    def _records(self) -> Iterator[tuple[int, Events]]:
        self._raw.seek(0)
        while self._raw.tell() < self._whole:
            thread, count = np.fromfile(self._raw, np.uint64, 2).tolist()
            yield thread, np.fromfile(self._raw, np.uint64, count * _COLUMNS).reshape(count, _COLUMNS)


def _spans(events: Events, thread: int, names: list[str], start: int) -> Iterator[str]:
    """Lines of spans and counters."""
    values = events[:, 2].copy().view(np.float64)
    for (name, begin, end, kind, layer), value in zip(events.tolist(), values.tolist(), strict=True):
        at = f'"name": "{names[name]}", "pid": 1, "tid": {thread}, "ts": {(begin - start) / 1e3:.3f}'
        if kind == _SPAN:
            of = "" if layer == _NO_LAYER else f', "args": {{"layer": {layer}}}'
            yield f'{{"ph": "X", {at}, "dur": {(end - begin) / 1e3:.3f}{of}}}'
        elif kind == _COUNTER:
            yield f'{{"ph": "C", {at}, "args": {{"value": {value:g}}}}}'


class _Drive:
    """Reads as asynchronous slices in as few rows as they need, how many are in flight, and bytes a second."""

    def __init__(self, start: int) -> None:
        self._start = start
        self._free_from: list[int] = []  # ns, by row
        self._bytes: dict[int, int] = {}  # read, by window of time

    def reads(self, events: Events) -> Iterator[str]:
        reads = events[events[:, 3] == _READ]
        reads = reads[np.argsort(reads[:, 1], kind="stable")]
        for _, begin, end, _, size in reads.tolist():
            window = (end - self._start) // _WINDOW_NS
            self._bytes[window] = self._bytes.get(window, 0) + size
            at = f'"cat": "drive", "name": "read", "id": {self._row(begin, end)}, "pid": 1, "tid": 0'
            yield f'{{"ph": "b", {at}, "ts": {(begin - self._start) / 1e3:.3f}, "args": {{"bytes": {size}}}}}'
            yield f'{{"ph": "e", {at}, "ts": {(end - self._start) / 1e3:.3f}}}'
        yield from self._depth(reads)

    def rates(self) -> Iterator[str]:
        windows = {0, *self._bytes, *(window + 1 for window in self._bytes)}  # back to 0 after the last read
        for window in sorted(windows):
            rate = self._bytes.get(window, 0) / _WINDOW_NS * 1e3  # bytes/ns -> MB/s
            yield _counter("drive MB/s", window * _WINDOW_NS, rate)

    def _row(self, begin: int, end: int) -> int:
        for row, free_from in enumerate(self._free_from):
            if free_from <= begin:
                self._free_from[row] = end
                return row
        self._free_from.append(end)
        return len(self._free_from) - 1

    def _depth(self, reads: Events) -> Iterator[str]:
        times = np.concatenate([reads[:, 1], reads[:, 2]]).astype(np.int64) - self._start
        steps = np.repeat(np.array([1, -1]), len(reads))
        order = np.argsort(times, kind="stable")
        changes = times[order]
        depths = np.cumsum(steps[order])
        last = np.append(changes[1:] != changes[:-1], np.ones(min(1, changes.size), bool))  # of each moment
        for i in np.flatnonzero(last):
            yield _counter("reads in flight", int(changes[i]), float(depths[i]))


def _counter(name: str, ns: int, value: float) -> str:
    at = f'"name": "{name}", "pid": 1, "ts": {ns / 1e3:.3f}'
    return f'{{"ph": "C", {at}, "args": {{"value": {value:g}}}}}'
