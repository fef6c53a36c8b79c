"""A host that was probed, in tests: rates that are known, where a cache keeps them."""

from __future__ import annotations

import json
from pathlib import Path

from hotset.planner.rates import FORMAT_VERSION, Rates
from hotset.tools.probe import probe_path

RATES = Rates(
    threads=2,
    seq_bytes_per_s=4e9,
    random_reads_per_s={4096: 50_000, 8192: 40_000},
    best_depth={4096: 64, 8192: 32},
    cpu_us_per_read={4096: 4.0},
    memory_bytes_per_s={1: 12e9, 2: 20e9},
    int8_gmac_per_s={1: 100.0, 2: 200.0},
)


def write_probe(cache: Path, store: Path) -> None:
    """As `hotset probe` would have with $HOTSET_CACHE at `cache`, but without its samples."""
    path = cache / "probes" / probe_path(store).name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"format_version": FORMAT_VERSION, "rates": RATES.as_json()}))
