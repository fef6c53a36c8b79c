"""What a conversion reads from: a Hugging Face folder or a GGUF file, seen as a model and its tensors in order."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hotset.errors import FormatError, ModelError, StorageError, UsageError
from hotset.formats import gguf, safetensors
from hotset.formats.files import Json, quoted, read_at, read_json, storage_error
from hotset.formats.neurons import tensor_name
from hotset.models import GgufImport, Model, TensorSpec, from_gguf, resolve
from hotset.tools.convert_tied import untie

FLOATS = ("F32", "F16", "BF16", "F64")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_SAMPLE_BYTES = 4096  # of each tensor, for the fingerprint
_NAMED = 8  # tensors that an error lists


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """One tensor of the model and where its rows lie: one after the other, or where `spec.fused` says."""

    spec: TensorSpec
    type: str  # GGUF's name of the element type
    path: Path
    offset: int  # bytes from the start of the file, of the first row
    heads: int = 0  # rows lie in GGUF's order for interleaved RoPE pairs, in this many heads; 0 = in order
    shift: float = 0.0  # to be added to every value

    @property
    def rows(self) -> int:
        """Rows as they lie in the file: a vector is one row, or one row for each value if they must be re-ordered."""
        return self.spec.rows if self.spec.cols or self._scattered else 1

    @property
    def cols(self) -> int:
        return self.spec.cols or (1 if self._scattered else self.spec.rows)

    @property
    def _scattered(self) -> bool:
        return bool(self.heads or self.spec.fused)

    @property
    def row_bytes(self) -> int:
        elements, size = gguf.TYPE_BLOCK[self.type]
        return self.cols // elements * size

    @property
    def bytes(self) -> int:
        return self.rows * self.row_bytes

    def runs(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Offset in the file and number of rows of each stretch that rows [begin, end) lie in."""
        fused = self.spec.fused
        period, length = (fused.period, fused.rows) if fused else (self.rows, self.rows)
        while begin < end:
            turn, row = divmod(begin, length)
            count = min(length - row, end - begin)
            yield self.offset + (turn * period + row) * self.row_bytes, count
            begin += count


class Rows(Protocol):
    """Hands out rows of tensors as they lie in the file."""

    def read(self, tensor: SourceTensor, begin: int, end: int) -> NDArray[np.uint8]:
        """Rows [begin, end) as bytes [rows, row_bytes]."""


@dataclass(frozen=True, slots=True)
class Source:
    kind: str  # "safetensors" or "gguf"
    name: str
    config: Json  # in Hugging Face's keys
    model: Model
    tensors: tuple[SourceTensor, ...]  # in the order of model.tensors; then published predictors, which no run reads
    files: dict[str, bytes]  # tokenizer and the like, for the store
    fingerprint: str  # of the contents, whatever the file is called
    notes: tuple[str, ...] = ()  # what the user should know
    rows: Callable[[], Rows] = lambda: FileRows()


@dataclass(slots=True)
class FileRows:
    """Reads rows with pread: unlike a mapping it holds no memory and turns a drive's error into an exception."""

    _files: dict[Path, int] = field(default_factory=dict)

    def read(self, tensor: SourceTensor, begin: int, end: int) -> NDArray[np.uint8]:
        data = np.empty((end - begin, tensor.row_bytes), np.uint8)
        row = 0
        for offset, count in tensor.runs(begin, end):
            self._fill(tensor.path, offset, data[row : row + count].reshape(-1).data)
            row += count
        return data

    def _fill(self, path: Path, offset: int, view: memoryview) -> None:
        try:
            fd = self._open(path)
            while view:
                if not (count := os.preadv(fd, [view[: 1 << 30]], offset)):
                    raise StorageError(f"{path} ends at byte {offset}; it was cut while it was read")
                offset, view = offset + count, view[count:]
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise storage_error(path, f"cannot be read at offset {offset}", error) from None

    def _open(self, path: Path) -> int:
        if path not in self._files:
            self._files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return self._files[path]

    def __del__(self) -> None:
        for fd in self._files.values():
            os.close(fd)


def open_source(path: Path, ignore_keys: Collection[str] = ()) -> Source:
    """Looks at a folder or a .gguf file and matches its tensors with what the model needs.

    Raises: StorageError, FormatError; ModelError naming every tensor that is missing, unknown or of the wrong shape;
        UsageError if the path is neither.
    """
    if path.is_dir():
        return _open_folder(path, ignore_keys)
    if path.is_file():
        return _open_gguf(path, ignore_keys)
    raise UsageError(f"{path} does not exist; a Hugging Face folder or a .gguf file was wanted")


def _open_folder(folder: Path, ignore_keys: Collection[str]) -> Source:
    if not (folder / "config.json").is_file():
        ggufs = sorted(p.name for p in folder.glob("*.gguf"))
        hint = f"; for the GGUF in it give {folder / ggufs[0]}" if ggufs else ""
        raise ModelError(f"{folder} has no config.json, so it is not a Hugging Face model{hint}")
    if not any(folder.glob("*.safetensors")):
        old = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
        why = f"only {old[0]}, a pickle, which can run code when it is read" if old else "no weights"
        raise ModelError(f"{folder} has {why}; take the model as safetensors (most hubs offer it, or save_pretrained)")
    config = {key: value for key, value in read_json(folder / "config.json").items() if key != "hotset"}
    model, found = resolve(config, ignore_keys=ignore_keys), safetensors.read_folder(folder)
    config, model = untie(config, model, found, ignore_keys, str(folder))
    shapes = {name: entry.shape for name, (_, entry) in found.items()}
    tensors = tuple(
        _folder_tensor(spec, *found[name])
        for spec, name in match_tensors(model, {name: model.canonical(name) for name in found}, shapes, str(folder))
    )
    files, notes = _folder_files(folder)
    tensors += tuple(
        _checked(SourceTensor(spec, found[name][1].dtype, found[name][0], found[name][1].offset))
        for spec, name in match_predictors(model, shapes, str(folder))
    )
    digest = _fingerprint(tensors, [(folder / "config.json").read_bytes(), *files.values()])
    return Source("safetensors", folder.resolve().name, config, model, tensors, files, digest, (*model.notes, *notes))


def _folder_tensor(spec: TensorSpec, path: Path, entry: safetensors.Entry) -> SourceTensor:
    tensor = _checked(SourceTensor(spec, entry.dtype, path, entry.offset))
    return replace(tensor, offset=tensor.offset + spec.fused.first * tensor.row_bytes) if spec.fused else tensor


def _folder_files(folder: Path) -> tuple[dict[str, bytes], tuple[str, ...]]:
    from hotset.tokenizer import from_folder

    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        kept = ("generation_config.json",)
        files = {name: (folder / name).read_bytes() for name in kept if (folder / name).is_file()}
        return files, (f"{folder} has no tokenizer, so the store takes and gives token ids only",)
    return {name: text.encode() for name, text in from_folder(folder).items()}, ()


def _open_gguf(path: Path, ignore_keys: Collection[str]) -> Source:
    from hotset.tokenizer import from_gguf as tokenizer_files

    file = gguf.read(path)
    if file.metadata.get("split.count", 0) not in (0, 1):
        raise ModelError(f"{path} is one part of a split model; join the parts with `llama-gguf-split --merge` first")
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    imported = from_gguf(file.metadata, shapes, ignore_keys=ignore_keys)
    if imported.rope_divisors is not None:
        imported = imported.with_rope_divisors(_vector(path, file.tensors[imported.rope_divisors]))
    model = resolve(imported.config, ignore_keys=ignore_keys)
    names = {name: None if name in imported.unused else imported.names.get(name, name) for name in shapes}
    tensors = tuple(
        _gguf_tensor(spec, path, file.tensors[name], imported)
        for spec, name in match_tensors(model, names, shapes, str(path))
    )
    files = {name: text.encode() for name, text in tokenizer_files(file.metadata).items()}
    digest = _fingerprint(tensors, [read_at(path, 0, file.data_offset)])
    return Source("gguf", path.name, imported.config, model, tensors, files, digest, model.notes)


def _gguf_tensor(spec: TensorSpec, path: Path, tensor: gguf.GgufTensor, imported: GgufImport) -> SourceTensor:
    heads, shift = imported.permuted.get(spec.name, 0), -1.0 if spec.name in imported.shifted else 0.0
    found = SourceTensor(spec, tensor.type, path, tensor.offset, heads, shift)
    return found if spec.cols else _checked(found)


def _vector(path: Path, tensor: gguf.GgufTensor) -> NDArray[np.float32]:
    if tensor.type != "F32":
        raise FormatError(f"{path}: the RoPE divisors have type {tensor.type}; F32 was wanted")
    return np.frombuffer(read_at(path, tensor.offset, tensor.bytes), "<f4")


def match_tensors(
    model: Model,
    names: Mapping[str, str | None],
    shapes: Mapping[str, tuple[int, ...]],
    where: str,
) -> list[tuple[TensorSpec, str]]:
    """Pairs every tensor that the model needs with its name in the source.

    Args:
        names: name in the source -> source_name in the model; None: known and not needed.
        shapes: of the tensors by their names in the source.
        where: the source, for messages.
    Raises: ModelError naming every tensor that is missing, unknown or of the wrong shape.
    """
    found: dict[str, str] = {}
    for name, wanted in names.items():
        if wanted is not None and found.setdefault(wanted, name) != name:
            raise ModelError(f"{where} has the tensor {quoted(wanted)} twice, also as {quoted(name)}; remove one")
    needed = {spec.source_name: spec.source_shape for spec in model.tensors}
    missing = [name for name in needed if name not in found]
    extra = [name for wanted, name in found.items() if wanted not in needed]
    wrong = [
        f"{name} {list(shapes[found[name]])} instead of {list(shape)}"
        for name, shape in needed.items()
        if name in found and _squeezed(shapes[found[name]]) != shape
    ]
    problems = [
        f"{what}: {_listed(tensors)}"
        for what, tensors in (("missing", missing), ("unknown", extra), ("of the wrong shape", wrong))
        if tensors
    ]
    if problems:
        raise ModelError(
            f"the tensors of {where} are not those of a {model.family} model with this config; {'; '.join(problems)}. "
            "Check that config and weights belong together and that all files are there"
        )
    return [(spec, found[spec.source_name]) for spec in model.tensors]


def match_predictors(model: Model, shapes: Mapping[str, tuple[int, ...]], where: str) -> list[tuple[TensorSpec, str]]:
    """The tensors of the predictors that a checkpoint brings, as the store will have them, with their names in it.

    Two matrices for each layer, [rank, hidden] and [ffn, rank], with a rank of its own; none at all is fine.
    Raises ModelError naming one that is missing or of the wrong shape.
    """
    c, rows = model.config, list[tuple[TensorSpec, str]]()
    layers = [{role: name.format(i) for role, name in model.predictor.items()} for i in range(len(c.layers))]
    if not any(name in shapes for layer in layers for name in layer.values()):
        return rows
    for i, layer in enumerate(layers):
        rank = (shapes.get(layer["predictor_in"]) or (0,))[0]
        for role, wanted in (("predictor_in", (rank, c.hidden)), ("predictor_out", (c.ffn, rank))):
            if (got := shapes.get(name := layer[role])) != wanted or not rank:
                found = "is missing" if got is None else f"has shape {list(got)}, wanted {list(wanted)}"
                raise ModelError(f"{where}: {quoted(name)} {found}; the predictors are damaged: download them again")
            rows.append((TensorSpec(tensor_name(i, role), role, i, *wanted, "predictor"), name))
    return rows


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Some writers give vectors a leading 1."""
    return shape[1:] if len(shape) == 2 and shape[0] == 1 else shape


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(quoted(name, 120)[1:-1] for name in names[:_NAMED]) + more


def _checked(tensor: SourceTensor) -> SourceTensor:
    if tensor.type not in FLOATS:
        raise FormatError(
            f"{tensor.path}: tensor {quoted(tensor.spec.name)} has type {tensor.type}; {', '.join(FLOATS)} can be "
            "converted: take the unquantized model, or a GGUF"
        )
    return tensor


def _fingerprint(tensors: Iterable[SourceTensor], texts: Iterable[bytes]) -> str:
    """SHA-256 of the texts, of the layout and of the first bytes of every tensor: quick, and unique enough."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(len(text).to_bytes(8, "little") + text)
    for tensor in tensors:
        digest.update(f"{tensor.spec.name} {tensor.type} {tensor.rows} {tensor.cols}\n".encode())
        digest.update(read_at(tensor.path, tensor.offset, min(_SAMPLE_BYTES, tensor.bytes)))
    return digest.hexdigest()
