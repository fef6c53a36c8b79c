"""Budgets that the kernel enforces: a packed real model in control groups of exactly its budget."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.budget import least_budget, measure, problems, relu_store, whole_budget
from bench.cgroup import CgroupError, drop_page_cache, place

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def store(smollm2_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        place()
        drop_page_cache()
    except CgroupError as error:
        pytest.skip(str(error))
    return relu_store(smollm2_store, tmp_path_factory.mktemp("relu") / "packed")


def test_no_budget_is_exceeded_and_no_text_depends_on_it(store: Path) -> None:
    least, whole = least_budget(store), whole_budget(store)
    assert least < whole
    runs = [measure(store, least + (whole - least) * i // 5, tokens=16) for i in range(6)]
    assert problems(runs) == []
    assert runs[-1].tokens_per_s > runs[0].tokens_per_s
