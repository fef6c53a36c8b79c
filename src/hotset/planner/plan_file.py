"""A plan as a value and as a file: what one host does with one model under one budget (docs/reference/plan.md)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from hotset.errors import FormatError, StorageError, UsageError
from hotset.planner.model_cost import Forecast
from hotset.planner.sizes import (
    GAP_BYTES,
    MERGED_BYTES,
    MOST_MERGED,
    MOST_PARALLEL,
    POLICIES,
    PREDICTORS,
    READ_BLOCK,
    Predictor,
    knows_gates,
)

FORMAT_VERSION = 1
Embedding = Literal["memory", "drive"]
_MOST_BYTES = 1 << 20  # of the file; a model of 1000 layers takes some ten KB


@dataclass(frozen=True, slots=True)
class MadeFor:
    """Everything that a plan depends on. One made for anything else is refused."""

    model: str  # fingerprint of the packed store
    host: str  # fingerprint of CPU, memory and number of threads
    hotset: str  # version
    memory: int | None  # budget in bytes; None: what the machine has
    kv: str
    predict: str  # "exact" or "auto"


@dataclass(frozen=True, slots=True)
class Plan:
    """hot: neurons of each layer that stay in memory; cold_slots: of all other neurons that are there at a time.

    memory: bytes by purpose, the process and its reserve included; their sum is what the plan takes.
    """

    made_for: MadeFor
    predictor: Predictor
    hot: tuple[int, ...]
    cold_slots: int
    policy: str
    backend: str
    depth: int  # reads in flight
    threads: int
    context: int
    kv_tokens: int
    prefill_chunk: int  # tokens of a prompt computed at once; layers are read once for each chunk
    memory: Mapping[str, int]
    loss: float | None = None  # of perplexity that the predictor may cost, relative; None: as it was calibrated
    energy: float | None = None  # share given up where neurons are in memory, for a low-rank predictor
    embedding: Embedding = "memory"  # "drive": the rows of each step's tokens are read from there
    spill: int | None = None  # places for a layer's missing neurons, where scores are estimates; None: as usual
    drafts: bool = False  # the predictor only drafts tokens, which a pass over all neurons verifies
    merged_bytes: int = MERGED_BYTES  # most that missing neurons near each other are read with as one request
    gap_bytes: int = GAP_BYTES  # most between two of them
    parallel: int = 1  # sequences decoded at once, for which neurons are placed
    overlap: bool = True  # False: a layer's reads are waited for before it is computed; for comparisons
    forecast: Forecast | None = None
    notes: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether every neuron that is not zero has its part in every answer, whatever was allowed."""
        return self.drafts or self.predictor == "all" or knows_gates(self.predictor)

    @property
    def bytes(self) -> int:
        return sum(self.memory.values())

    def as_json(self) -> dict[str, Any]:
        bounds = {} if self.forecast is None else {"bound_tokens_per_s": self.forecast.bound_tokens_per_s}
        data = asdict(self) | {"memory": dict(self.memory)}
        data["forecast"] = None if self.forecast is None else asdict(self.forecast) | bounds
        return {"format_version": FORMAT_VERSION, **data}

    def check(self, wanted: MadeFor, source: str) -> None:
        """Raises UsageError if this plan was made for another model, host, version or format of the KV cache."""
        mine = self.made_for
        for what, got, want in (
            ("another model", mine.model, wanted.model),
            ("another host", mine.host, wanted.host),
            (f"hotset {mine.hotset}, not {wanted.hotset}", mine.hotset, wanted.hotset),
            (f"a KV cache of {mine.kv}, not {wanted.kv}", mine.kv, wanted.kv),
        ):
            if got != want:
                raise UsageError(f"{source} was made for {what}; make it again with `hotset plan`")


def write_plan(plan: Plan, path: Path) -> None:
    """Raises StorageError."""
    text = json.dumps(plan.as_json(), indent=1).replace("\n  ", "\n ")
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")  # others may write the same plan
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text + "\n")
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise StorageError(f"{path} cannot be written: {error.strerror}") from None


def read_plan(path: Path) -> Plan:
    """Raises: StorageError (no such file), FormatError (not a plan of this version)."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise FormatError(f"{path} has {path.stat().st_size} bytes; a plan has at most {_MOST_BYTES}")
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}; make it with `hotset plan`") from None
    except (ValueError, RecursionError):
        raise FormatError(f"{path} is no JSON; make it again with `hotset plan`") from None
    version = data.pop("format_version", None) if isinstance(data, dict) else None
    if type(version) is not int or version != FORMAT_VERSION:
        raise FormatError(f"{path} is a plan of version {version!a:.40}, wanted {FORMAT_VERSION}: make it again")
    try:
        return _parsed(data)
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path} is not a whole plan ({error!a:.100}); make it again with `hotset plan`") from None


def _parsed(data: dict[str, Any]) -> Plan:
    forecast = data["forecast"]
    if forecast is not None:
        forecast = Forecast(**{name: value for name, value in forecast.items() if name != "bound_tokens_per_s"})
    given = data | {"made_for": MadeFor(**data["made_for"]), "forecast": forecast}
    # Files of earlier versions do not say whether the predictor drafts: in exact mode, and there alone.
    drafts = data.get("drafts", data["predictor"] == "low-rank" and given["made_for"].predict == "exact")
    plan = Plan(**given | {"hot": tuple(data["hot"]), "notes": tuple(data["notes"]), "drafts": drafts})
    spill = () if plan.spill is None else (plan.spill,)
    sizes = (*plan.hot, *spill, plan.cold_slots, *plan.memory.values())
    numbers = (
        *sizes,
        plan.merged_bytes,
        plan.gap_bytes,
        plan.depth,
        plan.threads,
        plan.context,
        plan.kv_tokens,
        plan.prefill_chunk,
        plan.parallel,
    )
    if not all(type(n) is int and 0 <= n < 1 << 40 for n in numbers):
        raise ValueError("a number is no whole number of at least 0")
    if min(plan.depth, plan.threads, plan.context, plan.prefill_chunk) < 1:
        raise ValueError("depth, threads, context and prefill_chunk are at least 1")
    if plan.merged_bytes % READ_BLOCK or plan.merged_bytes > MOST_MERGED:
        raise ValueError(f"merged_bytes is a multiple of {READ_BLOCK} and at most {MOST_MERGED}")
    if not 1 <= plan.parallel <= MOST_PARALLEL:
        raise ValueError(f"parallel is 1 to {MOST_PARALLEL}")
    if plan.predictor not in PREDICTORS or plan.policy not in POLICIES:
        raise ValueError("unknown predictor or policy")
    if plan.predictor == "read-gate" and any(plan.hot):
        raise ValueError("where gates are read for every token no neurons are hot")
    if plan.embedding not in ("memory", "drive"):
        raise ValueError("embedding is memory or drive")
    if type(plan.overlap) is not bool or type(plan.drafts) is not bool:
        raise ValueError("overlap and drafts are true or false")
    if plan.drafts and plan.predictor != "low-rank":
        raise ValueError("only predictor low-rank drafts")
    if plan.predictor == "low-rank" and plan.made_for.predict == "exact" and not plan.drafts:
        raise ValueError("made for exact answers, where predictor low-rank only drafts")
    return plan
