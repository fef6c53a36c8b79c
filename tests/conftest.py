"""Models that tests of all kinds share. pytest puts this folder on the path, so they can share modules too."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotset import LLM
from hotset.tools import resolve_model
from hotset.tools.convert import convert

# A shell starts background jobs with SIGINT ignored, and children inherit that; tests of Ctrl-C would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent
REAL_MODEL = "smollm2-135m-instruct"


@pytest.fixture(scope="session")
def stories_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stories260K in float32: the smallest model that writes English."""
    path = tmp_path_factory.mktemp("models") / "stories260k"
    convert(ROOT / "tests/golden/data/stories260k", path, quant="f32")
    return path


@pytest.fixture(scope="session")
def stories(stories_store: Path) -> Iterator[LLM]:
    with LLM(stories_store) as llm:
        yield llm


@pytest.fixture(scope="session")
def smollm2_store() -> Path:
    """SmolLM2-135M-Instruct, fetched and converted once; kept in $HOTSET_TEST_CACHE or .test-models."""
    cache = os.environ.get("HOTSET_TEST_CACHE") or str(ROOT / ".test-models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOTSET_CACHE", cache)
        return resolve_model(REAL_MODEL)


@pytest.fixture(scope="session")
def smollm2(smollm2_store: Path) -> Iterator[LLM]:
    with LLM(smollm2_store) as llm:
        yield llm
