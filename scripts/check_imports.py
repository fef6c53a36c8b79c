"""Checks that imports and #includes point down only, by the two tables below.

Rooms are the first folder (or module) under src/hotset and under native. A line `room: rooms` says what a room may
use besides itself and the standard library; whatever is absent is forbidden. Exits 1 and lists every breach.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent

_BASE = "errors"
_LOW = f"{_BASE} config quant _core"
PYTHON_ROOMS = {
    "errors": "",
    "config": _BASE,
    "_core": "",
    "quant": f"{_BASE} config _core",
    "models": f"{_BASE} config quant",
    "formats": _LOW,
    "tokenizer": f"{_BASE} formats",
    "planner": f"{_BASE} config",
    "reference": f"{_LOW} models",
    "params": _BASE,
    "engine": f"{_LOW} params models",
    "loader": f"{_LOW} models formats planner engine tools",  # tools: only to turn a budget into a plan
    # The one arrow upwards: a name must become a store before it can be run. Measurements among the tools drive `llm`.
    "llm": f"{_LOW} params models formats planner tokenizer engine loader tools",
    "tools": f"{_LOW} params models formats tokenizer planner llm engine loader",
    "train": f"{_BASE} models formats tokenizer",  # PyTorch lives in this room alone
    "cli": f"{_LOW} __init__ params models formats tokenizer planner tools train engine llm",
    "server": f"{_LOW} __init__ params models formats tokenizer tools engine llm",
    "__init__": f"{_LOW} params tokenizer llm engine",
    "__main__": "cli",
}
NATIVE_ROOMS = {
    "base": "",
    "io": "base",
    "quant": "base",
    "kernels": "base quant",
    "cache": "base io",
    "sampling": "base quant kernels",
    "model": "base quant kernels io",
    "predictor": "base quant kernels model",
    "pipeline": "base quant kernels io cache model predictor",
    "bind": "base quant kernels io cache sampling model predictor pipeline",
}
Uses = Callable[[Path], Iterator[tuple[int, str]]]
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"')


def python_uses(path: Path) -> Iterator[tuple[int, str]]:
    """(line, room) of every import of hotset in one file, lazy ones included."""
    package = ("hotset", *path.relative_to(ROOT / "src/hotset").parent.parts)
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (start, node.module) if part)
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "hotset" else [module]
        for name in names:
            head, _, rest = name.partition(".")
            if head == "hotset" and isinstance(node, ast.Import | ast.ImportFrom):
                yield node.lineno, _python_room(rest)


def _python_room(dotted: str) -> str:
    """'tools.convert' -> 'tools'; a public name such as 'LLM' belongs to the package itself."""
    room = dotted.partition(".")[0]
    return room if room in PYTHON_ROOMS else "__init__"


def native_uses(path: Path) -> Iterator[tuple[int, str]]:
    """(line, room) of every quoted include in one file."""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if match := _INCLUDE.match(line):
            target = match[1]
            yield number, target.partition("/")[0] if "/" in target else path.relative_to(ROOT / "native").parts[0]


def breaches(files: list[Path], base: Path, rooms: dict[str, str], uses: Uses) -> Iterator[str]:
    for path in files:
        room = path.relative_to(base).parts[0].removesuffix(".py")
        if room not in rooms:
            yield f"{path.relative_to(ROOT)}: room '{room}' is not in the table of scripts/check_imports.py"
            continue
        for line, used in uses(path):
            if used != room and used not in rooms[room].split():
                yield f"{path.relative_to(ROOT)}:{line}: {room} may not use {used}"


def main() -> int:
    package, native = ROOT / "src/hotset", ROOT / "native"
    sources = [path for suffix in ("*.cc", "*.h") for path in sorted(native.rglob(suffix))]
    found = [
        *breaches(sorted(package.rglob("*.py")), package, PYTHON_ROOMS, python_uses),
        *breaches(sources, native, NATIVE_ROOMS, native_uses),
    ]
    print("\n".join(found) or f"check_imports: {len(PYTHON_ROOMS)} + {len(NATIVE_ROOMS)} rooms, arrows point down")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
