"""What a packed store will be: decided before anything is written."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hotset import _core
from hotset.errors import FormatError, UsageError
from hotset.formats.files import Json, quoted, read_whole, storage_error
from hotset.formats.neurons import BUNDLES, ORDER, SUMS, tensor_name
from hotset.formats.profile import PROFILE_FILE
from hotset.formats.store import MANIFEST, NEURONS, Store, open_store
from hotset.formats.store_file import StoreTensor
from hotset.models import Model, resolve
from hotset.quant import NeuronLayout, neuron_format
from hotset.tools.pack_layers import Layer
from hotset.tools.pack_order import check_order, fewest_requests

AUTO = "auto"
SAFE_ALIGNMENT = 4096  # no drive asks for more; taken where the file system does not say
LARGEST_STRIDE = 1 << 24


@dataclass(frozen=True, slots=True)
class PackPlan:
    """Everything that the contents of the packed store depend on."""

    source: Store
    model: Model
    layout: NeuronLayout
    stride: int
    order: str
    requests: Mapping[str, float]  # of the drive for a token by order, where that chose it

    @property
    def layers(self) -> int:
        return len(self.model.config.layers)

    @property
    def section(self) -> Json:
        """What config.json's section `hotset` gets."""
        profile = self.source.path / PROFILE_FILE
        return {
            "neurons": {
                "format": self.layout.fmt,
                "gated": self.layout.gated,
                "hidden": self.layout.hidden,
                "stride": self.stride,
                "order": self.order,
            },
            "packed": {
                "manifest": _sha256(self.source.path / MANIFEST),
                "profile": _sha256(profile) if self.order != "none" else None,
            },
        }

    def layer(self, index: int) -> Layer:
        specs = {s.role: s.name for s in self.model.tensors if s.layer == index and s.kind == "ffn"}
        return Layer(self.source, {role: specs[role] for role in self.layout.roles})

    def tensors(self) -> Iterator[StoreTensor]:
        """Of each layer the small ones first: a layer whose bundles are there is done."""
        ffn = self.model.config.ffn
        for i in range(self.layers):
            yield StoreTensor(tensor_name(i, "order"), ORDER, ffn, 0, neurons=True)
            yield StoreTensor(tensor_name(i, "crc32c"), SUMS, ffn, 0, neurons=True)
            yield StoreTensor(tensor_name(i, "neurons"), BUNDLES, ffn, self.stride, neurons=True)


def plan_pack(folder: Path, dest: Path, fmt: str, stride: str | int, order: str) -> PackPlan:
    """Raises: UsageError (a store packed already, values that cannot be), FormatError, StorageError, ModelError."""
    source = open_store(folder)
    if source.neurons is not None:
        raise UsageError(f"{folder} is packed already; pack the dense store that it was made from")
    model = resolve(source.config)
    _check_tensors(source, model)
    layout = NeuronLayout(neuron_format(fmt), model.config.hidden, model.config.gated)
    least = chosen_stride(stride, layout, direct_alignment(dest))
    order, requests = _order(order, source, model, least)
    return PackPlan(source, model, layout, least, order, requests)


def _order(order: str, source: Store, model: Model, stride: int) -> tuple[str, dict[str, float]]:
    """The order, and what was compared to choose it: requests of the drive for a token."""
    if order != AUTO:
        check_order(order, source.path)
        return order, {}
    if not (source.path / PROFILE_FILE).is_file():
        return "none", {}
    requests = fewest_requests(source, model, stride)
    return next(iter(requests)), requests


def _check_tensors(source: Store, model: Model) -> None:
    """The FFN matrices of the model, with their shapes, and nothing else, must be in neurons.safetensors."""
    wanted = {s.name: (s.rows, s.cols) for s in model.tensors if s.kind == "ffn"}
    found = {n: (e.rows, e.cols) for n, e in source.entries.items() if Path(e.path).name == NEURONS}
    if odd := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
        raise FormatError(
            f"{source.path}: tensor {quoted(odd[0])} of {NEURONS} has shape {found.get(odd[0])}; this model's has "
            f"{wanted.get(odd[0])}: convert it again"
        )


def chosen_stride(stride: str | int, layout: NeuronLayout, alignment: int) -> int:
    """alignment: of direct reads. Raises UsageError for a stride that cannot be."""
    least = -(-layout.bytes // alignment) * alignment
    if stride == AUTO:
        return least
    try:
        chosen = int(stride)
    except ValueError:
        raise UsageError(f"stride is {str(stride)[:40]!r}; wanted {AUTO} or bytes, such as {least}") from None
    if not layout.bytes <= chosen <= LARGEST_STRIDE or chosen % alignment:
        raise UsageError(
            f"stride is {chosen} bytes; a neuron has {layout.bytes}, and direct reads on this drive ask for multiples "
            f"of {alignment}: wanted {least} or more, up to {LARGEST_STRIDE}"
        )
    return chosen


def direct_alignment(dest: Path) -> int:
    """Bytes of which direct reads in the file system of `dest` (which need not exist) must be multiples."""
    folder = next(p for p in dest.absolute().parents if p.is_dir())
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".hotset-") as file:
            file.write(bytes(SAFE_ALIGNMENT))
            file.flush()
            alignment = _core.direct_alignment(file.name)
    except OSError as error:
        raise storage_error(folder, "cannot be written", error) from None
    return alignment if alignment > 1 else SAFE_ALIGNMENT


def _sha256(path: Path) -> str:
    return hashlib.sha256(read_whole(path)).hexdigest()
