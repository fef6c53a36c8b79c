"""A Hugging Face folder or a GGUF file into a store (docs/reference/store.md), in one pass and little memory."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hotset.errors import ModelError, UsageError
from hotset.formats.files import Json
from hotset.formats.progress import Progress, silent
from hotset.formats.store import CONFIG, FORMAT_VERSION, Store, is_store, open_store
from hotset.formats.store_file import StoreTensor
from hotset.formats.store_writer import StoreWriter, remove_journal
from hotset.quant import HF_DEFAULT, QuantPlan, parse_quant
from hotset.tools.convert_encode import ErrorSums, pack
from hotset.tools.convert_report import ClassReport, ConvertReport, class_reports
from hotset.tools.convert_source import Source, SourceTensor, open_source
from hotset.tools.resolve import cached_store, hub_store

__all__ = ["ClassReport", "ConvertOptions", "ConvertReport", "Progress", "convert", "write_store"]

# What each GGUF type becomes: itself if it is ours, else the smallest of ours with steps about as fine.
NEAREST = {
    **{"F32": "f32", "F16": "f16", "BF16": "bf16", "Q8_0": "q8_0", "Q4_0": "q4_0", "Q4_1": "q4_1", "F64": "f32"},
    **dict.fromkeys(("Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_1", "Q8_K"), "q8_0"),
    **dict.fromkeys(("Q2_K", "Q3_K", "Q4_K", "IQ4_NL", "IQ4_XS", "MXFP4", "TQ1_0", "TQ2_0"), "q4_1"),
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"), "q4_1"),
}


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """What the contents of a store depend on besides the source."""

    quant: QuantPlan = field(default_factory=QuantPlan)
    ignore_keys: tuple[str, ...] = ()

    def to_json(self) -> Json:
        return {"quant": str(self.quant), "ignore_keys": list(self.ignore_keys)}


def convert(
    source: str | Path,
    dest: Path | None = None,
    *,
    quant: str = "auto",
    ignore_keys: Collection[str] = (),
    progress: Progress | None = None,
    force: bool = False,
    threads: int = 0,
) -> ConvertReport:
    """Makes a store out of a Hugging Face folder (safetensors), a GGUF file, a hub id or an alias.

    Can be stopped at any point: a second run with the same arguments goes on where the first was. The destination
    appears whole or not at all.

    Args:
        dest: the store to be; None: in the cache, where `resolve_model` finds it.
        quant: "auto" (a GGUF keeps its formats, K-quants go to the nearest of ours; safetensors: 4 bit, embedding and
            head 8 bit), one format for all matrices, or "attention=q8_0,ffn=q4_0,embedding=…,head=…".
        ignore_keys: config keys to treat as absent.
        progress: called with bytes of the source done, bytes in all, tensor.
        force: replace whatever the destination is.
        threads: for packing; 0 = all.
    Raises: UsageError, ModelError, FormatError, StorageError, DownloadError.
    """
    options = ConvertOptions(parse_quant(quant), tuple(sorted(set(ignore_keys))))
    path = Path(source).expanduser()
    if path.exists():
        target = cached_store(path, options.to_json())
    else:
        from hotset.tools.pull import download

        target = hub_store(str(source), options.to_json())
        path = download(str(source), progress=progress or silent)
    opened = open_source(path, options.ignore_keys)
    return write_store(
        opened,
        target if dest is None else Path(dest).expanduser(),
        options,
        progress=progress or silent,
        force=force,
        threads=threads,
    )


def write_store(
    source: Source,
    dest: Path,
    options: ConvertOptions,
    *,
    progress: Progress = silent,
    force: bool = False,
    threads: int = 0,
) -> ConvertReport:
    """`convert` for a source that is open already."""
    start = time.monotonic()
    formats = {t.spec.name: choose_format(t, source.kind, options.quant) for t in source.tensors}
    section: Json = {
        "source": {"kind": source.kind, "name": source.name, "fingerprint": source.fingerprint},
        "options": options.to_json(),
    }
    if unchanged := not force and _already_there(dest, section):
        remove_journal(dest)
    notes, resumed = ({}, 0) if unchanged else _write(source, dest, formats, section, progress, force, threads)
    return ConvertReport(
        dest=dest,
        source=source.name,
        family=source.model.family,
        classes=class_reports(source.tensors, formats, notes),
        seconds=time.monotonic() - start,
        resumed_bytes=resumed,
        unchanged=unchanged,
        notes=source.notes,
    )


def choose_format(tensor: SourceTensor, source_kind: str, plan: QuantPlan) -> str:
    """The weight format that a tensor gets. Raises ModelError for types that hold no weights."""
    if tensor.type not in NEAREST:
        raise ModelError(f"{tensor.path}: tensor {tensor.spec.name} has type {tensor.type}, which holds no weights")
    if (fmt := plan.of(tensor.spec.kind)) != "auto":
        return fmt
    return NEAREST[tensor.type] if source_kind == "gguf" else HF_DEFAULT.of(tensor.spec.kind)


def _already_there(dest: Path, section: Json) -> bool:
    """Whether `dest` is the store to be made. Raises UsageError if it is something else, which force would replace."""
    if not dest.exists() or (dest.is_dir() and not any(dest.iterdir())):
        return False
    if not is_store(dest):
        raise UsageError(f"{dest} exists and is not a store; choose another destination, or --force to replace it")
    store = open_store(dest)
    if all(store.info.get(key) == value for key, value in section.items()):
        return True
    raise UsageError(
        f"{dest} is a store made from another source or with other options ({_summary(store)}); choose another "
        "destination, or --force to replace it"
    )


def _summary(store: Store) -> str:
    return ascii({key: store.info.get(key) for key in ("source", "options")})[:200]


def _write(
    source: Source,
    dest: Path,
    formats: Mapping[str, str],
    section: Json,
    progress: Progress,
    force: bool,
    threads: int,
) -> tuple[dict[str, Json], int]:
    """Writes everything; returns the notes on each tensor and the source's bytes that an earlier run had done."""
    targets = [
        StoreTensor(t.spec.name, formats[t.spec.name], t.spec.rows, t.spec.cols, t.spec.kind == "ffn")
        for t in source.tensors
    ]
    with StoreWriter(dest, targets, json.dumps(section, sort_keys=True)) as writer:
        resumed = sum(t.bytes for t in source.tensors if t.spec.name in writer.done)
        try:
            _write_tensors(writer, source, formats, progress, threads)
        except KeyboardInterrupt as stop:
            stop.add_note(f"what is finished is kept in {writer.folder}; the same command goes on from there")
            raise
        reports = class_reports(source.tensors, formats, writer.done)
        quant = {c.kind: c.formats for c in reports if c.kind != "vector"}
        config = {**source.config, "hotset": {"format_version": FORMAT_VERSION, **section, "quant": quant}}
        text = json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"
        writer.commit({CONFIG: text, **source.files}, replace=force)
        return writer.done, resumed


def _write_tensors(
    writer: StoreWriter, source: Source, formats: Mapping[str, str], progress: Progress, threads: int
) -> None:
    rows = source.rows()
    total, done = sum(t.bytes for t in source.tensors), 0
    for tensor in source.tensors:
        name = tensor.spec.name
        if name in writer.done:
            done += tensor.bytes
            progress(done, total, name)
            continue
        sums = ErrorSums()
        writer.begin(name)
        for packed, source_bytes in pack(rows, tensor, formats[name], sums, threads):
            writer.append(packed)
            done += source_bytes
            progress(done, total, name)
        writer.finish({"squared_error": sums.squared_error, "squared_weight": sums.squared_weight})
