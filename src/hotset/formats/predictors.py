"""`predictors.safetensors` of a packed store: maps that say which neurons a token needs (docs/reference/plan.md).

Tensors of layer i: `hotset.layers.{i}.predictor.down` [rank, hidden] and `…up` [ffn, rank], packed like all matrices of
a store, rows of `up` in the store's order of neurons; and of the whole model `hotset.predictor.losses`, `…scores`,
`…predicted` and `…recall`, see Thresholds, `…energies`, `…changes` and, in newer files, `…agreements`, see Predictors,
all f32. From them come the
least scores at which a neuron in memory, and a missing one, is computed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hotset.errors import FormatError, UsageError
from hotset.formats.files import Json, is_count, parse_json, read_at
from hotset.formats.neurons import NeuronInfo
from hotset.formats.safetensors import read_header
from hotset.formats.store import ALIGNMENT, StoreEntry, read_weights
from hotset.formats.store_file import StoreTensor, WeightFile
from hotset.quant import FORMATS

PREDICTORS_FILE = "predictors.safetensors"
# Share of energy given up where neurons are missing, to that where they are in memory: at equal divergence and 3.0 GB a
# 7B decodes 1.2 times as fast as with 10 (docs/decisions/log.md).
FETCH = 30.0
MISSING = 0.05  # share of the wanted neurons while thresholds were tried, half of all being in memory
LEAST_ENERGY, MOST_ENERGY = 1e-6, 0.5
_MEASURED = ("energies", "changes")
_AGREEMENTS = "agreements"
_TABLES = ("losses", "scores", "predicted", "recall")
_FACTS = {
    "relu": bool,
    "ahead": bool,
    "order_crc32c": int,
    "active": float,
    "energy": float,
    "perplexity_change": float,
    "fetch": float,
}
_LATER = {"fetch": FETCH}  # facts that older files lack, and what held for them


@dataclass(frozen=True, slots=True, eq=False)
class Thresholds:
    """Of each layer: the least scores that give up some shares of the energy of its output, on held-out tokens."""

    losses: NDArray[np.float32]  # [n], ascending
    scores: NDArray[np.float32]  # [layers, n], descending
    predicted: NDArray[np.float32]  # [layers, n]: share of the neurons with such scores
    recall: NDArray[np.float32]  # [layers, n]: share of the active neurons among them

    def at(self, loss: float) -> tuple[float, ...]:
        """[layers]: least scores at which not more than about `loss` of the energy is given up."""
        return tuple(self.scores[:, self._index(loss)].tolist())

    def share(self, loss: float) -> float:
        """Of the neurons of all layers, that are predicted then."""
        return float(self.predicted[:, self._index(loss)].mean())

    def found(self, loss: float) -> float:
        """Share of the active neurons of a layer, the mean of all layers, that are predicted then."""
        return float(self.recall[:, self._index(loss)].mean())

    def _index(self, loss: float) -> int:
        return max(int(np.searchsorted(self.losses, np.float32(loss), side="right")) - 1, 0)


def fetch_energy(energy: float, ratio: float = FETCH) -> float:
    """Share given up where neurons are missing, for that where they are in memory."""
    return min(ratio * energy, 0.9)


def limits(tables: Thresholds, energy: float, ratio: float = FETCH) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Least scores of neurons in memory and of missing ones, by layer, that give up about this share of energy."""
    keep, fetch = tables.at(energy), tables.at(fetch_energy(energy, ratio))
    return keep, tuple(max(k, f) for k, f in zip(keep, fetch, strict=True))


@dataclass(frozen=True, slots=True)
class Predictors:
    """Trained predictors of all layers. What they cost in quality was measured when they were made."""

    down: tuple[StoreEntry, ...]
    up: tuple[StoreEntry, ...]
    tables: Thresholds
    relu: bool  # between down and up
    ahead: bool  # maps of all layers but the first are given the input of the FFN before
    active: float  # share of all neurons that are active
    energy: float  # share given up where neurons are in memory, as calibrated
    perplexity_change: float  # relative, expected then on text like that held out: e^divergence - 1
    measured: tuple[tuple[float, float], ...]  # (energy, perplexity_change) of everything that was tried, all above 0
    fetch: float = FETCH  # share of energy given up where neurons are missing, to that where they are in memory
    agreements: tuple[float, ...] = ()  # of each of these, share of likeliest tokens that were the exact ones; or none

    def energy_at(self, loss: float | None) -> float:
        """The share of energy to give up for an allowed loss of perplexity; None: as calibrated.

        Between what was measured the logarithms are interpolated; beyond it the guess is a cautious one.
        """
        if loss is None:
            return self.energy
        energies, changes = np.array(self.measured).T
        least, most = changes.argmin(), changes.argmax()
        if loss <= changes[least]:
            energy = energies[least] * (loss / changes[least]) ** 2
        elif loss >= changes[most]:
            energy = energies[most] * loss / changes[most]
        else:
            order = changes.argsort()
            energy = np.exp(np.interp(np.log(loss), np.log(changes[order]), np.log(energies[order])))
        return float(min(max(energy, LEAST_ENERGY), MOST_ENERGY))

    def agreement(self, loss: float | None = None, missing: float = MISSING) -> float | None:
        """Share of tokens whose likeliest successor is the exact one; None if that was not measured.

        missing: share of the wanted neurons that are not in memory, for which more energy is given up. Beyond the most
        energy that was tried the guess is a cautious one: errors grow as the energy does.
        """
        if not self.agreements:
            return None
        energies = np.array([energy for energy, _ in self.measured])
        order = energies.argsort()
        shares = np.array(self.agreements)[order]
        energy = self.energy_at(loss) * (1 + (self.fetch - 1) * missing) / (1 + (self.fetch - 1) * MISSING)
        beyond = max(energy / energies.max(), 1.0)
        known = float(np.interp(np.log(energy), np.log(energies[order]), shares))
        return max(1 - (1 - known) * float(beyond), 0.01)

    def limits(self, loss: float | None = None) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Least scores of neurons in memory and of missing ones, by layer."""
        return limits(self.tables, self.energy_at(loss), self.fetch)

    def candidates(self, loss: float | None = None) -> float:
        """Neurons computed for each active one, where all are in memory."""
        return self.tables.share(self.energy_at(loss)) / max(self.active, 1e-9)

    def wanted(self, loss: float | None = None) -> float:
        """Neurons that would be read for each active one, if none were in memory."""
        return self.tables.share(fetch_energy(self.energy_at(loss), self.fetch)) / max(self.active, 1e-9)

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in (*self.down, *self.up))


def order_crc32c(neurons: NeuronInfo) -> int:
    """Checksum of the order in which a store keeps its neurons; predictors hold for one order only."""
    from hotset._core import crc32c

    crc = 0
    for layer in range(neurons.layers):
        crc = crc32c(neurons.read_order(layer).tobytes(), crc)
    return crc


def read_predictors(folder: Path, neurons: NeuronInfo) -> Predictors | None:
    """The predictors beside a packed store; None if it has none.

    Raises: UsageError if they were made for another order of neurons; FormatError, StorageError.
    """
    path = folder / PREDICTORS_FILE
    if not path.exists():
        return None
    facts = _facts(path)
    entries = read_weights(path)
    maps = {part: [entries.get(_name(i, part)) for i in range(neurons.layers)] for part in ("down", "up")}
    tables = Thresholds(*_tables(path, entries, neurons.layers))
    energies, changes = (_vector(path, entries, name) for name in _MEASURED)
    if len(energies) != len(changes) or not (energies > 0).all() or not (changes > 0).all():
        raise FormatError(f"{path}: {len(energies)} energies, {len(changes)} changes; train the predictors again")
    measured = tuple(zip(energies.tolist(), changes.tolist(), strict=True))
    agreements = _agreements(path, entries, len(measured))
    down, up = (tuple(e for e in maps[part] if e is not None) for part in ("down", "up"))
    _check_shapes(path, down, up, neurons)
    if facts.pop("order_crc32c") != order_crc32c(neurons):
        raise UsageError(f"{path} was made for another order of neurons; train the predictors again, or remove it")
    return Predictors(down, up, tables, measured=measured, agreements=agreements, **facts)


def write_predictors(
    folder: Path,
    neurons: NeuronInfo,
    maps: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]],
    tables: Thresholds,
    measured: Sequence[tuple[float, float]],
    facts: Mapping[str, bool | float],
    fmt: str = "q8_0",
    agreements: Sequence[float] = (),
) -> Path:
    """Writes predictors beside a packed store, whole or not at all.

    maps: of each layer down [rank, hidden] and up [ffn, rank], rows in the model's own order of neurons.
    measured, agreements, facts (relu, ahead, active, energy, perplexity_change, fetch): as in Predictors.
    Raises: FormatError (a weight that is no number), OSError.
    """
    path, partial = folder / PREDICTORS_FILE, folder / f".{PREDICTORS_FILE}.partial"
    tensors = [
        StoreTensor(_name(i, part), fmt, matrix.shape[0], matrix.shape[1], neurons=False)
        for i, both in enumerate(maps)
        for part, matrix in zip(("down", "up"), both, strict=True)
    ]
    vectors = {name: getattr(tables, name).ravel() for name in _TABLES}
    vectors |= dict(zip(_MEASURED, np.array(measured, np.float32).T, strict=True))
    if agreements:
        vectors[_AGREEMENTS] = np.array(agreements, np.float32)
    tensors += [
        StoreTensor(f"hotset.predictor.{name}", "f32", len(values), 0, neurons=False)
        for name, values in vectors.items()
    ]
    about = json.dumps({**facts, "order_crc32c": order_crc32c(neurons)})
    partial.unlink(missing_ok=True)
    file = WeightFile(partial, tensors, {"predictor": about})
    try:
        for layer, (down, up) in enumerate(maps):
            for matrix in (down, up[neurons.read_order(layer)]):
                _append(file, _packed(fmt, matrix))
        for values in vectors.values():
            _append(file, np.array(values, "<f4").view(np.uint8))
        file.close()
    except BaseException:
        file.abandon()
        partial.unlink(missing_ok=True)
        raise
    return partial.replace(path)


def _name(layer: int, part: str) -> str:
    return f"hotset.layers.{layer}.predictor.{part}"


def _packed(fmt: str, matrix: NDArray[np.float32]) -> NDArray[np.uint8]:
    from hotset import _core

    out = np.zeros(_core.packed_bytes(fmt, *matrix.shape), np.uint8)
    _core.encode(fmt, np.ascontiguousarray(matrix, np.float32), out)
    return out


def _append(file: WeightFile, data: NDArray[np.uint8]) -> None:
    file.write(data.data)
    file.write(memoryview(bytes(-data.nbytes % ALIGNMENT)))


def _facts(path: Path) -> Json:
    metadata = read_header(path).metadata
    if "predictor" not in metadata:
        raise FormatError(f"{path} is not a file of predictors: its metadata has no 'predictor'")
    facts = _LATER | parse_json(metadata["predictor"].encode(errors="replace"), f"{path}: metadata 'predictor'")
    fine = facts.keys() == _FACTS.keys() and all(_is(facts[name], kind) for name, kind in _FACTS.items())
    if not fine:
        raise FormatError(f"{path}: metadata 'predictor' must have exactly {', '.join(_FACTS)}; train them again")
    return facts


def _is(value: object, kind: type) -> bool:
    if kind is bool:
        return isinstance(value, bool)
    if kind is int:
        return is_count(value)
    return type(value) in (int, float) and math.isfinite(float(str(value)))


def _tables(path: Path, entries: Mapping[str, StoreEntry], layers: int) -> Iterator[NDArray[np.float32]]:
    losses = _vector(path, entries, _TABLES[0])
    yield losses
    for name in _TABLES[1:]:
        values = _vector(path, entries, name)
        if len(values) != layers * len(losses):
            raise FormatError(f"{path}: {len(values)} values of {name} for {layers} layers; train the predictors again")
        yield values.reshape(layers, -1)


def _agreements(path: Path, entries: Mapping[str, StoreEntry], count: int) -> tuple[float, ...]:
    """Of each calibration run; none in files of earlier versions."""
    if f"hotset.predictor.{_AGREEMENTS}" not in entries:
        return ()
    found = _vector(path, entries, _AGREEMENTS)
    if len(found) != count or not ((found >= 0) & (found <= 1)).all():
        raise FormatError(f"{path}: {len(found)} agreements, wanted {count} shares; train the predictors again")
    return tuple(found.tolist())


def _vector(path: Path, entries: Mapping[str, StoreEntry], name: str) -> NDArray[np.float32]:
    entry = entries.get(f"hotset.predictor.{name}")
    if entry is None or entry.fmt != "f32" or entry.cols != 0 or entry.rows == 0:
        raise FormatError(f"{path} lacks its vector of {name}; train the predictors again")
    return np.frombuffer(read_at(path, entry.offset, entry.bytes), "<f4")


def _check_shapes(path: Path, down: tuple[StoreEntry, ...], up: tuple[StoreEntry, ...], neurons: NeuronInfo) -> None:
    if len(down) != neurons.layers or len(up) != neurons.layers:
        raise FormatError(f"{path} lacks predictors of some of {neurons.layers} layers; train them again")
    for i, (d, u) in enumerate(zip(down, up, strict=True)):
        if (
            d.fmt not in FORMATS
            or u.fmt not in FORMATS
            or (d.cols, u.rows, d.rows) != (neurons.hidden, neurons.ffn, u.cols)
        ):
            raise FormatError(
                f"{path}: maps of layer {i} are [{d.rows}, {d.cols}] and [{u.rows}, {u.cols}], wanted "
                f"[rank, {neurons.hidden}] and [{neurons.ffn}, rank]"
            )
