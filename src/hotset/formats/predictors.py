"""`predictors.safetensors` of a packed store: maps that say which neurons a token needs (docs/reference/plan.md).

Tensors of layer i: `hotset.layers.{i}.predictor.down` [rank, hidden] and `…up` [ffn, rank], packed like all matrices of
a store, rows of `up` in the store's order of neurons; and of the whole model `hotset.predictor.losses`, `…scores`,
`…predicted` and `…recall`, see Thresholds, `…energies` and `…changes`, and, in newer files, `…draft_energies` and
`…draft_holds`, see Predictors, all f32. From them come the least scores at which a neuron in memory, and a missing one,
is computed. Checksums: hotset.formats.checksums.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hotset.errors import FormatError, UsageError
from hotset.formats.checksums import verify
from hotset.formats.files import Json, is_count, parse_json, read_at
from hotset.formats.neurons import NeuronInfo
from hotset.formats.safetensors import Header, read_header
from hotset.formats.store import StoreEntry, read_weights
from hotset.formats.thresholds import FETCH, Thresholds, fetch_energy, limits
from hotset.quant import FORMATS

PREDICTORS_FILE = "predictors.safetensors"
LEAST_ENERGY, MOST_ENERGY = 1e-6, 0.5
# Share of drafts that fail, to the root of the loss, where it was not measured; a synthetic 7B has 0.53 to 0.67, the
# 13 M story model 0.37 to 0.53.
_FAILING = 0.6
MEASURED = ("energies", "changes")
DRAFTED = ("draft_energies", "draft_holds")
OLD = "agreements"  # of files that do not say how often drafts hold; not read
TABLES = ("losses", "scores", "predicted", "recall")
_FACTS = {
    "relu": bool,
    "ahead": bool,
    "order_crc32c": int,
    "active": float,
    "energy": float,
    "perplexity_change": float,
    "fetch": float,
}
_AGAIN = "train the predictors again with `hotset train-predictor`"
_LATER = {"fetch": FETCH}  # facts that older files lack, and what held for them


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
    drafts: tuple[tuple[float, float], ...] = ()  # (energy, share of greedy drafts that hold), by energy; or none

    def energy_at(self, loss: float | None, worse: float = 1.0) -> float:
        """The share of energy to give up where neurons are in memory, for an allowed loss of perplexity.

        loss: None: as calibrated. worse: times as much as where it was measured is lost, see hotset.planner.loss.
        Between what was measured the logarithms are interpolated; below it the guess is a cautious one, and more than
        was tried is never given up.
        """
        if loss is None and worse == 1:
            return self.energy
        wanted = (self.perplexity_change if loss is None else loss) / worse
        energies, changes = np.array(self.measured).T
        least, most = changes.argmin(), changes.argmax()
        if wanted <= changes[least]:
            energy = energies[least] * (wanted / changes[least]) ** 2
        elif wanted >= changes[most]:
            energy = energies[most]
        else:
            energy = _between(wanted, changes, energies)
        return float(min(max(energy, LEAST_ENERGY), MOST_ENERGY))

    def loss_at(self, energy: float, worse: float = 1.0) -> float:
        """The loss of perplexity where so much energy is given up: energy_at() the other way round."""
        energies, changes = np.array(self.measured).T
        least, most = energies.argmin(), energies.argmax()
        if energy <= energies[least]:
            loss = changes[least] * (energy / energies[least]) ** 0.5
        elif energy >= energies[most]:
            loss = changes[most] * energy / energies[most]
        else:
            loss = _between(energy, energies, changes)
        return worse * float(loss)

    def drafts_hold(self, loss: float) -> float:
        """Share of greedy drafts that are the exact tokens, where so much is lost.

        Logarithms are interpolated. Beyond what was tried drafts fail as the root of the loss: that is the square of
        what logits are wrong by, and a token is another one where that exceeds its lead.
        """
        if not self.drafts:
            return 1 - min(_FAILING * math.sqrt(loss), 0.99)
        losses = np.array([self.loss_at(energy) for energy, _ in self.drafts])
        failing = 1 - np.array([share for _, share in self.drafts])
        near = float(np.clip(loss, losses.min(), losses.max()))
        return 1 - min(_between(near, losses, failing) * math.sqrt(loss / near), 0.99)

    def limits(self, energy: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Least scores of neurons in memory and of missing ones, by layer."""
        return limits(self.tables, energy, self.fetch)

    def candidates(self, energy: float) -> float:
        """Neurons computed for each active one, where all are in memory."""
        return self.tables.share(energy) / max(self.active, 1e-9)

    def wanted(self, energy: float) -> float:
        """Neurons that would be read for each active one, if none were in memory."""
        return self.tables.share(fetch_energy(energy, self.fetch)) / max(self.active, 1e-9)

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in (*self.down, *self.up))


def _between(x: float, xs: NDArray[np.float64], ys: NDArray[np.float64]) -> float:
    """Interpolated in logarithms."""
    order = xs.argsort()
    return float(np.exp(np.interp(np.log(x), np.log(xs[order]), np.log(ys[order]))))


def order_crc32c(neurons: NeuronInfo) -> int:
    """Checksum of the order in which a store keeps its neurons; predictors hold for one order only."""
    from hotset._core import crc32c

    crc = 0
    for layer in range(neurons.layers):
        crc = crc32c(neurons.read_order(layer).tobytes(), crc)
    return crc


def read_predictors(folder: Path, neurons: NeuronInfo) -> Predictors | None:
    """The predictors beside a packed store; None if it has none.

    The maps themselves are not read; verify_predictors does.
    Raises: UsageError if they were made for another order of neurons; FormatError, StorageError.
    """
    path = folder / PREDICTORS_FILE
    if not path.exists():
        return None
    header = read_header(path)
    verify(path, header, _AGAIN, lambda name: name in header.metadata or name.startswith("hotset.predictor."))
    facts = _facts(path, header)
    entries = read_weights(path)
    maps = {part: [entries.get(map_name(i, part)) for i in range(neurons.layers)] for part in ("down", "up")}
    tables = Thresholds(*_tables(path, entries, neurons.layers))
    energies, changes = (_vector(path, entries, name) for name in MEASURED)
    if len(energies) != len(changes) or not (energies > 0).all() or not (changes > 0).all():
        raise FormatError(f"{path}: {len(energies)} energies, {len(changes)} changes; train the predictors again")
    measured = tuple(zip(energies.tolist(), changes.tolist(), strict=True))
    drafts = _drafts(path, entries)
    down, up = (tuple(e for e in maps[part] if e is not None) for part in ("down", "up"))
    _check_shapes(path, down, up, neurons)
    if facts.pop("order_crc32c") != order_crc32c(neurons):
        raise UsageError(f"{path} was made for another order of neurons; train the predictors again, or remove it")
    return Predictors(down, up, tables, measured=measured, drafts=drafts, **facts)


def verify_predictors(folder: Path) -> None:
    """Reads all of the predictors beside a store, if there are any. Raises StorageError where a checksum is not met."""
    if (path := folder / PREDICTORS_FILE).exists():
        verify(path, read_header(path), _AGAIN)


def map_name(layer: int, part: str) -> str:
    return f"hotset.layers.{layer}.predictor.{part}"


def vector_name(name: str) -> str:
    return f"hotset.predictor.{name}"


def _facts(path: Path, header: Header) -> Json:
    if "predictor" not in header.metadata:
        raise FormatError(f"{path} is not a file of predictors: its metadata has no 'predictor'")
    facts = _LATER | parse_json(header.metadata["predictor"].encode(errors="replace"), f"{path}: metadata 'predictor'")
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
    losses = _vector(path, entries, TABLES[0])
    yield losses
    for name in TABLES[1:]:
        values = _vector(path, entries, name)
        if len(values) != layers * len(losses):
            raise FormatError(f"{path}: {len(values)} values of {name} for {layers} layers; train the predictors again")
        yield values.reshape(layers, -1)


def _drafts(path: Path, entries: Mapping[str, StoreEntry]) -> tuple[tuple[float, float], ...]:
    """None in files of earlier versions."""
    if not any(vector_name(name) in entries for name in DRAFTED):
        return ()
    energies, shares = (_vector(path, entries, name) for name in DRAFTED)
    fine = len(energies) == len(shares) and (energies > 0).all() and ((shares >= 0) & (shares < 1)).all()
    if not fine or not (np.diff(energies) > 0).all():
        raise FormatError(f"{path}: draft_energies and draft_holds are no shares, by energy; {_AGAIN}")
    return tuple(zip(energies.tolist(), shares.tolist(), strict=True))


def _vector(path: Path, entries: Mapping[str, StoreEntry], name: str) -> NDArray[np.float32]:
    entry = entries.get(vector_name(name))
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
