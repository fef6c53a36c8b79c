"""The native core as Python sees it. Shapes in brackets; the GIL is released in everything that computes."""

from collections.abc import Sequence as Seq

import numpy as np
from numpy.typing import NDArray

__version__: str
compiler: str

# --- host -------------------------------------------------------------------------------------------
class IsaInfo:
    name: str
    description: str
    compiled: bool
    supported: bool

def isa_list() -> list[IsaInfo]: ...
def select_isa(name: str | None = None) -> str:
    """Name of the kernels that `name` (or HOTSET_ISA, or the best supported) selects. Raises HostError."""

def cpu_info() -> dict[str, object]:
    """model, features (list), allowed_cpus (list), l1d_bytes, l2_bytes, l3_bytes."""

def io_info() -> dict[str, bool]:
    """io_uring_compiled, io_uring_works."""

def memory_bandwidth(threads: int, megabytes: int, seconds: float) -> float:
    """Sequential read rate of huge-page memory in bytes/s, streamed the way the kernels do."""

def drive_read(
    path: str, block_bytes: int, depth: int, backend: str, random: bool, seconds: float, memory_bytes: int = 0
) -> dict[str, float]:
    """bytes_per_s, reads_per_s, cpu_us_per_read, of direct reads within an existing file.

    memory_bytes: that they go to in turn, if that is more than what is in flight.
    Also direct: 1.0, or 0.0 where the file system has no direct I/O and the page cache answered.
    """

def busy_drive_read(
    path: str, block_bytes: int, depth: int, backend: str, threads: int, seconds: float
) -> dict[str, float]:
    """The same in rising order beside `threads` computing threads, one of which sends and takes the reads.

    Also work_share: of the threads' speed without reads.
    """

def direct_alignment(path: str) -> int:
    """Bytes of which direct reads of an existing file are multiples; 1 where its file system has no direct I/O."""

def crc32c(data: bytes | memoryview | NDArray[np.uint8], crc: int = 0) -> int: ...

# --- weight formats: "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1" --------------------------------------
def packed_bytes(fmt: str, rows: int, cols: int) -> int: ...
def encode(
    fmt: str, weights: NDArray[np.float32], out: NDArray[np.uint8], threads: int = 0
) -> tuple[float, float, float]:
    """Packs weights [rows, cols] into out [packed_bytes]; returns sums (squared error, squared weight), max error."""

def repack_ggml(
    fmt: str, src: NDArray[np.uint8], rows: int, cols: int, out: NDArray[np.uint8], threads: int = 0
) -> None:
    """GGUF blocks, row-major, to the packed layout; every value unchanged."""

def decode(fmt: str, packed: NDArray[np.uint8], rows: int, cols: int) -> NDArray[np.float32]: ...
def sketch_bytes(bits: int, rows: int, cols: int) -> int:
    """Of a copy of a matrix in 2 or 3 bits (native/quant/sketch.h)."""

def encode_sketch(
    bits: int, weights: NDArray[np.float32], importance: NDArray[np.float32], out: NDArray[np.uint8], threads: int = 0
) -> None:
    """weights [rows, cols] into out [sketch_bytes], row by row; errors of column j count importance[j] > 0."""

def decode_sketch(bits: int, sketch: NDArray[np.uint8], rows: int, cols: int) -> NDArray[np.float32]: ...

# --- single kernels, for tests and micro benchmarks ----------------------------------------------------
def matmul(
    isa: str, fmt: str, packed: NDArray[np.uint8], rows: int, cols: int, x: NDArray[np.float32]
) -> NDArray[np.float32]:
    """x [tokens, cols] -> [tokens, rows], one thread, tiles of 16 tokens."""

def quantize_q8(isa: str, x: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """x [cols] -> codes [groups * 32], scales [groups]."""

def norm(
    isa: str,
    kind: str,
    x: NDArray[np.float32],
    w: NDArray[np.float32] | None,
    b: NDArray[np.float32] | None,
    eps: float,
) -> NDArray[np.float32]: ...
def activate(isa: str, name: str, threshold: float, x: NDArray[np.float32]) -> NDArray[np.float32]: ...
def glu(
    isa: str,
    gate_act: str,
    up_act: str,
    gate: NDArray[np.float32],
    up: NDArray[np.float32],
    gate_threshold: float = 0,
    up_threshold: float = 0,
) -> NDArray[np.float32]: ...
def expected(
    isa: str, name: str, threshold: float, noise: NDArray[np.float32], x: NDArray[np.float32]
) -> NDArray[np.float32]:
    """About the mean of |f(x + noise e)| over normal e."""

def rope(
    isa: str, cos: NDArray[np.float32], sin: NDArray[np.float32], x: NDArray[np.float32]
) -> NDArray[np.float32]: ...
def attend(
    isa: str,
    kv: str,
    q: NDArray[np.float32],
    k: NDArray[np.float32],
    v: NDArray[np.float32],
    lo: NDArray[np.int64],
    hi: NDArray[np.int64],
) -> NDArray[np.float32]:
    """One KV head: q [n, hd] (already scaled), k and v [tokens, hd] -> [n, hd]; goes through KV pages of type `kv`."""

def logsumexp(isa: str, x: NDArray[np.float32]) -> tuple[float, float]: ...
def block_maxima(isa: str, x: NDArray[np.float32]) -> tuple[NDArray[np.float32], bool]:
    """Maxima of 64 values each, and whether all values are finite."""

def softmax_weights(
    isa: str, x: NDArray[np.float32], max: float, scale: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """exp((x - max) * scale) for x <= max, and sums of 1024 of them each."""

# --- neurons ("q4_0" or "q8_0"; native/quant/neuron.h) ---------------------------------------------------
def vector_bytes(fmt: str, cols: int) -> int: ...
def encode_vectors(fmt: str, weights: NDArray[np.float32], out: NDArray[np.uint8]) -> tuple[float, float, float]:
    """weights [n, cols] into out [n, vector_bytes]; returns sums (squared error, squared weight), max abs error."""

def decode_vectors(fmt: str, vectors: NDArray[np.uint8], cols: int) -> NDArray[np.float32]:
    """vectors [n, vector_bytes] -> [n, cols]."""

class NeuronFile:
    """Where the bundles of a packed model lie.

    offsets: of neuron 0 of each layer; crc32c: [layers][neurons] of the bytes of each bundle without its padding;
    biases: [layers][neurons] in store order, or empty.
    """

    def __init__(
        self,
        path: str,
        fmt: str,
        hidden: int,
        gated: bool,
        stride: int,
        neurons: int,
        offsets: Seq[int],
        crc32c: Seq[NDArray[np.uint32]],
        gate_bias: Seq[Seq[float]] = (),
        up_bias: Seq[Seq[float]] = (),
    ) -> None: ...

class SketchFile:
    """Where the sketches of all layers lie: offsets of gate (0 where there is none), up and [6, neurons] of f32."""

    def __init__(self, path: str, bits: int, offsets: Seq[tuple[int, int, int]]) -> None: ...

class GateFile:
    """A copy of all gates, in pieces of 512 neurons that begin `stride` bytes apart; offsets: of each layer's first.

    crc32c: [layers][ceil(neurons / 16)] of 16 vectors each; crc32c_rest: [layers][neurons] of the bundles without gate.
    """

    def __init__(
        self,
        path: str,
        fmt: str,
        hidden: int,
        neurons: int,
        stride: int,
        offsets: Seq[int],
        crc32c: Seq[NDArray[np.uint32]],
        crc32c_rest: Seq[NDArray[np.uint32]],
    ) -> None: ...

class SparseOptions:
    """How an engine gets at its neurons.

    hot: neurons of each layer that stay in memory; cold_slots: of all layers together; policy: "lru", "clock" or "lfu";
    predictor: "all" (compute every neuron), "gate" (exact, gates in memory), "read-gate" (exact, from `gates`, with no
    hot neurons), "low-rank" or "sketch"; keep, fetch: [layers] least score of a neuron in memory, and of a missing one,
    to be computed; low_rank: [layers] of (down [rank, hidden], up [neurons, rank]), relu between the two if `relu`;
    draft_only: only steps with draft=True use the predictor; ahead: maps of all layers but the first are given the
    input of the layer before; sketch: of "sketch"; overlap=False: a layer's reads are waited for before any of its
    neurons is computed; merged_bytes, gap_bytes: missing neurons are one request up to so many bytes (0: each its own),
    with at most so many between two of them.
    """

    def __init__(
        self,
        hot: Seq[int],
        cold_slots: int,
        policy: str = "clock",
        predictor: str = "all",
        keep: Seq[float] = (),
        fetch: Seq[float] = (),
        low_rank: Seq[tuple[TensorRef, TensorRef]] = (),
        relu: bool = False,
        backend: str = "auto",
        depth: int = 64,
        draft_only: bool = False,
        ahead: bool = False,
        sketch: SketchFile | None = None,
        overlap: bool = True,
        spill: int = ...,
        merged_bytes: int = 131072,
        gap_bytes: int = 32768,
        gates: GateFile | None = None,
    ) -> None: ...

# --- model ------------------------------------------------------------------------------------------
class TensorRef:
    """Where one weight lies. role: see docs/reference/store.md; layer -1 for tensors of the whole model."""

    def __init__(
        self, role: str, layer: int, path: str, offset: int, bytes: int, fmt: str, rows: int, cols: int
    ) -> None: ...

class FileChecksums:
    """CRC-32C of every block_bytes of a file, as in the store's manifest."""

    def __init__(self, path: str, block_bytes: int, file_bytes: int, crc32c: Seq[int]) -> None: ...

class Engine:
    """One loaded model, its threads and its KV cache. One step at a time; not for use by two threads at once.

    desc: the fields of ModelDesc (native/model/descriptor.h) as a dict; enums as strings; `ropes` and `layers` as lists
        of dicts.
    kv_tokens: tokens the KV cache can hold in all, rounded up to pages of 64; memory comes on first use.
    load: "read" (direct reads into huge pages, compared with `checksums`), "mmap" (not compared), or "auto" (read).
    embed_io: the embedding stays on the drive, and this back end (SparseOptions) reads the rows of each step's tokens.
    Raises UsageError, FormatError (wrong role, shape), StorageError, MemoryBudgetError, HostError.
    """

    def __init__(
        self,
        desc: dict[str, object],
        tensors: Seq[TensorRef],
        *,
        checksums: Seq[FileChecksums] = (),
        threads: int = 0,
        kv_type: str = "f16",
        kv_tokens: int = 4096,
        max_step_tokens: int = 512,
        load: str = "auto",
        isa: str | None = None,
        pin: bool = True,
        neurons: NeuronFile | None = None,
        sparse: SparseOptions | None = None,
        embed_io: str | None = None,
    ) -> None: ...
    def sequence_new(self) -> int: ...
    def sequence_fork(self, seq: int) -> int:
        """A new sequence that shares all pages; a shared page is copied when written."""

    def sequence_free(self, seq: int) -> None: ...
    def sequence_truncate(self, seq: int, tokens: int) -> None: ...
    def sequence_length(self, seq: int) -> int: ...
    def kv_free_tokens(self) -> int: ...
    def step(
        self,
        seqs: NDArray[np.int32],
        counts: NDArray[np.int32],
        tokens: NDArray[np.int32],
        want: NDArray[np.uint8],
        rope_lengths: NDArray[np.int64] | None = None,
        draft: bool = False,
    ) -> int:
        """Appends counts[i] tokens to sequence seqs[i] (tokens concatenated) and computes logits.

        want[i]: 0 = none, 1 = after the last token, 2 = after every token. rope_lengths[i]: final known length of the
        sequence, for dynamic RoPE (default: length after this step). Returns the number of logit rows, in input order.
        draft: only a guess is wanted, so what SparseOptions calls draft_only may be used.
        Any number of tokens up to max_step_tokens. Nothing is appended if it raises (Ctrl-C between layers included).
        """

    def logits(self) -> NDArray[np.float32]:
        """[rows, vocab] of the last step; a view that the next step overwrites."""

    def token_logprobs(self, targets: NDArray[np.int32]) -> NDArray[np.float32]:
        """log softmax(logits[i])[targets[i]] for every row of the last step."""

    def top_logprobs(self, row: int, n: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]: ...
    def cancel(self) -> None:
        """Makes the running step, if any, raise KeyboardInterrupt before its next layer. From any thread."""

    def set_threads(self, threads: int) -> None: ...
    def set_ffn_floor(
        self, layer: int, *, input: float = 0.0, gate: float = 0.0, product: NDArray[np.float32] | None = None
    ) -> None:
        """From the next step on, smaller magnitudes count as 0 in a layer's FFN; 0 and None: nothing does.

        input: of the FFN's inputs; gate: of activated gates; product: [ffn], of what goes into down, by neuron (of a
        packed model in store order).
        """

    def shrink_cold(self, slots: int) -> int:
        """Gives up so many cold slots of a packed model, and evicts what they hold; changes no result.

        A few stay where a layer's neurons would else find no place. Returns the bytes that go back to the system, 0 for
        slots never used. Not during a step.
        """

    def warm(self) -> None:
        """Touches all weights (mmap) so that the first token does not wait for the drive."""

    @property
    def stats(self) -> dict[str, float]:
        """weight_bytes, kv_bytes_used, kv_bytes_reserved, scratch_bytes, load_seconds, bytes_read, bytes_per_token."""

    def record(self, activations: bool, inputs: bool = False) -> None:
        """From the next step on keeps what the FFNs do; forgets what was kept before."""

    def take_record(self) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """What was recorded since the last call, for all rows of all steps, and forgets it.

        Active neurons [rows, layers, ceil(ffn / 8)], bit i % 8 of byte i / 8 (of a packed model in store order), and
        inputs of the FFNs [rows, layers, hidden]; no rows of what is not recorded.
        """

    @property
    def sparse_stats(self) -> dict[str, float]:
        """Of an engine with neurons: layers, candidates, active, missed, skipped, reads, bytes_read, stall_seconds,
        evictions, bytes, cold_slots, cold_used (slots that ever held a neuron), slot_bytes; empty otherwise."""

    @property
    def threads(self) -> int: ...
    @property
    def isa(self) -> str: ...

class Sampler:
    def __init__(
        self,
        *,
        seed: int,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: dict[int, float] | None = None,
    ) -> None: ...
    def fork(self) -> Sampler:
        """Draws what this one would draw, and does not change it."""

    def accept_prompt(self, tokens: NDArray[np.int32]) -> None: ...
    def sample(self, engine: Engine, row: int, mask: NDArray[np.uint32] | None = None) -> tuple[int, float]: ...
    def sample_logits(
        self, logits: NDArray[np.float32], mask: NDArray[np.uint32] | None = None
    ) -> tuple[int, float]: ...

# --- timeline: spans, reads and counters of all threads; see hotset/engine/trace.py ----------------------
def trace_enable(on: bool) -> None: ...
def trace_take() -> list[tuple[int, str, int, NDArray[np.uint64]]]:
    """Empties every thread's ring: (thread, its name, events lost, [events, 5]).

    Columns: number of the name; begin and end in ns (end of a counter: bits of its value as float64); kind (0 span,
    1 read, 2 counter); layer of a span (2^32-1: none) or bytes of a read.
    """

def trace_names() -> list[str]:
    """By number; grows with trace_take."""

def trace_filled() -> float:
    """Share of its ring that the busiest thread has filled since the last trace_take."""

def trace_now() -> int:
    """ns of the clock of all events."""
