"""`hotset profile`: runs text through a model and counts what its neurons do.

Stopped at any point, the same call goes on from the last checkpoint, which lies beside the profile to be.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from hotset import _core
from hotset.errors import UsageError
from hotset.formats.files import storage_error
from hotset.formats.profile import BATCHES, PROFILE_FILE, SAMPLE, Profile, fingerprint, write_profile
from hotset.formats.progress import Progress, silent
from hotset.tools.profile_counts import Bits, Counter
from hotset.tools.profile_neighbours import neighbours
from hotset.tools.profile_neighbours import working_bytes as neighbour_bytes
from hotset.tools.profile_text import LEAST_WINDOW, Window, digest, windows

if TYPE_CHECKING:
    from hotset.config import ModelConfig
    from hotset.formats.store import Store
    from hotset.tokenizer import Tokenizer

CHECKPOINT_TOKENS = 4096  # counted between two checkpoints


class Loaded(Protocol):
    """A model in memory; `hotset.LLM`."""

    store: Store
    config: ModelConfig
    tokenizer: Tokenizer

    @property
    def context(self) -> int: ...
    @property
    def max_step_tokens(self) -> int: ...
    @property
    def core(self) -> _core.Engine: ...


@dataclass(frozen=True, slots=True)
class ProfileOptions:
    tokens: int = 32768  # counted at most
    window: int = 512  # tokens run from an empty context at once
    sample: int = SAMPLE  # tokens from which neighbours are found; a layer of 14336 takes 4e11 multiply-adds
    trace: int = 512  # consecutive tokens kept for replays
    neighbours: int = 8  # of each neuron

    def check(self) -> None:
        """Raises UsageError."""
        if self.tokens < 1:
            raise UsageError(f"{self.tokens} tokens to profile; wanted at least 1")
        if self.window < LEAST_WINDOW + 1:
            raise UsageError(f"a window of {self.window} tokens; wanted at least {LEAST_WINDOW + 1}")


def working_bytes(layers: int, ffn: int, options: ProfileOptions) -> int:
    """Memory that profiling takes besides the model's, about."""
    row = layers * -(-ffn // 8)  # bits of one token
    counts = 2 * 2 * len(BATCHES) * layers * ffn * 8  # in the model's order as well as in the store's, at the end
    found = 8 * options.neighbours * layers * ffn
    kept = options.sample + 2 * options.trace + 3 * options.window
    return counts + found + kept * row + 2 * options.sample * ffn + neighbour_bytes(options.sample, ffn)


def profile(
    model: Loaded,
    text: Sequence[Path],
    out: Path | None = None,
    options: ProfileOptions | None = None,
    progress: Progress = silent,
) -> Profile:
    """Profiles a model and writes the result.

    Args:
        text: plain files, or .jsonl with `text` in every line.
        out: where to write; None: profile.safetensors in the model's store.
        progress: called with tokens done and in all, then with layers.
    Raises: UsageError, InputError (no text), StorageError, and what running the model raises.
    """
    options = options or ProfileOptions()
    options.check()
    out = out or model.store.path / PROFILE_FILE
    size = min(options.window, model.context)
    parts = windows(text, model.tokenizer, size, options.tokens)
    total = sum(len(window) - 1 for window in parts)
    source = digest(text)
    counter = Counter(len(model.config.layers), model.config.ffn, total, options.sample, options.trace)
    checkpoint = Checkpoint.beside(out, [model.store.info, fingerprint(model.store), source, asdict(options), size])
    checkpoint.load(counter)
    try:
        _count(model, parts, counter, checkpoint, lambda done: progress(done, total, "tokens"))
        checkpoint.save(counter)
        found = _finished(model, counter, source, options.neighbours, progress)
    except KeyboardInterrupt as stop:
        if counter.whole:
            checkpoint.save(counter)
        if checkpoint.path.is_file():
            stop.add_note(f"what was counted is kept in {checkpoint.path}; the same command goes on from there")
        raise
    write_profile(found, out)
    checkpoint.remove()
    return found


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What was counted so far, in a file whose name says of what."""

    path: Path

    @staticmethod
    def beside(out: Path, key: object) -> Checkpoint:
        of = hashlib.sha256(json.dumps([key, _core.__version__], sort_keys=True).encode()).hexdigest()
        return Checkpoint(out.with_name(f".{out.stem}-{of[:8]}.npz"))

    def load(self, counter: Counter) -> None:
        """Goes on where an earlier run stopped, if there was one and its file is whole."""
        try:
            with np.load(self.path, allow_pickle=False) as state:
                counter.restore({name: state[name] for name in state.files})
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return

    def save(self, counter: Counter) -> None:
        partial = self.path.with_suffix(".partial")
        try:
            with partial.open("wb") as file:
                np.savez(file, **counter.state())
            partial.replace(self.path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise storage_error(self.path, "cannot be written", error) from None

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


class _Report(Protocol):
    def __call__(self, done: int, /) -> None: ...


def _count(model: Loaded, parts: list[Window], counter: Counter, checkpoint: Checkpoint, report: _Report) -> None:
    """Counts the windows that `counter` has not seen yet."""
    before, saved = 0, counter.tokens
    model.core.record(activations=True)
    try:
        for window in parts:
            before += len(window) - 1
            if before <= counter.tokens:
                continue
            counter.add(record(model, window)[1:])
            report(counter.tokens)
            if counter.tokens - saved >= CHECKPOINT_TOKENS:
                checkpoint.save(counter)
                saved = counter.tokens
    finally:
        model.core.record(activations=False)


def record(model: Loaded, window: Window) -> Bits:
    """Which neurons each token of a window makes active, [tokens, layers, ceil(ffn / 8)], in store order.

    `model.core` must be recording activations.
    """
    core = model.core
    core.take_record()  # an interrupted step may have left rows
    seq = core.sequence_new()
    lengths = np.array([len(window)], np.int64)
    try:
        for start in range(0, len(window), model.max_step_tokens):
            part = window[start : start + model.max_step_tokens]
            core.step(np.array([seq], np.int32), np.array([len(part)], np.int32), part, np.zeros(1, np.uint8), lengths)
    finally:
        core.sequence_free(seq)
    return core.take_record()[0]


def _finished(model: Loaded, counter: Counter, source: str, k: int, progress: Progress) -> Profile:
    """The profile, its neurons by the model's own indices."""
    ffn, layers = counter.ffn, range(counter.layers)
    packed = model.store.neurons
    orders = [packed.read_order(layer) if packed else np.arange(ffn, dtype=np.int32) for layer in layers]
    counts = np.empty_like(counter.counts)
    trace = np.empty_like(counter.trace)
    near = []
    for layer, order in enumerate(orders):
        counts[:, :, layer, order] = counter.counts[:, :, layer]
        trace[:, layer] = np.packbits(_reordered(counter.trace[:, layer], order), axis=1, bitorder="little")
        near.append(neighbours(_reordered(counter.sample[:, layer], order), k))
        progress(layer + 1, counter.layers, "neighbours")
    return Profile(
        model=fingerprint(model.store),
        tokens=counter.tokens,
        text=source,
        hotset=_core.__version__,
        counts=tuple(counts[0]),
        independent=tuple(counts[1]),
        steps=counter.steps,
        reused=counter.reused,
        reusable=counter.reusable,
        neighbours=np.stack([ids for ids, _ in near]),
        nearness=np.stack([nearness for _, nearness in near]),
        trace=trace,
    )


def _reordered(bits: Bits, order: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Bits [rows, ceil(ffn / 8)] in store order -> [rows, ffn] in the model's own."""
    stored = np.unpackbits(bits, axis=1, count=order.size, bitorder="little").view(np.bool_)
    own = np.empty_like(stored)
    own[:, order] = stored
    return own
