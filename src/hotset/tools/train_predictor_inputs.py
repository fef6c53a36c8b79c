"""What predictors are trained from: inputs of the FFNs, kept on the drive, and their neurons, layer by layer."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hotset import _core
from hotset.config import ModelConfig
from hotset.errors import FormatError
from hotset.formats.files import read_at, storage_error
from hotset.formats.neurons import NeuronInfo
from hotset.formats.progress import Progress
from hotset.formats.store import Store
from hotset.models import Model
from hotset.tools.profile_text import Window

Floats = NDArray[np.float32]


def capture(
    core: _core.Engine, parts: Sequence[Window], path: Path, config: ModelConfig, step: int, progress: Progress
) -> Floats:
    """Runs windows and keeps the FFNs' inputs of all tokens but the first of each: a file, [layers, tokens, hidden].

    Memory holds those of one step at a time. Raises StorageError (no space for the file).
    """
    total = sum(len(window) - 1 for window in parts)
    kept = _mapped(path, (len(config.layers), total, config.hidden))
    core.record(activations=False, inputs=True)
    done = 0
    for window in parts:
        seq = core.sequence_new()
        for start in range(0, len(window), step):
            part = window[start : start + step]
            run(core, seq, part, len(window))
            found = core.take_record()[1][start == 0 :]
            kept[:, done : done + len(found)] = found.transpose(1, 0, 2)
            done += len(found)
        core.sequence_free(seq)
        progress(done, total, "tokens")
    core.record(activations=False)
    return kept


def _mapped(path: Path, shape: tuple[int, ...]) -> Floats:
    """A new file of zeros, in memory by need. Raises StorageError, and then there is no file."""
    try:
        kept: Floats = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        _reserve(path)
    except OSError as error:
        with suppress(OSError):  # the first error is the one to tell
            path.unlink(missing_ok=True)
        size = 4 * math.prod(shape)
        raise storage_error(path, f"cannot be written ({size} bytes; fewer tokens take less)", error) from None
    return kept


def _reserve(path: Path) -> None:
    """Takes a file's room on the drive. Without, a full drive would end the process (SIGBUS) as the mapping is used."""
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # this file system cannot
                raise


def run(core: _core.Engine, seq: int, tokens: Window, length: int, want: int = 0, draft: bool = False) -> None:
    """One step of one sequence that will have `length` tokens. want, draft: as Engine.step."""
    one = np.array([seq], np.int32), np.array([len(tokens)], np.int32)
    core.step(*one, tokens, np.array([want], np.uint8), np.array([length], np.int64), draft)


@dataclass(frozen=True, slots=True)
class Neurons:
    """One layer's FFN up to the products, in the order of the store."""

    config: ModelConfig
    gate: Floats | None  # [ffn, hidden]; None where the FFN has no gate
    up: Floats  # [ffn, hidden]
    gate_limit: Floats  # [ffn]: the product with the input above which a branch is not zero; biases are in it
    up_limit: Floats
    reach: Floats  # [ffn]: ‖down‖ of each
    noise: tuple[Floats, ...] = ()  # [ffn] each: of gate, if there is one, and up, where they are known inexactly
    most: Floats | None = None  # [ffn]: what up's activation is taken to be at most, where it is known inexactly

    def margins(self, x: Floats) -> list[Floats]:
        """How far gate, if there is one, and up are above their limits: [tokens, ffn] each."""
        up = x @ self.up.T - self.up_limit
        return [up] if self.gate is None else [x @ self.gate.T - self.gate_limit, up]

    def contributions(self, x: Floats) -> Floats:
        """|product| ‖down‖ of every neuron as the engine computes it, with noise what it expects; [tokens, ffn]."""
        c, isa = self.config, _core.select_isa()
        gate_threshold, up_threshold = _limits(c)
        if self.noise:
            first, *second = self.expected(x)
            bound = np.inf if self.most is None else self.most
            return first * self.reach if not second else first * np.minimum(second[0], bound) * self.reach
        branches = [np.ascontiguousarray((m + t).ravel()) for m, t in zip(self.margins(x), self._added(), strict=True)]
        if self.gate is None:
            product = _core.activate(isa, c.act_gate, gate_threshold, branches[0])
        else:
            gate, up = branches
            product = _core.glu(isa, c.act_gate, c.act_up, gate, up, gate_threshold, up_threshold)
        out: Floats = np.abs(product.reshape(len(x), -1)) * self.reach
        return out

    def expected(self, x: Floats) -> list[Floats]:
        """What the sizes of gate's activation, if there is one, and up's are under the noise; [tokens, ffn] each."""
        c, isa = self.config, _core.select_isa()
        acts = zip((c.act_gate, c.act_up), _limits(c), strict=True)
        found = []
        for act, noise, margin, added in zip(acts, self.noise, self.margins(x), self._added(), strict=False):
            argument = np.ascontiguousarray((margin + np.float32(added)).ravel())
            mean = _core.expected(isa, *act, np.tile(noise, len(x)).astype(np.float32), argument)
            found.append(np.abs(mean).reshape(len(x), -1))
        return found

    def bounds(self, x: Floats) -> Floats:
        """What contributions are at most, by what the gate alone says: [tokens, ffn]. Wants noise and `most`."""
        assert self.most is not None
        out: Floats = self.expected(x)[0] * self.most * self.reach
        return out

    def offsets(self) -> list[Floats]:
        """What the products of gate, if there is one, and up lack of the activations' arguments: [ffn] each."""
        limits = [self.up_limit] if self.gate is None else [self.gate_limit, self.up_limit]
        return [np.float32(added) - limit for added, limit in zip(self._added(), limits, strict=True)]

    def _added(self) -> list[float]:
        """What margins lack of the activations' arguments."""
        gate, up = _limits(self.config)
        return [gate] if self.gate is None else [gate, up]


def _limits(config: ModelConfig) -> tuple[float, float]:
    """Thresholds of the two activations; where there is none, 0."""
    gate = config.gate_threshold if config.act_gate == "shifted_relu" else 0.0
    return gate, config.up_threshold if config.act_up == "shifted_relu" else 0.0


def read_neurons(store: Store, model: Model, layer: int) -> Neurons:
    """Raises FormatError (damaged bundle), StorageError."""
    info = store.neurons
    assert info is not None
    size = info.layout.vector_bytes
    data = read_at(Path(info.path), info.offsets[layer], info.ffn * info.stride)
    bundles = np.frombuffer(data, np.uint8).reshape(info.ffn, info.stride)
    _check(info, layer, bundles)
    vectors = {
        role: _core.decode_vectors(info.fmt, np.ascontiguousarray(bundles[:, i * size : (i + 1) * size]), info.hidden)
        for i, role in enumerate(info.layout.roles)
    }
    gate_limit, up_limit = _limits(model.config)
    if not info.gated:
        up_limit = gate_limit  # a plain FFN's one activation is called that of its gate
    return Neurons(
        model.config,
        vectors.get("gate"),
        vectors["up"],
        gate_limit - _bias(store, model, "gate_bias", layer),
        up_limit - _bias(store, model, "up_bias", layer),
        np.sqrt(np.einsum("ij,ij->i", vectors["down"], vectors["down"])),
    )


def _check(info: NeuronInfo, layer: int, bundles: NDArray[np.uint8]) -> None:
    for neuron, (bundle, want) in enumerate(zip(bundles, info.read_crc32c(layer).tolist(), strict=True)):
        if _core.crc32c(bundle[: info.layout.bytes]) != want:
            raise FormatError(f"{info.path}: neuron {neuron} of layer {layer} fails its checksum; pack the store again")


def _bias(store: Store, model: Model, role: str, layer: int) -> Floats:
    """[ffn] in the order of the store; zeros where the model has none."""
    info = store.neurons
    assert info is not None
    for spec in model.tensors:
        if (spec.role, spec.layer) == (role, layer) and spec.name in store.entries:
            entry = store.entries[spec.name]
            values = np.frombuffer(read_at(Path(entry.path), entry.offset, entry.bytes), "<f4")
            return values[info.read_order(layer)]
    return np.zeros(info.ffn, np.float32)
