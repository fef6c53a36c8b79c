"""Parts of a plan that the user may choose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hotset.errors import UsageError
from hotset.planner.plan import POLICY
from hotset.planner.sizes import MOST_MERGED, POLICIES, PREDICTORS, READ_BLOCK

SETTINGS = (
    "predictor", "hot", "cold_slots", "policy", "embedding", "backend", "depth", "merged_bytes", "gap_bytes", "threads",
    "context", "prefill_chunk", "parallel",
)  # fmt: skip
_MAY_BE_NONE = ("hot", "cold_slots", "merged_bytes", "gap_bytes")
_TEXTS = ("predictor", "policy", "embedding", "backend")


def checked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as `--set` gives them, texts and numbers. Raises UsageError."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in SETTINGS:
            raise UsageError(f"a plan has no setting {name[:40]!r}; there are {', '.join(SETTINGS)}")
        if name in _TEXTS:
            found[name] = str(value)
            continue
        least = 0 if name in _MAY_BE_NONE else 1
        if not str(value).isdecimal() or int(value) < least:
            raise UsageError(f"{name}={value!s:.40}: want a whole number of at least {least}")
        found[name] = int(value)
    if found.get("predictor", "all") not in PREDICTORS:
        raise UsageError(f"predictor={found['predictor']!a:.40}: want {', '.join(PREDICTORS[:-1])} or {PREDICTORS[-1]}")
    if found.get("policy", POLICY) not in POLICIES:
        raise UsageError(f"policy={found['policy']!a:.40}: want {', '.join(POLICIES[:-1])} or {POLICIES[-1]}")
    merged = found.get("merged_bytes", 0)
    if merged % READ_BLOCK or merged > MOST_MERGED:
        raise UsageError(f"merged_bytes={merged}: want a multiple of {READ_BLOCK}, at most {MOST_MERGED}")
    if found.get("embedding", "memory") not in ("memory", "drive"):
        raise UsageError(f"embedding={found['embedding']!a:.40}: want memory or drive")
    return found


def chosen_reads(given: Mapping[str, Any]) -> dict[str, int]:
    """Fields of ReadSizes among settings."""
    names = {"merged": "merged_bytes", "gap": "gap_bytes"}
    return {field: given[name] for field, name in names.items() if name in given}
