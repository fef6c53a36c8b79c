"""Random weights in the shape of a real model, as a store and as a GGUF file: to measure speed without a download."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotset.errors import UsageError
from hotset.formats.gguf import TYPE_BLOCK
from hotset.formats.gguf_writer import GgufWriter, NewTensor
from hotset.formats.progress import Progress, silent
from hotset.models import from_gguf, resolve
from hotset.models.gguf import gguf_name
from hotset.quant import FORMATS, QuantPlan, parse_quant
from hotset.tokenizer import from_gguf as tokenizer_files
from hotset.tokenizer.vocabulary import CONTROL, NORMAL
from hotset.tools.convert import ConvertOptions, write_store
from hotset.tools.convert_encode import chunk_rows
from hotset.tools.convert_report import ConvertReport
from hotset.tools.convert_source import Source, SourceTensor

_END = "<|endoftext|>"
_LETTERS = "etaoinshrdlcumwfgypbvkjxqz"  # by frequency in English
# Standard deviation of uniform codes: sqrt((n^2 - 1) / 12) for n of them.
_CODE_SPREAD = {"Q4_0": 4.61, "Q4_1": 4.61, "Q8_0": 73.9}
_FILE_TYPE = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "BF16": 32}


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A llama-like model; the defaults are Mistral 7B's."""

    hidden: int = 4096
    ffn: int = 14336
    layers: int = 32
    heads: int = 32
    kv_heads: int = 8
    vocab: int = 32000
    context: int = 32768
    rope_theta: float = 10000.0

    def check(self) -> None:
        """Raises UsageError for sizes that make no model."""
        least = 256 + 1
        if min(asdict(self).values()) <= 0 or self.vocab < least:
            raise UsageError(
                f"{self}: all sizes must be positive, and the vocabulary at least {least}: bytes and an end"
            )
        if self.hidden % (2 * self.heads) or self.heads % self.kv_heads or self.hidden % 32 or self.ffn % 32:
            raise UsageError(
                f"{self}: hidden must be a multiple of 32 and of 2 * heads, ffn of 32, and heads of kv_heads"
            )


def random_model(
    shape: ModelShape | None = None,
    *,
    store: Path | None = None,
    gguf: Path | None = None,
    quant: str = "q4_0",
    seed: int = 0,
    progress: Progress = silent,
) -> ConvertReport | None:
    """Writes a model with random weights, the same in both files; the same seed gives the same weights.

    Args:
        store, gguf: where to write; None: not. What is there is replaced.
        quant: as for `convert`; "auto" stands for q4_0.
    Returns: the report on the store, if one was asked for.
    Raises: UsageError, StorageError.
    """
    shape = shape or ModelShape()
    shape.check()
    source, metadata = _source(shape, parse_quant("q4_0" if quant == "auto" else quant), seed)
    if gguf is not None:
        _write_gguf(gguf, metadata, source, progress)
    return None if store is None else write_store(source, store, ConvertOptions(), progress=progress, force=True)


@dataclass(frozen=True, slots=True)
class RandomRows:
    """Rows out of a generator instead of a file. Pieces are seeded one by one, so that every reader sees the same."""

    seed: int

    def read(self, tensor: SourceTensor, begin: int, end: int) -> NDArray[np.uint8]:
        """Rows of one piece: `begin` must be a multiple of chunk_rows(tensor)."""
        step = chunk_rows(tensor)
        assert begin % step == 0 and end - begin <= step
        key = (self.seed, zlib.crc32(tensor.spec.name.encode()), begin // step)
        rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence(key)))
        return random_rows(rng, tensor.type, end - begin, tensor.cols)


def random_rows(rng: np.random.Generator, kind: str, rows: int, cols: int) -> NDArray[np.uint8]:
    """Rows of GGUF type `kind` [rows, row_bytes], values with mean 0 and variance 1 / cols; a vector is all ones.

    Blocks are random bytes with a sensible scale put in front: a few times faster than quantizing random numbers.
    """
    if rows == 1:
        return np.ones((1, cols), "<f4").view(np.uint8)
    spread = cols**-0.5
    if kind not in _CODE_SPREAD:
        weights = rng.standard_normal((rows, cols), np.float32) * np.float32(spread)
        if kind == "BF16":
            return (weights.view(np.uint32) >> 16).astype("<u2").view(np.uint8)
        return weights.astype("<f2" if kind == "F16" else "<f4").view(np.uint8)
    elements, size = TYPE_BLOCK[kind]
    blocks = np.frombuffer(rng.bytes(rows * cols // elements * size), np.uint8).reshape(-1, size).copy()
    random = blocks[:, :2].astype(np.float32)
    scale = spread / _CODE_SPREAD[kind] * (0.75 + random[:, 0] / 512)
    if kind == "Q4_1":
        _put(blocks, 2, -7.5 * scale)
    else:  # codes reach further below 0 than above; signs at random put the mean at 0
        scale *= np.where(random[:, 1] < 128, 1, -1)
    _put(blocks, 0, scale)
    return blocks.reshape(rows, -1)


def _put(blocks: NDArray[np.uint8], at: int, values: NDArray[np.float32]) -> None:
    blocks[:, at : at + 2] = values.astype("<f2").view(np.uint8).reshape(-1, 2)


def _source(shape: ModelShape, plan: QuantPlan, seed: int) -> tuple[Source, dict[str, Any]]:
    """The model as something to convert, and the metadata of its GGUF."""
    metadata = gguf_metadata(shape, FORMATS[_format(plan, "ffn")].ggml_type)
    imported = from_gguf(metadata, {"token_embd.weight": (shape.vocab, shape.hidden), "output.weight": (0,)})
    model = resolve(imported.config)
    tensors = tuple(
        SourceTensor(
            spec,
            FORMATS[_format(plan, spec.kind)].ggml_type,
            Path("random weights"),
            offset=0,
            heads=imported.permuted.get(spec.name, 0),
        )
        for spec in model.tensors
    )
    return (
        Source(
            kind="gguf",
            name=metadata["general.name"],
            config=imported.config,
            model=model,
            tensors=tensors,
            files={name: text.encode() for name, text in tokenizer_files(metadata).items()},
            fingerprint=hashlib.sha256(f"{shape} {plan} {seed}".encode()).hexdigest(),
            rows=lambda: RandomRows(seed),
        ),
        metadata,
    )


def _format(plan: QuantPlan, kind: str) -> str:
    fmt = plan.of(kind)
    return "q4_0" if fmt == "auto" else fmt


def _write_gguf(path: Path, metadata: dict[str, Any], source: Source, progress: Progress) -> None:
    rows, total, done = source.rows(), sum(t.bytes for t in source.tensors), 0

    def pieces(tensor: SourceTensor) -> Iterator[NDArray[np.uint8]]:
        nonlocal done
        step = chunk_rows(tensor)
        for begin in range(0, tensor.rows, step):
            piece = rows.read(tensor, begin, min(begin + step, tensor.rows))
            yield piece
            done += piece.nbytes
            progress(done, total, f"{path.name}: {tensor.spec.name}")

    news = [NewTensor(gguf_name(t.spec), t.type, t.spec.shape) for t in source.tensors]
    with GgufWriter(path, metadata, news) as writer:
        for tensor in source.tensors:
            writer.write(pieces(tensor))


def gguf_metadata(shape: ModelShape, kind: str) -> dict[str, Any]:
    """Of a GGUF with tensors of type `kind`; the tokenizer has random_vocabulary."""
    tokens, merges = random_vocabulary(shape.vocab)
    end = len(tokens) - 1
    return {
        "general.architecture": "llama",
        "general.name": f"random {shape.layers}x{shape.hidden}",
        "general.file_type": _FILE_TYPE[kind],
        "general.quantization_version": 2,
        "llama.vocab_size": shape.vocab,
        "llama.context_length": shape.context,
        "llama.embedding_length": shape.hidden,
        "llama.block_count": shape.layers,
        "llama.feed_forward_length": shape.ffn,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),  # as the file holds it
        "llama.rope.dimension_count": shape.hidden // shape.heads,
        "llama.rope.freq_base": shape.rope_theta,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [NORMAL] * end + [CONTROL],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": end,
        "tokenizer.ggml.eos_token_id": end,
        "tokenizer.ggml.add_bos_token": False,
    }


def random_vocabulary(size: int) -> tuple[list[str], list[str]]:
    """A byte-level BPE vocabulary of `size` tokens and its merges: bytes, runs of 2 to 4 letters, an end of text."""
    tokens = _byte_tokens()
    space = "\u0120"
    pairs = [(a, b) for a in (space, *_LETTERS) for b in _LETTERS]
    words = [a + b for a, b in pairs]
    # Else every sixth token of English would be a space alone, in front of a capital, a digit or a sign.
    pairs += [(space, chr(code)) for code in range(0x21, 0x7F) if chr(code) not in _LETTERS]
    triples = ((a, b) for a in words for b in _LETTERS)
    quadruples = ((a, b) for a in words for b in words[len(_LETTERS) :])
    merges = list(islice(chain(pairs, triples, quadruples), size - len(tokens) - 1))
    tokens += [a + b for a, b in merges]
    if len(tokens) + 1 < size:
        raise UsageError(f"a vocabulary of {size} tokens is too large for the generator; at most {len(tokens) + 1}")
    return [*tokens, _END], [f"{a} {b}" for a, b in merges]


def _byte_tokens() -> list[str]:
    """GPT-2's characters for the bytes 0 to 255: printable ones stand for themselves, the rest from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = count(0x100)
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]
