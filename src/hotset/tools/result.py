"""The record of a measurement: host, exact command, all samples, medians. Written as JSON, read by bench/report.py."""

from __future__ import annotations

import json
import os
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hotset.errors import StorageError

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Series:
    """Repeated measurements of one thing."""

    test: str  # prefill512, decode128, load, perplexity, …
    unit: str  # tokens/s, s, bytes, …
    samples: tuple[float, ...]
    threads: int = 0  # 0: not a matter of threads
    engine: str = "hotset"
    model: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    def as_json(self) -> dict[str, Any]:
        names = ("engine", "model", "test", "unit", "threads")
        return {name: getattr(self, name) for name in names} | {"samples": list(self.samples), "median": self.median}


def record(what: str, series: list[Series], **more: Any) -> dict[str, Any]:
    """A result: what was measured, where, how and every sample. `more` adds keys (model, memory, ratios, …)."""
    from hotset.tools.doctor import as_json, host

    return {
        "format_version": FORMAT_VERSION,
        "what": what,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shown([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "host": as_json(host()),
        "load_average": os.getloadavg()[0],
        **more,
        "series": [entry.as_json() for entry in series],
    }


def shown(command: Sequence[str]) -> str:
    """A command as a shell takes it, without where things lie on this machine.

    Absolute paths, also behind `name=`, become relative to the working folder, or mere names if they lead elsewhere.
    """
    here = Path.cwd()

    def short(word: str) -> str:
        name, equals, value = word.partition("=")
        path = Path(value if equals else word)
        if not path.is_absolute():
            return word
        return name * bool(equals) + equals + str(path.relative_to(here) if path.is_relative_to(here) else path.name)

    return shlex.join(map(short, command))


def write(result: Mapping[str, Any], path: Path) -> None:
    """Writes a result. Raises StorageError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write the result to {path}: {error.strerror}") from error


def peak_memory_bytes() -> int:
    """Most memory that this process has had resident, mapped files included.

    Not ru_maxrss, which begins with what the parent held when it forked.
    """
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
