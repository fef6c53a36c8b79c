"""Synthetic dReLU models whose activations have published statistics, as a store: to measure sparse engines fairly.

Real sparse checkpoints of this size are not always at hand. The text such a model writes means nothing; how its neurons
fire, token after token and layer by layer, is calibrated on its own forward pass. How: docs/explanation/
synthetic-workload.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotset.errors import UsageError
from hotset.formats.progress import Progress, silent
from hotset.models import TensorSpec, resolve
from hotset.quant import FORMATS, parse_quant
from hotset.tokenizer import from_gguf as tokenizer_files
from hotset.tools.convert import ConvertOptions, write_store
from hotset.tools.convert_source import Source, SourceTensor
from hotset.tools.random_model import ModelShape, gguf_metadata
from hotset.tools.sparse_model_report import WorkloadReport
from hotset.tools.sparse_model_stream import PIECE_ROWS, Layer, Stream
from hotset.tools.sparse_model_workload import HARD, PUBLISHED

REPORT = "workload.json"
_VERSION = 2  # of the generator: same version and arguments, same weights


def sparse_model(
    dest: Path,
    shape: ModelShape | None = None,
    *,
    hard: bool = False,
    quant: str = "q4_0",
    seed: int = 0,
    tokens: int = 1024,
    progress: Progress = silent,
) -> WorkloadReport:
    """Writes a store of a synthetic dReLU model, and what its activations are like as workload.json in it.

    Args:
        dest: the store to be; what is there is replaced.
        shape: default: Mistral 7B's, which takes 2.5 GB of memory and some ten minutes on two cores.
        hard: the statistics of a small dReLU model, which is less concentrated and reuses less.
        quant: as for `convert`; "auto" stands for q4_0.
        tokens: that every layer is calibrated and measured on.
    Raises: UsageError, StorageError.
    """
    shape, workload = shape or ModelShape(), HARD if hard else PUBLISHED
    shape.check()
    if tokens < 64:
        raise UsageError(f"{tokens} tokens to calibrate on; at least 64 are needed, and 1024 for sound statistics")
    plan = parse_quant("q4_0" if quant == "auto" else quant)
    model = resolve(_config(shape))

    def formats(kind: str) -> str:
        fmt = plan.of(kind)
        return "q4_0" if fmt == "auto" else fmt

    rows = GeneratedRows(Stream(model.config, workload, formats, seed, tokens), WorkloadReport(workload, tokens))
    words = f"{_VERSION} {shape} {workload} {plan} {seed} {tokens}"
    metadata = gguf_metadata(shape, FORMATS[formats("ffn")].ggml_type)
    source = Source(
        kind="synthetic",
        name=f"synthetic {workload.name} {shape.layers}x{shape.hidden}",
        config=_config(shape),
        model=model,
        tensors=tuple(
            SourceTensor(spec, "F32", Path("synthetic weights"), offset=0) for spec in _head_last(model.tensors)
        ),
        files={name: text.encode() for name, text in tokenizer_files(metadata).items()},
        fingerprint=hashlib.sha256(words.encode()).hexdigest(),
        rows=lambda: rows,
    )
    explicit = {kind: formats(kind) for kind in ("embedding", "attention", "ffn", "head")}
    options = ConvertOptions(parse_quant(",".join(f"{kind}={fmt}" for kind, fmt in explicit.items())))
    write_store(source, dest, options, progress=progress, force=True)
    rows.advance(shape.layers - 1)  # a store whose writing was stopped near its end needs no more rows
    (dest / REPORT).write_text(json.dumps(rows.report.to_json(), indent=2) + "\n")
    return rows.report


def _head_last(tensors: Sequence[TensorSpec]) -> list[TensorSpec]:
    """The head is fitted to what the layers make of the stream."""
    return sorted(tensors, key=lambda spec: spec.role == "head")


def _config(shape: ModelShape) -> dict[str, Any]:
    return {
        "architectures": ["BambooForCausalLM"],
        "model_type": "bamboo",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": 1e-5,
        "rope_theta": shape.rope_theta,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "hidden_act": "relu",
    }


@dataclass(slots=True)
class GeneratedRows:
    """Rows of the model's tensors, made when they are first asked for; one layer is held at a time."""

    stream: Stream
    report: WorkloadReport
    _layer: Layer | None = field(default=None)

    def read(self, tensor: SourceTensor, begin: int, end: int) -> NDArray[np.uint8]:
        """Rows [begin, end) as float32 bytes; layers must be asked for in order."""
        spec = tensor.spec
        if not spec.cols:
            return np.ones((1, spec.rows), "<f4").view(np.uint8)
        if spec.layer < 0:
            return self._pieces(spec.role, begin, end).view(np.uint8)
        self.advance(spec.layer)
        assert self._layer is not None
        return self._layer.weights[spec.role][begin:end].astype("<f4", copy=False).view(np.uint8)

    def advance(self, index: int) -> None:
        """Makes and measures all layers up to `index`."""
        layers = len(self.stream.config.layers)
        measured = {1, layers // 2, layers - 1}  # fitting a predictor costs as much as making a layer
        while (made := len(self.report.layers)) <= index:
            self._layer = None
            self._layer = self.stream.next(made)
            self.report.add(self._layer, with_predictor=made in measured)

    def _pieces(self, role: str, begin: int, end: int) -> NDArray[np.float32]:
        if role == "head":
            self.advance(len(self.stream.config.layers) - 1)
        make = self.stream.head if role == "head" else self.stream.embedding
        first, last = begin // PIECE_ROWS, (end - 1) // PIECE_ROWS
        rows = np.concatenate([make(piece) for piece in range(first, last + 1)])
        return rows[begin - first * PIECE_ROWS : end - first * PIECE_ROWS]
