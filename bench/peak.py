"""What the int8 units of this host can do at most, and how much of that a prompt of a model asks for."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from hotset.formats.store import open_store
from hotset.models import resolve

_PEAK = re.compile(r"^(\S+)\s+peak int8\s+([\d.]+) GMAC/s", re.MULTILINE)


def int8_peak(build: Path, threads: int = 1) -> float | None:
    """Multiply-adds a second of as many loops at once that do nothing else; None for an ISA that has no such loop.

    build: folder with bench_kernels.
    """
    command = [str(build / "bench_kernels"), "--kernel", "none", "--dram-mib", "1", "--seconds", "0.3"]
    loops = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(threads)]
    found = [_PEAK.search(loop.communicate()[0]) for loop in loops]
    rates = [float(match[2]) * 1e9 for match in found if match]
    return sum(rates) if len(rates) == threads else None


def macs_per_token(store: Path) -> int:
    """Multiply-adds with weights for one token of a prompt: all layers; neither attention's own nor the head's."""
    c = resolve(open_store(store).config).config
    attention = 2 * c.hidden * (c.heads + c.kv_heads) * c.head_dim
    return len(c.layers) * (attention + (3 if c.gated else 2) * c.hidden * c.ffn)
