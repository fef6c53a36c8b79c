"""What a model needs in memory, and the largest context that a budget allows. Pure functions but for `Host`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hotset.config import ModelConfig
from hotset.engine.backend import PAGE
from hotset.engine.cgroup import memory_group
from hotset.errors import MemoryBudgetError, UsageError

KvType = Literal["f16", "int8"]
MIB = 1 << 20

_DEFAULT_CONTEXT = 8192
_LEAST_CONTEXT = 512  # tokens; below this a model is of little use, so it is not chosen silently
_STEP_SIZES = (512, 256, 128, 64)  # tokens computed at once: fewer need less scratch memory but prefill slower
_TILE = 16  # rows that native/model/linear.cc computes together
_MOST_LOGITS = 32 * MIB  # of one step, which `scratch_bytes` counts a tile of, and the reserve the rest
# Logit rows of one step, thread stacks, KV page tables, samplers, growth of Python's heap while running.
RESERVE = 64 * MIB
_NO_LIMIT = 1 << 62
_PAGES = 64 * 1024  # limits are whole pages, of 64 KiB at most, so one set to the budget may be that much smaller
_SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_bytes(size: str | int) -> int:
    """'4GiB', '500 MB', '1024' or a number of bytes. Raises UsageError."""
    if isinstance(size, int) and not isinstance(size, bool):
        value = size
    else:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?", str(size).strip().upper())
        value = int(float(match[1]) * _SUFFIXES[match[2] or ""]) if match else 0
    if value <= 0:
        raise UsageError(f"{size!r} is no size; write a number and a unit, such as 4GiB or 500MB")
    return value


@dataclass(frozen=True, slots=True)
class Host:
    """Memory of this process and machine, in bytes."""

    base: int  # what the process holds before weights are loaded
    free: int  # what the machine or its cgroups can still give
    limit: int = _NO_LIMIT  # what they grant at most, whatever is free now

    @staticmethod
    def measure() -> Host:
        free, limit = _meminfo("MemAvailable"), _meminfo("MemTotal")
        if (group := memory_group()) is not None:
            free, limit = min(free, max(0, group.fullest.free)), min(limit, group.limit)
        return Host(base=resident_bytes(), free=free, limit=limit)

    def unlimited(self) -> Host:
        """The same for plans, which may be run where more is granted."""
        return replace(self, limit=_NO_LIMIT)


@dataclass(frozen=True, slots=True)
class Allotment:
    """How a budget is spent. kv_tokens: in all sequences together."""

    context: int
    kv_tokens: int
    max_step_tokens: int


def kv_bytes(config: ModelConfig, kv: KvType, tokens: int) -> int:
    """KV cache for `tokens`, whole pages of 64; layout in native/kernels/kernels.h."""
    width = -(-config.head_dim // 16) * 16
    scales = 2 * (-(-width // 32) + 1)
    page = PAGE * (4 * width if kv == "f16" else 2 * width + scales)
    return -(-tokens // PAGE) * page * len(config.layers) * config.kv_heads


def logit_rows(vocab: int, max_step_tokens: int) -> int:
    """Most rows of logits that a step may ask for: the memory of each is 4 bytes for every token of the vocabulary."""
    return min(max_step_tokens, max(1, _MOST_LOGITS // (4 * vocab * _TILE)) * _TILE)


def scratch_bytes(config: ModelConfig, max_step_tokens: int) -> int:
    """Activations of one step: upper bound of native/model/forward.cc, logits of 16 rows included."""
    heads, kv_heads = config.heads * config.head_dim, config.kv_heads * config.head_dim
    floats = [config.hidden] * 3 + [heads] * 2 + [kv_heads] * 2 + [config.ffn]
    quantized = [config.hidden, heads, config.ffn]
    row = 4 * sum(map(_padded, floats)) + sum(_padded(n) * 5 // 4 for n in quantized)
    buffers = len(floats) + len(quantized) + 1
    return max_step_tokens * row + _TILE * 4 * _padded(config.vocab) + buffers * 2 * MIB  # each ends on a huge page


def room_for_neurons(
    config: ModelConfig, resident_bytes: int, host: Host, *, kv: KvType, memory: int | None, allotment: Allotment
) -> int:
    """Bytes that are left for the neurons of a packed model when all else has its memory; may be below 0.

    config: with the FFN's width that the scratch memory knows, as for `allot`. Without a budget a twentieth of what the
    machine has free is left alone.
    """
    total = memory - host.base if memory is not None else host.free - host.free // 20
    scratch = scratch_bytes(config, allotment.max_step_tokens)
    return total - resident_bytes - RESERVE - scratch - kv_bytes(config, kv, allotment.kv_tokens)


def allot(
    config: ModelConfig,
    weight_bytes: int,
    host: Host,
    *,
    kv: KvType,
    memory: int | None,
    context: int | None,
    kv_tokens: int | None,
    mapped: bool = False,
) -> Allotment:
    """The largest context, up to what is asked for, that fits.

    memory: hard budget in bytes; None: what the machine has free. mapped: weights come from the page cache, so without
        a budget they need no free memory.
    Raises: UsageError if the context exceeds the model's; MemoryBudgetError naming the least budget that works, or the
        host's limit if more than that would be taken.
    """
    _check(config, context, kv_tokens)
    fixed = weight_bytes + RESERVE
    unlimited = host.free - (RESERVE if mapped else fixed)
    room = unlimited if memory is None else memory - host.base - fixed
    wanted = context or min(config.context, _DEFAULT_CONTEXT)
    least = context or min(config.context, _LEAST_CONTEXT)
    for step in _STEP_SIZES:
        left = room - scratch_bytes(config, step)
        fitting = max(0, left) // kv_bytes(config, kv, PAGE) * PAGE
        if fitting >= (enough := max(wanted, kv_tokens or 0)):
            found = Allotment(wanted, enough, step)
            break
    else:
        if kv_tokens is not None or fitting < least:
            needed = fixed + scratch_bytes(config, step) + kv_bytes(config, kv, max(least, kv_tokens or 0))
            raise _too_small(memory, host, needed, weight_bytes, max(least, kv_tokens or 0))
        found = Allotment(fitting, fitting, step)
    if memory is not None:
        held = host.base + (RESERVE if mapped else fixed)  # the kernel takes mapped weights back before it ends anybody
        step = found.max_step_tokens
        check_limit(held + scratch_bytes(config, step) + kv_bytes(config, kv, found.kv_tokens), host, memory)
    return found


def check_limit(taken: int, host: Host, memory: int | None) -> None:
    """Refuses what a budget allows and the kernel would end this process for.

    taken: bytes, those of the process included. Raises MemoryBudgetError.
    """
    if taken > host.limit + _PAGES:
        budget = "" if memory is None else f" within the budget of {_mib(memory)}"
        raise MemoryBudgetError(
            f"the model would take {_mib(taken)}{budget}, and this machine or its cgroup grants {_mib(host.limit)} in "
            f"all: give a budget of at most {host.limit // MIB}MiB, or raise the limit"
        )


def _too_small(memory: int | None, host: Host, needed: int, weights: int, tokens: int) -> MemoryBudgetError:
    needs = f"weights {_mib(weights)}, the rest for a context of {tokens} tokens {_mib(needed - weights)}"
    if memory is None:
        return MemoryBudgetError(
            f"{_mib(host.free)} of memory are free; the model needs {_mib(needed)} ({needs}). Close other programs, "
            "ask for a smaller context, or convert the model to a smaller weight format"
        )
    least = -(-(needed + host.base) // MIB)
    return MemoryBudgetError(
        f"a memory budget of {_mib(memory)} is too small; the least that works is {least}MiB ({needs}, this process "
        f"{_mib(host.base)}). Raise the budget, ask for a smaller context, or convert to a smaller weight format"
    )


def _check(config: ModelConfig, context: int | None, kv_tokens: int | None) -> None:
    if context is not None and (isinstance(context, bool) or not isinstance(context, int) or context < 2):
        raise UsageError(f"context is {context!r}; wanted a whole number of at least 2 tokens")
    if context is not None and context > config.context:
        raise UsageError(f"context is {context} tokens; the model's limit is {config.context}")
    if kv_tokens is not None and kv_tokens < (context or 1):
        raise UsageError(f"kv_tokens is {kv_tokens}; wanted at least the context of {context or 1}")


def _padded(n: int) -> int:
    return -(-n // 64) * 64


def _mib(count: int) -> str:
    return f"{-(-count // MIB)}MiB"


def resident_bytes() -> int:
    """Of this process, now."""
    return _kib("/proc/self/status", "VmRSS")


def _meminfo(key: str) -> int:
    return _kib("/proc/meminfo", key)


def _kib(path: str, key: str) -> int:
    """A line `key: 123 kB` of a file of /proc, in bytes. The system promises these files; so a miss is a bug."""
    for line in Path(path).read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"{path} has no {key}")
