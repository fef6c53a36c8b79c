"""The same logits when the checkpoint comes as GGUF: keys, names, order of rows and shifted norms are put right."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engine_runs import assert_engine_close, engine, prompt
from gguf_models import EXPRESSIBLE, write_gguf
from golden_vectors import Vector, load

from hotset import _core
from hotset.formats.store import Store, open_store
from hotset.tools.convert import convert


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_gguf_gives_the_logits_of_the_checkpoint(name: str, tmp_path: Path) -> None:
    write_gguf(name, tmp_path / "model.gguf")
    convert(tmp_path / "model.gguf", tmp_path / "store")
    store = with_lost_keys(open_store(tmp_path / "store"), load(name))
    core = engine(store, _core.select_isa())
    _, rows = prompt(core, load(name).tokens, len(load(name).tokens))
    assert_engine_close(load(name), rows, "f16")


def with_lost_keys(store: Store, vector: Vector) -> Store:
    """The store with what GGUF has no key for, and llama.cpp takes for granted, as the vector has it."""
    config = json.loads((vector.folder / "config.json").read_text())
    lost = {key: config[key] for key in ("query_pre_attn_scalar",) if key in config}
    return replace(store, config=store.config | lost)


def test_norms_and_rows_come_back_bit_for_bit(tmp_path: Path) -> None:
    """Except Gemma's norms, which lose what float32 loses when 1 is added."""
    for name in ("llama", "gemma3"):
        write_gguf(name, tmp_path / f"{name}.gguf")
        convert(tmp_path / f"{name}.gguf", tmp_path / name)
        store, vector = open_store(tmp_path / name), load(name)
        for spec in vector.model.tensors:
            e = store.entries[spec.name]
            data = np.fromfile(e.path, np.uint8, e.bytes, offset=e.offset)
            want = vector.weights[spec.role, spec.layer]
            got = _core.decode(e.fmt, data, e.rows, e.cols) if e.cols else data.view("<f4")
            np.testing.assert_allclose(got, want, rtol=0, atol=0 if name == "llama" else 2.0**-23, err_msg=spec.name)
