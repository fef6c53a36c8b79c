"""What the sparse engine keeps in memory, in bytes. Mirrors native/pipeline/sparse_ffn.cc and native/cache."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

POLICIES = ("lru", "clock", "lfu", "window")  # native/cache/policy.h
Predictor = Literal["all", "gate", "read-gate", "low-rank", "sketch"]
PREDICTORS: tuple[Predictor, ...] = get_args(Predictor)
MOST_PARALLEL = 8  # sequences of a step that chooses its neurons, SparseFfn::kMostSparseRows
PIECE_NEURONS = 512  # of a prompt's stream, SparseFfn::kPieceNeurons
_RING = 8  # pieces in flight
_TILE = 16  # rows of scores
# Of every neuron: place in the cache, and checksums with and without gate.
_TABLE_BYTES = 4 + 4 + 4
_SLOT_BYTES = 8 + 8 + 8  # owner, links and time of use of a cold slot
_RING_MORE, _MOST_RING = 4, 32  # pieces of gates in memory, those of a layer and more: native/pipeline/gate_stream.cc
_READ_BYTES = 1 << 20  # about as much of a piece is one request, native/pipeline/layer_stream.cc
_BOUNCES = 64  # buffers of reads that go as one request, native/io/backend.h
# Of one request, and between two neurons that are read with it, where the drive was not probed: io::ReaderOptions.
MERGED_BYTES, GAP_BYTES = 128 << 10, 32 << 10
READ_BLOCK = 4096  # of which merged_bytes is a multiple
MOST_MERGED = 16 << 20  # as each buffer takes so much
_THREAD_BYTES = 1 << 20  # products of 32 neurons for 128 tokens, and lists of them


def knows_gates(predictor: Predictor) -> bool:
    """Whether it gives the values of the gates, so that bundles are read and held without them."""
    return predictor in ("gate", "read-gate")


def spill_places(predictor: Predictor, ffn: int) -> int:
    """Missing neurons of a layer of `ffn` for which there usually are places even if few cold slots are free.

    The engine skips further ones where scores are estimates. A layer that misses a quarter of its neurons is slower
    than one that is read in order, whatever is predicted; but where that takes more memory than there is, or where
    little may be lost, a plan has more places.
    """
    return -(-ffn // 4) if predictor in ("low-rank", "sketch") else ffn


@dataclass(frozen=True, slots=True)
class NeuronSizes:
    """The neurons of a packed model, and what finds the active ones."""

    layers: int
    ffn: int  # neurons in a layer
    hidden: int
    gated: bool
    vector_bytes: int  # of one weight vector of a neuron
    stride: int  # bytes of a neuron as it is read and held; of a whole bundle unless `of` says otherwise
    gate_bytes: int  # all gates as matrices; 0: the gate does not tell whether a neuron is zero
    read_gate_bytes: int = 0  # a copy of the gates on the drive, which a token reads in order; 0: none
    gate_piece: int = 0  # bytes of it that come as one piece
    low_rank_bytes: int = 0  # predictors that came with the store; 0: none
    low_rank_ahead: bool = False  # whether these are given the input of the layer before
    sketch_bytes: int = 0  # low-bit copies of gate and up; 0: none
    sketch_read: int = 0  # bytes of these that a token reads, on average
    spacing: int = 0  # bytes from one neuron to the next on the drive; 0: as they are held
    stride_without_gate: int = 0  # what is read and held where the gates are in memory already; 0: the same
    merged_bytes: int = MERGED_BYTES  # most that missing neurons near each other are read with as one request
    gap_bytes: int = GAP_BYTES  # most between two of them
    spill: int | None = None  # places for missing neurons of a layer, where scores are estimates; None: as usual

    def of(self, predictor: Predictor) -> NeuronSizes:
        """With the stride that neurons have beside this predictor."""
        shorter = self.stride_without_gate if knows_gates(predictor) else 0
        return replace(self, stride=shorter, spacing=self.spaced) if shorter else self

    @property
    def spaced(self) -> int:
        """Bytes from one neuron to the next on the drive."""
        return self.spacing or self.stride

    def request_bytes(self, requests: float, neurons: float) -> float:
        """Of requests that read so many neurons in all, and what lies between them."""
        return requests * self.stride + (neurons - requests) * self.spaced

    @property
    def neurons(self) -> int:
        return self.layers * self.ffn

    @property
    def slot_bytes(self) -> int:
        """Of a neuron in the cold cache."""
        return self.stride + _SLOT_BYTES

    def predictor_bytes(self, predictor: Predictor) -> int:
        """Its matrices, and the scores of a step."""
        if predictor == "all":
            return 0
        matrices = {
            "gate": self.gate_bytes,
            "read-gate": self._gate_ring() * self.gate_piece,
            "sketch": self.sketch_bytes,
            "low-rank": self.low_rank_bytes,
        }[predictor]
        return matrices + 4 * _TILE * (self.ffn + 63)

    def _gate_ring(self) -> int:
        """Pieces of gates in memory."""
        return min(self.read_gate_bytes // max(self.gate_piece, 1) // self.layers + _RING_MORE, _MOST_RING)

    def predictor_reads(self, predictor: Predictor) -> int:
        """Bytes of it that a token reads, on average."""
        if predictor == "read-gate":
            return self.read_gate_bytes
        left = self.sketch_bytes - self.sketch_read if predictor == "sketch" else 0
        return self.predictor_bytes(predictor) - left

    def in_order_bytes(self, predictor: Predictor) -> int:
        """That a token reads from the drive in order, before it is known which neurons it needs."""
        return self.read_gate_bytes if predictor == "read-gate" else 0

    def in_order_reads(self, predictor: Predictor) -> int:
        """Requests of the drive for these."""
        if not self.in_order_bytes(predictor):
            return 0
        return self.read_gate_bytes // self.gate_piece * max(1, round(self.gate_piece / _READ_BYTES))

    def layers_at_work(self, predictor: Predictor) -> int:
        """Whose neurons are in use at a time."""
        return 2 if predictor == "low-rank" and self.low_rank_ahead else 1

    def spill_places(self, predictor: Predictor) -> int:
        usual = spill_places(predictor, self.ffn)
        return usual if self.spill is None or usual == self.ffn else self.spill

    def most_missing(self, predictor: Predictor, hot: int) -> int:
        """Neurons that the layers at work may miss together, where `hot` of each stay."""
        return self.layers_at_work(predictor) * min(self.ffn - hot, self.spill_places(predictor))

    def spilled(self, predictor: Predictor, hot: int, cold_slots: int) -> int:
        """Missing neurons of a layer that may find every cold slot in use, where `hot` of a layer stay.

        The first of the layers at work may have taken all slots.
        """
        missing = self.most_missing(predictor, hot)
        return min(missing // self.layers_at_work(predictor), max(0, missing - cold_slots))

    def spill_bytes(self, predictor: Predictor, hot: int, cold_slots: int) -> int:
        return self.layers_at_work(predictor) * self.spilled(predictor, hot, cold_slots) * self.stride

    def places(self, predictor: Predictor, hot: int, cold_slots: int) -> int:
        """Neurons beyond the hot ones that each of the layers at work can have in memory at a time, for sure."""
        spilled = self.spilled(predictor, hot, cold_slots)
        return max(spilled, (cold_slots + spilled) // self.layers_at_work(predictor))

    def overhead_bytes(self, step_tokens: int, threads: int) -> int:
        """Everything but the neurons in memory and the predictor: tables, and buffers of prompts."""
        buffers = _RING * PIECE_NEURONS * self.stride + _BOUNCES * self.merged_bytes
        # Products of a piece with their places, and activations as int8 with scales.
        prompts = step_tokens * (PIECE_NEURONS * 6 + self.hidden * 5 // 4)
        return self.neurons * _TABLE_BYTES + buffers + prompts + threads * _THREAD_BYTES
