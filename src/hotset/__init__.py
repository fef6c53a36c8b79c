"""hotset runs language models that do not fit in memory, at nearly the speed they would have if they did.

>>> from hotset import LLM
>>> with LLM("smollm2-135m-instruct") as llm:
...     print(llm.chat([{"role": "user", "content": "Hello!"}]).text)
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hotset.errors import HotsetError
    from hotset.llm import LLM, Chunk, Completion, RunStats
    from hotset.params import SamplingParams
    from hotset.tokenizer import Tokenizer

__version__ = "0.1.0"
__all__ = ["LLM", "Chunk", "Completion", "HotsetError", "RunStats", "SamplingParams", "Tokenizer", "__version__"]

# Loaded on first use, so that `hotset --help` does not wait for the engine.
_HOMES = {
    "LLM": "hotset.llm",
    "Chunk": "hotset.llm",
    "Completion": "hotset.llm",
    "HotsetError": "hotset.errors",
    "RunStats": "hotset.llm",
    "SamplingParams": "hotset.params",
    "Tokenizer": "hotset.tokenizer",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'hotset' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
