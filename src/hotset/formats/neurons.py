"""The FFN of a packed store: each layer's neurons as bundles (docs/reference/store.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hotset.errors import FormatError
from hotset.formats.files import Json, is_count, quoted, read_at
from hotset.quant import NEURON_FORMATS, NeuronLayout

if TYPE_CHECKING:
    from hotset.formats.store import StoreEntry

BUNDLES, ORDER, SUMS = "neurons", "i32", "u32"  # formats of the three tensors of a layer
ORDERS = ("none", "frequency", "coactivation")
_PARTS = {"neurons": BUNDLES, "order": ORDER, "crc32c": SUMS}


def tensor_name(layer: int, part: str) -> str:
    """part: "neurons", "order" or "crc32c"; of a checkpoint's own predictor "predictor_in" or "predictor_out"."""
    return f"hotset.layers.{layer}.{part}"


@dataclass(frozen=True, slots=True)
class NeuronInfo:
    """Where the bundles of every layer lie. Neurons are stored in an order of their own, layer by layer."""

    path: str
    fmt: str  # "q4_0" or "q8_0"
    gated: bool
    hidden: int
    ffn: int  # neurons in a layer
    stride: int  # bytes from one bundle to the next
    order: str  # how they were ordered: "none", "frequency" or "coactivation"
    offsets: tuple[int, ...]  # of the first bundle of each layer, bytes from the start of the file
    _orders: tuple[StoreEntry, ...]
    _sums: tuple[StoreEntry, ...]

    @property
    def layout(self) -> NeuronLayout:
        return NeuronLayout(self.fmt, self.hidden, self.gated)

    @property
    def layers(self) -> int:
        return len(self.offsets)

    def read_order(self, layer: int) -> NDArray[np.int32]:
        """[ffn]: the model's own index of the k-th neuron stored. Raises FormatError unless all occur once."""
        order = _read(self._orders[layer], "<i4")
        if not np.array_equal(np.sort(order), np.arange(self.ffn)):
            raise FormatError(
                f"{self.path}: the order of layer {layer} does not name each of its {self.ffn} neurons once; "
                "copy the store again or pack it again"
            )
        return order

    def read_crc32c(self, layer: int) -> NDArray[np.uint32]:
        """[ffn]: CRC-32C of each bundle in stored order, padding left out."""
        return _read(self._sums[layer], "<u4")


def _read(entry: StoreEntry, dtype: str) -> NDArray[Any]:
    return np.frombuffer(read_at(Path(entry.path), entry.offset, entry.bytes), dtype)


def neuron_info(path: Path, section: Json, entries: Mapping[str, StoreEntry]) -> NeuronInfo | None:
    """What the section `hotset` of a store's config and its tensors say; None if the store is not packed.

    Raises: FormatError if they contradict each other.
    """
    packed = {name for name, entry in entries.items() if entry.fmt in _PARTS.values()}
    described = section.get("neurons")
    if described is None and not packed:
        return None
    layers = len(packed) // len(_PARTS)
    names = {tensor_name(i, part): fmt for i in range(layers) for part, fmt in _PARTS.items()}
    if odd := sorted((packed ^ names.keys()) | {n for n in names if n in packed and entries[n].fmt != names[n]}):
        raise FormatError(f"{path}: tensor {quoted(odd[0])} does not belong to a whole set of packed layers")
    layout, stride, order = _described(path, described)
    bundles, orders, sums = ([entries[tensor_name(i, part)] for i in range(layers)] for part in _PARTS)
    shapes = {(e.rows, e.cols) for e in bundles} | {(e.rows, stride) for e in (*orders, *sums)}
    if len(shapes) != 1 or next(iter(shapes))[1] != stride:
        raise FormatError(
            f"{path}: layers of neurons have shapes {sorted(shapes)}; wanted the same [neurons, {stride}]"
        )
    return NeuronInfo(
        path=bundles[0].path,
        fmt=layout.fmt,
        gated=layout.gated,
        hidden=layout.hidden,
        ffn=bundles[0].rows,
        stride=stride,
        order=order,
        offsets=tuple(e.offset for e in bundles),
        _orders=tuple(orders),
        _sums=tuple(sums),
    )


def _described(path: Path, section: Any) -> tuple[NeuronLayout, int, str]:
    wanted = {"format", "gated", "hidden", "stride", "order"}
    if not isinstance(section, dict) or section.keys() != wanted:
        raise FormatError(f"{path}: config.json's hotset.neurons must have exactly {', '.join(sorted(wanted))}")
    fmt, gated, hidden, stride, order = (section[k] for k in ("format", "gated", "hidden", "stride", "order"))
    fine = fmt in NEURON_FORMATS and isinstance(gated, bool) and order in ORDERS
    if not fine or not all(is_count(n) and 0 < n < 1 << 31 for n in (hidden, stride)):
        raise FormatError(f"{path}: config.json's hotset.neurons is {quoted(str(section), 200)}, which cannot be")
    layout = NeuronLayout(fmt, hidden, gated)
    if stride < layout.bytes:
        raise FormatError(f"{path}: a stride of {stride} bytes does not hold a bundle of {layout.bytes}")
    return layout, stride, order
