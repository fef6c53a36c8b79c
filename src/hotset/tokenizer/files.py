"""Small text files of a model's folder, read with clear errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hotset.errors import FormatError


def read_text(path: Path) -> str:
    """Raises FormatError if the file is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not UTF-8: {error}") from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty if there is no such file. Raises FormatError if it is something else."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{path}: holds a {type(value).__name__}; wanted a JSON object")
    return value
