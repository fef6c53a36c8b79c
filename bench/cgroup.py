"""A program under a memory limit that counts its page cache: Linux' control groups, version 1 or 2. Needs root.

The group is made inside this process's own (version 1), or beside it where version 2 keeps memory limits, and removed
afterwards. Limits around it stay in force.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

MOUNT = Path("/sys/fs/cgroup")
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


class CgroupError(RuntimeError):
    """No memory limit can be set here."""


class Files(NamedTuple):
    """How one version names what is used here."""

    limit: str
    used: str
    peak: str  # most bytes so far, page cache included
    kills: str  # has a line "oom_kill N"
    no_swap: tuple[str, str]  # file and what to write into it


V1 = Files(
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "memory.max_usage_in_bytes",
    "memory.oom_control",
    ("memory.swappiness", "0"),
)
V2 = Files("memory.max", "memory.current", "memory.peak", "memory.events", ("memory.swap.max", "0"))


class Group(NamedTuple):
    folder: Path
    files: Files

    @property
    def peak_bytes(self) -> int:
        return int((self.folder / self.files.peak).read_text())

    @property
    def limit_bytes(self) -> int:
        return int((self.folder / self.files.limit).read_text())

    def set_limit(self, limit_bytes: int) -> None:
        """Raises OSError where version 1 cannot take enough back; version 2 ends processes instead."""
        (self.folder / self.files.limit).write_text(str(limit_bytes))

    def enter(self, command: Sequence[str]) -> list[str]:
        """The command of a shell that enters the group, then becomes the program: all it touches is counted there."""
        return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.folder / "cgroup.procs"), *command]

    @property
    def kills(self) -> int:
        """Processes that the kernel ended for want of memory."""
        counts = dict(line.split() for line in (self.folder / self.files.kills).read_text().splitlines())
        return int(counts["oom_kill"])


@dataclass(frozen=True, slots=True)
class Finished:
    """A program that ran in a group of its own."""

    command: list[str]
    returncode: int
    output: str
    errors: str
    peak_bytes: int
    killed: bool  # for want of memory


def run(
    command: Sequence[str], limit_bytes: int | None, *, seconds: float, environment: Mapping[str, str] | None = None
) -> Finished:
    """Runs a program in a group of its own; limit None: nothing but its peak is counted.

    Raises: CgroupError; subprocess.TimeoutExpired after `seconds`.
    """
    with limited_group(limit_bytes) as group:
        done = subprocess.run(
            group.enter(command), capture_output=True, text=True, check=False, timeout=seconds, env=environment
        )
        return Finished(
            list(command), done.returncode, done.stdout, done.stderr, group.peak_bytes, killed=group.kills > 0
        )


def drop_page_cache() -> None:
    """Makes the next run cold. Raises CgroupError."""
    os.sync()  # pages not yet written cannot be dropped
    try:
        DROP_CACHES.write_text("1")
    except OSError as error:
        raise CgroupError(f"the page cache cannot be dropped ({error.strerror}); run this as root") from None


def place(proc: Path = Path("/proc/self/cgroup"), mount: Path = MOUNT) -> tuple[Path, Files]:
    """The folder in which groups with a memory limit can be made. Raises CgroupError."""
    groups = [line.split(":", 2)[1:] for line in proc.read_text().splitlines()]
    for controllers, path in groups:
        if "memory" in controllers.split(","):
            return mount / "memory" / path.lstrip("/"), V1
    for own in (mount / path.lstrip("/") for controllers, path in groups if not controllers):
        # A group with processes in it cannot limit its children (but the root can), so a parent has to.
        for folder in (f for f in (own, *own.parents) if f == mount or mount in f.parents):
            if "memory" in _words(folder / "cgroup.subtree_control"):
                return folder, V2
    raise CgroupError(f"{mount} has no memory controller (neither version 1 nor 2), so no limit can be enforced here")


@contextmanager
def limited_group(limit_bytes: int | None) -> Iterator[Group]:
    """A group in which no process is yet; all must have left it at the end. Raises CgroupError."""
    parent, files = place()
    group = Group(parent / f"hotset-bench-{os.getpid()}", files)
    try:
        group.folder.mkdir()
    except OSError as error:
        raise CgroupError(f"{group.folder} cannot be made ({error.strerror}); run this as root") from None
    try:
        if limit_bytes is not None:
            group.set_limit(limit_bytes)
        swap, value = files.no_swap
        if (group.folder / swap).exists():  # not where the kernel counts no swap
            (group.folder / swap).write_text(value)
        yield group
    finally:
        group.folder.rmdir()  # what it cached goes to the group around it


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
