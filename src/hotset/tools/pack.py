"""A dense store into a packed one: the weights of each neuron side by side, so that it can be read alone."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hotset.errors import UsageError
from hotset.formats.files import Json, read_whole, storage_error
from hotset.formats.neurons import tensor_name
from hotset.formats.profile import PROFILE_FILE
from hotset.formats.progress import Progress, silent
from hotset.formats.store import CONFIG, RESIDENT, WEIGHT_FILES, Store, is_store, open_store
from hotset.formats.store_writer import StoreWriter, TakenFile
from hotset.models import Model
from hotset.models.gate import ZERO_BELOW
from hotset.tools.convert_encode import ErrorSums
from hotset.tools.gate_copy import check_gates, copy_gates
from hotset.tools.pack_layers import checksums, make_bundles
from hotset.tools.pack_order import Order, compared, neuron_orders
from hotset.tools.pack_plan import AUTO, PackPlan, plan_pack
from hotset.tools.resolve import resolve_model


@dataclass(frozen=True, slots=True)
class PackReport:
    dest: Path
    layers: int
    neurons: int  # in a layer
    fmt: str
    order: str
    bundle_bytes: int  # of one neuron's weights
    stride: int  # what it takes on the drive
    source_format: str  # of the FFN matrices that were packed, "q8_0", or several: "q4_0+q8_0"
    errors: dict[
        str, float
    ]  # by role: root of squared error over squared weight, against the source; empty if unchanged
    seconds: float
    resumed_layers: int = 0  # done by an earlier run that was stopped
    unchanged: bool = False  # the destination was this store already
    gate_bytes: int = 0  # of the copy of the gates; 0: there is none
    notes: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Of all bundles with their padding."""
        return self.layers * self.neurons * self.stride


def pack(
    store: str | Path,
    dest: Path | None = None,
    *,
    fmt: str = "q4_0",
    stride: str | int = AUTO,
    order: str = AUTO,
    progress: Progress | None = None,
    force: bool = False,
    threads: int = 0,
    gates: bool = False,
) -> PackReport:
    """Makes a packed store out of a dense one. Needs memory for the bundles of one layer.

    Can be stopped at any point: a second run with the same arguments goes on where the first was. The destination
    appears whole or not at all.

    Args:
        store: a dense store, or whatever `resolve_model` makes one of.
        dest: the store to be; None: beside the first, named `STORE-packed`.
        fmt: of the neurons' weights, "q4_0" or "q8_0".
        stride: bytes from one neuron to the next; "auto": its weights and as much padding as direct reads ask for.
        order: "none", "frequency", "coactivation" (see pack_order.py); "auto": where the store has a profile, by
            frequency, or by coactivation if that needs fewer requests of the drive.
        progress: called with bytes of neurons done, bytes in all, tensor.
        force: replace whatever the destination is, the dense store included.
        threads: for packing; 0 = all.
        gates: copy the gates side by side, too; if the store is packed already and `dest` is None, do only that.
    Raises: UsageError, FormatError, StorageError, ModelError.
    """
    start = time.monotonic()
    folder = resolve_model(store)
    if gates:
        check_gates(source := open_store(folder))
        if source.neurons is not None and dest is None:
            return _with_gates(source, progress or silent, force, start)
    dest = folder.with_name(f"{folder.name}-packed") if dest is None else Path(dest).expanduser()
    plan = plan_pack(folder, dest, fmt, stride, order)
    unchanged = not force and _already_there(dest, plan.section)
    notes, resumed = ({}, 0) if unchanged else _write(plan, dest, progress or silent, force, threads)
    gate_bytes = copy_gates(open_store(dest), progress or silent) if gates else 0
    matrices = {plan.source.entries[s.name].fmt for s in plan.model.tensors if s.kind == "ffn"}
    return PackReport(
        dest=dest,
        layers=plan.layers,
        neurons=plan.model.config.ffn,
        fmt=plan.layout.fmt,
        order=plan.order,
        bundle_bytes=plan.layout.bytes,
        stride=plan.stride,
        source_format="+".join(sorted(matrices)),
        errors=_errors(plan.layout.roles, notes),
        seconds=time.monotonic() - start,
        resumed_layers=resumed,
        unchanged=unchanged,
        gate_bytes=gate_bytes,
        notes=(*_advice(plan.model, matrices, "sparsity" in plan.source.info), *compared(plan.requests)),
    )


def _with_gates(store: Store, progress: Progress, force: bool, start: float) -> PackReport:
    """A packed store as it is, but with a copy of its gates."""
    info = store.neurons
    assert info is not None
    size = copy_gates(store, progress, force)
    return PackReport(
        dest=store.path,
        layers=info.layers,
        neurons=info.ffn,
        fmt=info.fmt,
        order=info.order,
        bundle_bytes=info.layout.bytes,
        stride=info.stride,
        source_format=info.fmt,
        errors={},
        seconds=time.monotonic() - start,
        unchanged=True,
        gate_bytes=size,
    )


def _already_there(dest: Path, section: Json) -> bool:
    """Whether `dest` is the store to be made. Raises UsageError if it is something else, which force would replace."""
    if not dest.exists() or (dest.is_dir() and not any(dest.iterdir())):
        return False
    if is_store(dest):
        info = open_store(dest).info
        if all(info.get(key) == value for key, value in section.items()):
            return True
        raise UsageError(
            f"{dest} is a store, but of other contents or options; choose another destination, or --force to replace it"
        )
    raise UsageError(f"{dest} exists and is not a store; choose another destination, or --force to replace it")


def _write(plan: PackPlan, dest: Path, progress: Progress, force: bool, threads: int) -> tuple[dict[str, Json], int]:
    """Writes everything; returns the notes on each tensor and how many layers an earlier run had done."""
    orders = neuron_orders(plan.order, plan.source, plan.layers, plan.model.config.ffn)
    resident = TakenFile(plan.source.path / RESIDENT, plan.source.files[RESIDENT])
    key = json.dumps(plan.section, sort_keys=True)
    with StoreWriter(dest, list(plan.tensors()), key, {RESIDENT: resident}) as writer:
        resumed = sum(tensor_name(i, "neurons") in writer.done for i in range(plan.layers))
        try:
            for index, order in enumerate(orders):
                _write_layer(writer, plan, index, order, progress, threads)
        except KeyboardInterrupt as stop:
            stop.add_note(f"what is finished is kept in {writer.folder}; the same command goes on from there")
            raise
        _take_profile(plan.source, writer.folder)
        writer.commit(_files(plan), replace=force)
        return writer.done, resumed


def _write_layer(
    writer: StoreWriter, plan: PackPlan, index: int, order: Order, progress: Progress, threads: int
) -> None:
    size = plan.layout.bytes * plan.model.config.ffn
    name = tensor_name(index, "neurons")
    if name not in writer.done:
        bundles, sums = make_bundles(
            plan.layer(index),
            plan.layout,
            plan.stride,
            order,
            threads=threads,
            progress=lambda done: progress(index * size + done, plan.layers * size, name),
        )
        contents = {"order": order, "crc32c": checksums(bundles, plan.layout.bytes), "neurons": bundles}
        for part, data in contents.items():
            if (tensor := tensor_name(index, part)) not in writer.done:
                writer.begin(tensor)
                writer.append(np.ascontiguousarray(data).reshape(-1).view(np.uint8))
                writer.finish(_note(sums) if part == "neurons" else {})
    progress((index + 1) * size, plan.layers * size, name)


def _note(sums: Mapping[str, ErrorSums]) -> Json:
    return {role: [s.squared_error, s.squared_weight] for role, s in sums.items()}


def _errors(roles: tuple[str, ...], notes: Mapping[str, Json]) -> dict[str, float]:
    """Over all layers, by role."""
    totals = {role: ErrorSums() for role in roles}
    for note in notes.values():
        for role, sums in note.items():
            totals[role].add(*sums)
    return {role: total.relative_rms for role, total in totals.items() if notes}


def _take_profile(source: Store, folder: Path) -> None:
    """The profile counts neurons by the model's own indices, so it holds for any order."""
    try:
        if (source.path / PROFILE_FILE).is_file():
            shutil.copyfile(source.path / PROFILE_FILE, folder / PROFILE_FILE)
    except OSError as error:
        raise storage_error(folder / PROFILE_FILE, "cannot be written", error) from None


def _files(plan: PackPlan) -> dict[str, bytes]:
    """The small files: those of the dense store, and its config with what is new."""
    source = plan.source
    paths = [source.path / name for name in source.files if name not in (*WEIGHT_FILES, CONFIG)]
    info = source.info | plan.section
    info["quant"] = info.get("quant", {}) | {"ffn": plan.layout.fmt}
    config = json.dumps(source.config | {"hotset": info}, indent=2, ensure_ascii=False).encode() + b"\n"
    return {CONFIG: config, **{path.name: read_whole(path) for path in paths}}


def _advice(model: Model, matrices: set[str], sparse: bool) -> tuple[str, ...]:
    """What the user should know about the result."""
    notes = []
    if low := " and ".join(sorted({"q4_0", "q4_1"} & matrices)):
        notes.append(f"the store's FFN is {low}, so packing rounds down twice; `convert --quant ffn=q8_0` loses less")
    if (act := model.config.act_gate) not in ZERO_BELOW and not sparse:
        notes.append(f"this FFN's {act} is never exactly 0, so leaving neurons out changes the result")
    return tuple(notes)
