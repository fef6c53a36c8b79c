"""Tiny models whose FFNs are bundles of neurons, made through the core alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hotset import _core
from hotset.config import LayerConfig, ModelConfig, RopeConfig

Floats = NDArray[np.float32]
_Map = tuple[_core.TensorRef, _core.TensorRef]


@dataclass
class SparseModel:
    """Weights of a model, written as matrices (f32, for the dense engine) and as bundles (for the sparse one)."""

    config: ModelConfig
    resident: list[_core.TensorRef]
    dense_ffn: list[_core.TensorRef]
    neurons: _core.NeuronFile
    path: Path
    offsets: list[int]
    stride: int
    weights: dict[tuple[str, int], Floats]  # by role and layer, as the twin takes them

    def dense(self, **options: object) -> _core.Engine:
        """An engine with the decoded weights of the bundles as f32 matrices."""
        return _core.Engine(self.config.to_native(), self.resident + self.dense_ffn, **options)  # type: ignore[arg-type]

    def sparse(self, sparse: _core.SparseOptions, **options: object) -> _core.Engine:
        return _core.Engine(
            self.config.to_native(),
            self.resident,
            neurons=self.neurons,
            sparse=sparse,
            **options,  # type: ignore[arg-type]
        )


def tiny_config(gated: bool, act_gate: str, act_up: str, hidden: int, ffn: int, layers: int = 2) -> ModelConfig:
    rope = RopeConfig(inv_freq=tuple(float(np.float32(100.0 ** (-2 * i / 16))) for i in range(8)))
    return ModelConfig(
        hidden=hidden, vocab=97, ffn=ffn, heads=4, kv_heads=2, head_dim=16, context=512, attention_scale=0.25,
        layers=tuple(LayerConfig(rope=0) for _ in range(layers)), ropes=(rope,), gated=gated,
        act_gate=act_gate, act_up=act_up,  # type: ignore[arg-type]
    )  # fmt: skip


class _File:
    """Tensors one after another, each at a multiple of 4 KiB."""

    def __init__(self, path: Path) -> None:
        self.path, self.parts, self.size = path, list[bytes](), 0
        self.weights: dict[tuple[str, int], Floats] = {}

    def add(self, data: bytes) -> int:
        offset = self.size
        data += bytes(-len(data) % 4096)
        self.parts.append(data)
        self.size += len(data)
        return offset

    def matrix(self, role: str, layer: int, w: Floats) -> _core.TensorRef:
        self.weights[role, layer] = w
        out = np.zeros(_core.packed_bytes("f32", *w.shape), np.uint8)
        _core.encode("f32", np.ascontiguousarray(w), out)
        return _core.TensorRef(role, layer, str(self.path), self.add(out.tobytes()), out.size, "f32", *w.shape)

    def vector(self, role: str, layer: int, w: Floats) -> _core.TensorRef:
        self.weights[role, layer] = w
        return _core.TensorRef(role, layer, str(self.path), self.add(w.tobytes()), w.nbytes, "f32", w.size, 0)

    def write(self) -> None:
        self.path.write_bytes(b"".join(self.parts))


def make_sparse_model(folder: Path, config: ModelConfig, fmt: str, seed: int = 0, biased: bool = False) -> SparseModel:
    rng = np.random.default_rng(seed)
    d, n, q = config.hidden, config.ffn, config.heads * config.head_dim
    kv = config.kv_heads * config.head_dim
    normal = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    main, dense, bundles = (_File(folder / name) for name in ("resident.bin", "dense.bin", "neurons.bin"))
    resident = [main.matrix("embed", -1, normal(config.vocab, d)), main.vector("final_norm", -1, 1 + 0.1 * normal(d))]
    dense_ffn: list[_core.TensorRef] = []
    vector = _core.vector_bytes(fmt, d)
    stride = (vector * (3 if config.gated else 2) + 511) // 512 * 512
    offsets, sums, up_biases = list[int](), list[NDArray[np.uint32]](), list[list[float]]()
    for layer in range(len(config.layers)):
        shapes = {"q": (q, d), "k": (kv, d), "v": (kv, d), "o": (d, q)}
        resident += [main.matrix(role, layer, normal(*s) / np.float32(s[1] ** 0.5)) for role, s in shapes.items()]
        resident += [main.vector(role, layer, 1 + 0.1 * normal(d)) for role in ("attn_norm", "ffn_norm")]
        roles = ["up", "down"] + (["gate"] if config.gated else [])
        bundle = np.zeros((n, stride), np.uint8)
        for i, role in enumerate(roles):
            w = normal(n, d) / np.float32((n if role == "down" else d) ** 0.5)
            codes = np.zeros((n, vector), np.uint8)
            _core.encode_vectors(fmt, w, codes)
            bundle[:, i * vector : (i + 1) * vector] = codes
            decoded = _core.decode_vectors(fmt, codes, d)
            dense_ffn.append(dense.matrix(role, layer, decoded.T if role == "down" else decoded))
        if biased:
            up_biases.append([float(x) for x in 0.3 * normal(n)])
            dense_ffn.append(dense.vector("up_bias", layer, np.array(up_biases[-1], np.float32)))
        used = vector * len(roles)
        sums.append(np.array([_core.crc32c(row[:used].tobytes()) for row in bundle], np.uint32))
        offsets.append(bundles.add(bundle.tobytes()))
    for file in (main, dense, bundles):
        file.write()
    neurons = _core.NeuronFile(
        str(bundles.path), fmt, d, config.gated, stride, n, offsets, sums, up_bias=up_biases
    )  # fmt: skip
    weights = main.weights | dense.weights
    return SparseModel(config, resident, dense_ffn, neurons, bundles.path, offsets, stride, weights)


def random_maps(folder: Path, config: ModelConfig, rank: int = 32) -> tuple[list[tuple[Floats, Floats]], list[_Map]]:
    """Low-rank maps of all layers that predict nothing: their weights, and where an engine finds them."""
    rng = np.random.default_rng(5)
    file = _File(folder / "maps.bin")
    weights, refs = [], []
    for layer in range(len(config.layers)):
        pair = tuple(rng.standard_normal(s, np.float32) for s in ((rank, config.hidden), (config.ffn, rank)))
        weights.append((pair[0] / np.float32(config.hidden**0.5), pair[1] / np.float32(rank**0.5)))
        refs.append((file.matrix("down", layer, weights[-1][0]), file.matrix("up", layer, weights[-1][1])))
    file.write()
    return weights, refs


def run(
    engine: _core.Engine, prompt: list[int], steps: list[int], before: Callable[[int], object] = lambda step: None
) -> Floats:
    """Logits after the prompt and after each further token, [1 + steps, vocab]; `before` each of them is called."""
    seq = engine.sequence_new()
    rows = []
    for number, tokens in enumerate([prompt, *([token] for token in steps)]):
        before(number)
        engine.step(
            np.array([seq], np.int32),
            np.array([len(tokens)], np.int32),
            np.array(tokens, np.int32),
            np.ones(1, np.uint8),
        )
        rows.append(engine.logits()[0].copy())
    engine.sequence_free(seq)
    return np.array(rows)
