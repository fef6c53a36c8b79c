"""Whether a plan that was made before has room in this process and on this host."""

from __future__ import annotations

from pathlib import Path

from hotset.engine.budget import RESERVE, Host, check_limit
from hotset.errors import HotsetError, MemoryBudgetError
from hotset.planner.plan_file import MadeFor, Plan, read_plan


def grown(plan: Plan, base: int) -> int:
    """Bytes that the process holds beyond what the plan counts; 0 for as little as the reserve is for.

    base: what it holds before weights are loaded.
    """
    more = base - plan.memory.get("process", 0)
    return more if more >= RESERVE // 8 else 0


def cached_plan(path: Path, wanted: MadeFor, memory: int, base: int) -> Plan | None:
    """A plan made earlier for the same, unless the process has grown since so that it no longer fits."""
    try:
        plan = read_plan(path)
    except HotsetError:  # none yet, or damaged: a new one takes its place
        return None
    fits = plan.bytes <= memory and not grown(plan, base)
    return plan if plan.made_for == wanted and fits else None


def check_budget(plan: Plan, budget: int | None, more: int) -> None:
    """more: of what the plan takes, by how much the process has grown since it was made. Raises MemoryBudgetError."""
    if budget is None or plan.bytes <= budget:
        return
    parts = ", ".join(f"{name} {size}" for name, size in plan.memory.items() if size)
    again = "make a plan for it with `hotset plan`"
    if more:
        again = f"plan again without the file, as this process holds {more} bytes more than the one that made it"
    raise MemoryBudgetError(
        f"the plan takes {plan.bytes} bytes ({parts}), the budget is {budget}: raise it, or {again}"
    )


def check_here(plan: Plan, budget: int | None, host: Host) -> None:
    """Raises MemoryBudgetError if the host does not grant what the plan takes, whatever the budget."""
    # Without a budget it was made for what was free besides all that the process holds, files that others share, too.
    besides = plan.memory.get("process", 0) if budget is None else 0
    check_limit(plan.bytes - besides, host, budget)
