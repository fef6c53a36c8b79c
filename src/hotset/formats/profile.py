"""`profile.safetensors`: what a model's neurons did on some text (docs/reference/profile.md).

Neurons are counted by the model's own indices, so a profile holds for a dense store and for every order of packing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotset.errors import FormatError, InputError, UsageError
from hotset.formats.files import Json, is_count, parse_json, quoted, read_at, storage_error
from hotset.formats.safetensors import Header, read_header
from hotset.formats.store import Store

PROFILE_FILE = "profile.safetensors"
FORMAT_VERSION = 1
# Of a neuron active in 1 % of tokens this many show 41 +- 6: enough to order neurons and to size a cache.
LEAST_TOKENS = 4096
SAMPLE = 1024  # tokens from which neighbours are found
BATCHES = tuple(range(1, 9))  # tokens computed in one step
REUSE_WINDOWS = (1, 5, 20)  # tokens

Counts = NDArray[np.int64]
_DTYPES = {"I64": "<i8", "I32": "<i4", "F32": "<f4", "U8": "u1"}


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """One profile. Shapes: L layers, N neurons in a layer, B batch sizes 1-8."""

    model: str  # fingerprint, see `fingerprint`
    tokens: int  # counted; a text's first token of each window is not
    text: str  # SHA-256 of the text files
    hotset: str  # version that wrote it
    counts: tuple[Counts, ...]  # B x [L, N]: steps of b consecutive tokens in which the neuron was active
    independent: tuple[Counts, ...]  # the same for b tokens from different places of the text
    steps: Counts  # [2, B]: how many steps `counts` and `independent` are of
    reused: Counts  # [L, 3]: active neurons that one of the 1, 5, 20 tokens before had active, too
    reusable: Counts  # [L, 3]: active neurons of tokens that have so many before them
    neighbours: NDArray[np.int32]  # [L, N, k]: most often active together, nearest first; itself where there are fewer
    nearness: NDArray[np.float32]  # [L, N, k]: tokens with both active over tokens with either active
    trace: NDArray[np.uint8]  # [tokens, L, ceil(N / 8)]: of consecutive tokens, bit i % 8 of byte i / 8

    @property
    def layers(self) -> int:
        return int(self.counts[0].shape[0])

    @property
    def ffn(self) -> int:
        return int(self.counts[0].shape[1])

    @property
    def sampled_every(self) -> int:
        """Neighbours are from the first of every so many tokens, those of the trace included."""
        return max(1, self.tokens // SAMPLE)

    def rates(self, batch: int, *, independent: bool = False) -> NDArray[np.float64]:
        """[L, N]: share of steps of `batch` tokens in which each neuron is active."""
        counts = (self.independent if independent else self.counts)[batch - 1]
        rates: NDArray[np.float64] = counts / max(int(self.steps[int(independent), batch - 1]), 1)
        return rates

    def zeros(self) -> NDArray[np.float64]:
        """[L]: share of neurons that a token leaves at zero, mean over tokens."""
        zeros: NDArray[np.float64] = 1.0 - self.rates(1).mean(axis=1)
        return zeros

    def reuse(self) -> NDArray[np.float64]:
        """[L, 3]: share of a token's active neurons that were active in the 1, 5, 20 tokens before it, too."""
        shares: NDArray[np.float64] = self.reused / np.maximum(self.reusable, 1)
        return shares

    def active(self) -> NDArray[np.bool_]:
        """The trace, [tokens, L, N]."""
        return np.unpackbits(self.trace, axis=2, count=self.ffn, bitorder="little").view(np.bool_)


def fingerprint(store: Store) -> str:
    """SHA-256 of what a model is before it is quantized or packed: its config and where its weights came from."""
    config = {key: value for key, value in store.config.items() if key != "hotset"}
    text = json.dumps([config, store.info.get("source")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def load_profile(store: Store, path: Path | None = None, *, least_tokens: int = LEAST_TOKENS) -> Profile:
    """The profile of a store, for use in a plan.

    path: None: profile.safetensors in the store.
    Raises: UsageError (there is none, or it is another model's), InputError (of fewer than `least_tokens` tokens),
    FormatError, StorageError.
    """
    path = path or store.path / PROFILE_FILE
    if not path.is_file():
        raise UsageError(f"there is no {path}; make it with `hotset profile {store.path} --text FILE`")
    profile = read_profile(path)
    if profile.model != fingerprint(store):
        raise UsageError(f"{path} is the profile of another model; make one with `hotset profile {store.path}`")
    if profile.tokens < least_tokens:
        raise InputError(
            f"{path} comes from {profile.tokens} tokens of text; at least {least_tokens} are needed: profile more text"
        )
    return profile


def write_profile(profile: Profile, path: Path) -> None:
    """Writes the file whole or not at all. Raises StorageError."""
    arrays = _arrays(profile)
    header: dict[str, object] = {"__metadata__": {"hotset": json.dumps(_metadata(profile))}}
    position = 0
    for name, (dtype, array) in arrays.items():
        end = position + array.nbytes
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for _, array in arrays.values():
                file.write(np.ascontiguousarray(array).data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise storage_error(path, "cannot be written", error) from None


def read_profile(path: Path) -> Profile:
    """Raises: StorageError (no such file), FormatError (not a profile of this version, or damaged)."""
    header = read_header(path)
    section = _section(path, header)
    layers, ffn = section["layers"], section["ffn"]
    per_batch = [f"{kind}.{b}" for kind in ("counts", "independent") for b in BATCHES]
    shapes = {"steps": (2, len(BATCHES)), **dict.fromkeys(per_batch, (layers, ffn))}
    shapes |= dict.fromkeys(("reused", "reusable"), (layers, len(REUSE_WINDOWS)))
    found = {name: _read(path, header, name, "I64", shape) for name, shape in shapes.items()}
    near = _read(path, header, "neighbours", "I32", (layers, ffn, None))
    profile = Profile(
        **{name: section[name] for name in ("model", "tokens", "text", "hotset")},
        counts=tuple(found[name] for name in per_batch[: len(BATCHES)]),
        independent=tuple(found[name] for name in per_batch[len(BATCHES) :]),
        steps=found["steps"],
        reused=found["reused"],
        reusable=found["reusable"],
        neighbours=near,
        nearness=_read(path, header, "nearness", "F32", near.shape),
        trace=_read(path, header, "trace", "U8", (None, layers, -(-ffn // 8))),
    )
    _check(path, profile)
    return profile


def _metadata(profile: Profile) -> Json:
    names = ("model", "tokens", "text", "hotset", "layers", "ffn")
    return {"format_version": FORMAT_VERSION, **{name: getattr(profile, name) for name in names}}


def _arrays(profile: Profile) -> Mapping[str, tuple[str, NDArray[Any]]]:
    """All tensors; those with the widest numbers first, so that every one is aligned."""
    wide = {"steps": profile.steps, "reused": profile.reused, "reusable": profile.reusable}
    for kind, counts in (("counts", profile.counts), ("independent", profile.independent)):
        wide |= {f"{kind}.{b}": array for b, array in zip(BATCHES, counts, strict=True)}
    return {name: ("I64", array) for name, array in wide.items()} | {
        "neighbours": ("I32", profile.neighbours),
        "nearness": ("F32", profile.nearness),
        "trace": ("U8", profile.trace),
    }


def _section(path: Path, header: Header) -> Json:
    if "hotset" not in header.metadata:
        raise FormatError(f"{path} is a safetensors file, but no profile: its metadata has no 'hotset'")
    section = parse_json(header.metadata["hotset"].encode(errors="replace"), f"{path}: metadata 'hotset'")
    version = section.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise FormatError(
            f"{path} is a profile of version {quoted(str(version))}; this hotset reads {FORMAT_VERSION}: profile again"
        )
    counts, texts = ("layers", "ffn", "tokens"), ("model", "text", "hotset")
    if not all(is_count(section.get(k)) for k in counts) or not all(isinstance(section.get(k), str) for k in texts):
        raise FormatError(f"{path}: the metadata must have {', '.join((*counts, *texts))}")
    if section["layers"] == 0 or section["ffn"] == 0:
        raise FormatError(f"{path} is a profile of {section['layers']} layers of {section['ffn']} neurons")
    return section


def _read(path: Path, header: Header, name: str, dtype: str, shape: tuple[int | None, ...]) -> NDArray[Any]:
    entry = header.entries.get(name)
    if entry is None:
        raise FormatError(f"{path} has no tensor {quoted(name)}; profile again")
    fits = len(entry.shape) == len(shape) and all(n in (None, m) for n, m in zip(shape, entry.shape, strict=True))
    if entry.dtype != dtype or not fits:
        wanted = ", ".join("n" if n is None else str(n) for n in shape)
        raise FormatError(f"{path}: {name} is {entry.dtype} {list(entry.shape)}, wanted {dtype} [{wanted}]")
    return np.frombuffer(read_at(path, entry.offset, entry.bytes), _DTYPES[dtype]).reshape(entry.shape)


def _check(path: Path, profile: Profile) -> None:
    """What no run can give. Raises FormatError."""
    for place, kind in enumerate((profile.counts, profile.independent)):
        for b, counts in zip(BATCHES, kind, strict=True):
            if counts.min() < 0 or counts.max() > profile.steps[place, b - 1]:
                raise FormatError(f"{path}: counts of batch size {b} are not between 0 and the number of steps")
    if profile.steps[0, 0] != profile.tokens:
        raise FormatError(f"{path}: {profile.tokens} tokens, but {profile.steps[0, 0]} steps of one")
    if profile.neighbours.size and not 0 <= profile.neighbours.min() <= profile.neighbours.max() < profile.ffn:
        raise FormatError(f"{path}: neighbours name neurons beyond the {profile.ffn} of a layer")
    if (profile.reused < 0).any() or (profile.reused > profile.reusable).any():
        raise FormatError(f"{path}: more neurons were reused than active")
