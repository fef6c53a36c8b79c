"""The native engine on packed stores against the NumPy twin with the very weights of the bundles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from engine_runs import ISAS, Rows, assert_close, prompt, typical
from golden_vectors import FOLDER, load
from packed_stores import neurons_of, profile_of, vectors_of, with_profile

from hotset import _core
from hotset.formats.store import Store, open_store
from hotset.models import resolve
from hotset.reference import ops
from hotset.reference.arithmetic import Arithmetic, Array
from hotset.reference.forward import Forward, Weights
from hotset.reference.packed import decode
from hotset.reference.tolerance import rounding_tolerance
from hotset.tools.convert import convert
from hotset.tools.pack import pack

MODELS = ["llama_relu", "prosparse", "bamboo", "minicpm_s", "arcee", "opt", "falcon", "falcon_grouped"]


class BundleForward(Forward):
    """The forward pass as it is with bundles: gate and up in int8, down a sum of rows by integers."""

    def _ffn(self, x: Array, layer: int) -> Array:
        c, neurons = self.config, Arithmetic(int8=True)
        neurons._random = self.arithmetic._random
        y = self._norm(x, self._ffn_norm(layer), layer)
        dots = {role: neurons.linear(self.weights[role, layer], y) for role in ("up", "gate")[: 1 + c.gated]}
        for role in dots:
            dots[role] = dots[role] + self.weights.get((f"{role}_bias", layer), 0.0)
        if c.gated:
            gate = ops.activate(c.act_gate, dots["gate"], c.gate_threshold)
            hidden = gate * ops.activate(c.act_up, dots["up"], c.up_threshold)
        else:
            hidden = ops.activate(c.act_gate, dots["up"], c.gate_threshold)
        return self._linear(self._weighed(self._rounded(hidden)), "down", layer)

    def _weighed(self, hidden: Array) -> Array:
        """As integers that down's sums take: off by up to half of a 16,383th of the largest, where not 0."""
        random = self.arithmetic._random
        if random is None:
            return hidden
        unit = np.abs(hidden).max(axis=-1, keepdims=True) / 16383
        return np.where(hidden == 0, 0.0, hidden + unit * random.uniform(-0.5, 0.5, hidden.shape))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packed")


def packed_store(root: Path, name: str, fmt: str) -> Store:
    """A golden vector's model with its neurons in a random order; all else in float32."""
    dest = root / f"{name}-{fmt}"
    if not dest.exists():
        convert(FOLDER / name, root / f"{name}-{fmt}-dense", quant="f32")
        dense = open_store(root / f"{name}-{fmt}-dense")
        config = load(name).model.config
        counts = np.random.default_rng(7).integers(0, 5000, (len(config.layers), config.ffn))
        (root / f"{name}-{fmt}-profile").mkdir()
        pack(with_profile(dense.path, profile_of(dense, counts), root / f"{name}-{fmt}-profile"), dest, fmt=fmt)
    return open_store(dest)


def weights_of(store: Store) -> Weights:
    """Of the twin, in the model's own order of neurons."""
    out = {}
    for spec in resolve(store.config).tensors:
        if spec.kind == "ffn":
            rows = vectors_of(store, spec.layer)[spec.role]
            out[spec.role, spec.layer] = rows.T if spec.role == "down" else rows
        else:
            e = store.entries[spec.name]
            data = np.fromfile(e.path, np.uint8, e.bytes, offset=e.offset)
            values = decode(e.fmt, data, e.rows, e.cols) if e.cols else data.view("<f4").astype(np.float64)
            out[spec.role, spec.layer] = values
    return out


def sparse_engine(store: Store, isa: str, hot: int, slots: int, predictor: str = "all") -> _core.Engine:
    """`hot` neurons of each layer in memory, and `slots` of all layers together."""
    model, info = resolve(store.config), neurons_of(store)
    resident, biases = [], dict[str, list[list[float]]]()
    for spec in model.tensors:
        if spec.kind == "ffn":
            continue
        e = store.entries[spec.name]
        if spec.role in ("gate_bias", "up_bias"):
            values = np.fromfile(e.path, "<f4", e.rows, offset=e.offset)
            biases.setdefault(spec.role, []).append(values[info.read_order(spec.layer)].tolist())
        else:
            resident.append(_core.TensorRef(spec.role, spec.layer, e.path, e.offset, e.bytes, e.fmt, e.rows, e.cols))
    neurons = _core.NeuronFile(
        info.path,
        info.fmt,
        info.hidden,
        info.gated,
        info.stride,
        info.ffn,
        info.offsets,
        [info.read_crc32c(i) for i in range(info.layers)],
        **biases,
    )
    return _core.Engine(
        model.config.to_native(),
        resident,
        isa=isa,
        kv_tokens=1024,
        threads=2,
        pin=False,
        neurons=neurons,
        sparse=_core.SparseOptions([hot] * info.layers, slots, predictor=predictor),
    )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fmt", ["q4_0", "q8_0"])
@pytest.mark.parametrize("name", MODELS)
def test_packed_store_gives_the_twins_logits(name: str, fmt: str, isa: str, root: Path) -> None:
    vector, store = load(name), packed_store(root, name, fmt)
    weights = weights_of(store)

    def twin(arithmetic: Arithmetic) -> Rows:
        forward = BundleForward(vector.model.config, weights, arithmetic=arithmetic, kv="f16")
        return forward.step(forward.cache(), vector.tokens)

    want = twin(Arithmetic())
    tipped = rounding_tolerance(lambda a: twin(a)).max()
    ffn = neurons_of(store).ffn
    for hot, slots in ((ffn, 0), (ffn // 4, ffn // 2)):
        core = sparse_engine(store, isa, hot, slots)
        for chunk in (1,):
            _, rows = prompt(core, vector.tokens, chunk)
            assert_close(rows, want, np.full((len(rows), 1), tipped))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fmt", ["q4_0", "q8_0"])
@pytest.mark.parametrize("name", MODELS)
def test_prompts_in_one_step_differ_by_eight_bit_rounding(name: str, fmt: str, isa: str, root: Path) -> None:
    """Of many tokens at once, down is computed in 8 bits too: what that does to the model is known only by its size."""
    vector, store = load(name), packed_store(root, name, fmt)
    core = sparse_engine(store, isa, neurons_of(store).ffn // 4, neurons_of(store).ffn // 2)
    _, single = prompt(core, vector.tokens, 1)
    _, whole = prompt(core, vector.tokens, len(vector.tokens))
    assert typical(whole - single) < 0.02 * typical(single)
    halves = np.concatenate([prompt(core, vector.tokens[:n], n)[1][-1:] for n in (20, len(vector.tokens))])
    np.testing.assert_array_equal(halves, whole[[19, -1]])
