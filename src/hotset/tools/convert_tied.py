"""A head stored although the config ties it to the embedding: mostly a copy, at times a head of its own."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from hotset.errors import ModelError
from hotset.formats.files import Json, quoted, read_at
from hotset.formats.safetensors import Entry
from hotset.models import Model, resolve

TIED = "tie_word_embeddings"
PIECE = 16 << 20  # bytes compared at once
Found = Mapping[str, tuple[Path, Entry]]


def untie(config: Json, model: Model, found: Found, ignore_keys: Collection[str], where: str) -> tuple[Json, Model]:
    """Config and model as they are, or untied where the checkpoint's head is no copy of its embedding.

    transformers keeps such a head, too (modeling_utils.py, `tie_weights`).

    Args:
        found: the checkpoint's tensors; where: the checkpoint, for messages.
    Raises: ModelError if the family has no model with a head of its own, or the key is ignored; StorageError.
    """
    head = next(_own_heads(model, found), None)
    if head is None:
        return config, model
    config = {**config, TIED: False}
    try:
        untied = resolve(config, ignore_keys=ignore_keys)
    except ModelError:  # some families are known tied only
        untied = model
    if not _has_head(untied):
        raise ModelError(
            f"{where}: {quoted(head)} differs from the embedding, to which {TIED} ties it, and hotset runs this model "
            f"with a tied head only; remove the tensor if the embedding is the head, or do not ignore {TIED}"
        )
    told = f"{head} differs from the embedding, so it is used although the config ties them ({TIED})"
    return config, replace(untied, notes=(*untied.notes, told))


def _has_head(model: Model) -> bool:
    return any(spec.role == "head" for spec in model.tensors)


def _own_heads(model: Model, found: Found) -> Iterator[str]:
    """Heads that a tied model would leave out though they are not its embedding."""
    names = {name: model.canonical(name) for name in found}
    embed = next(spec.source_name for spec in model.tensors if spec.role == "embed")
    embedding = next((found[name] for name, wanted in names.items() if wanted == embed), None)
    if _has_head(model) or embedding is None:
        return
    for name, wanted in names.items():
        if wanted is None and name.split(".")[-2:] == ["lm_head", "weight"] and not _equal(found[name], embedding):
            yield name


def _equal(a: tuple[Path, Entry], b: tuple[Path, Entry]) -> bool:
    (path, one), (other, two) = a, b
    if (one.dtype, one.shape) != (two.dtype, two.shape):
        return False
    pieces = ((at, min(PIECE, one.bytes - at)) for at in range(0, one.bytes, PIECE))
    return all(read_at(path, one.offset + at, n) == read_at(other, two.offset + at, n) for at, n in pieces)
