"""Drives that misbehave: whatever they do, logits are right or the step ends with the documented error."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np
import pytest

from hotset import _core
from hotset.errors import FormatError, StorageError
from tests.sparse_models import Floats, SparseModel, make_sparse_model, run, tiny_config

PROMPT = [int(i * 7 % 97) for i in range(40)]
STEPS = [int(i * 31 % 97) for i in range(24)]
LAYERS, NEURONS, SLOTS = 2, 300, 150


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SparseModel:
    config = tiny_config(True, "relu", "relu", hidden=544, ffn=NEURONS)
    return make_sparse_model(tmp_path_factory.mktemp("faults"), config, "q4_0")


def engine(model: SparseModel, backend: str = "auto", hot: int = 0) -> _core.Engine:
    return model.sparse(_core.SparseOptions([hot] * LAYERS, SLOTS, backend=backend, depth=8))


@pytest.fixture(scope="module")
def want(model: SparseModel) -> Floats:
    return run(engine(model), PROMPT, STEPS)


@pytest.mark.parametrize("kind", ["short", "flaky", "slow"])
def test_faults_that_a_second_try_mends(model: SparseModel, want: Floats, kind: str) -> None:
    rate = 0.05 if kind == "slow" else 0.5
    np.testing.assert_array_equal(run(engine(model, f"fault:{kind}:1:{rate}", hot=30), PROMPT, STEPS), want)


def run_in_spite(core: _core.Engine, errors: list[Exception]) -> Floats:
    """As `run`, but a step that fails is tried again; what failed is appended to `errors`."""
    seq = core.sequence_new()
    rows = []
    for tokens in [PROMPT, *([token] for token in STEPS)]:
        for _ in range(2000):
            held = core.sequence_length(seq)
            try:
                core.step(
                    np.array([seq], np.int32), np.array([len(tokens)], np.int32), np.array(tokens, np.int32),
                    np.ones(1, np.uint8),
                )  # fmt: skip
            except (StorageError, FormatError) as error:
                assert core.sequence_length(seq) == held  # nothing was appended
                errors.append(error)
                continue
            break
        else:
            raise AssertionError("no try succeeded")
        rows.append(core.logits()[0].copy())
    core.sequence_free(seq)
    return np.array(rows)


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("error", StorageError, r"neurons\.bin: read of \d+ bytes at offset \d+ failed: Input/output error"),
        ("cut", StorageError, r"neurons\.bin: read of \d+ bytes at offset \d+ got \d+; the file is truncated"),
        ("corrupt", FormatError, r"neuron \d+ of layer \d .*has checksum \d+, wanted \d+"),
    ],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_faults_that_stay_end_the_step_and_harm_nothing(
    model: SparseModel, want: Floats, kind: str, error: type[Exception], message: str, seed: int
) -> None:
    """The cache outlives every error, so a bundle that it kept of a failed read would show in the steps after it."""
    failed: list[Exception] = []
    np.testing.assert_array_equal(run_in_spite(engine(model, f"fault:{kind}:{seed}:0.05"), failed), want)
    assert failed
    for one in failed:
        assert isinstance(one, error) and re.search(message, str(one))


def test_a_prompt_reads_again_what_was_damaged(model: SparseModel, want: Floats) -> None:
    """Also where it is what the prompt wants first."""
    whole, core = model.path.read_bytes(), engine(model)
    data = bytearray(whole)
    data[model.offsets[0] + 5] ^= 1
    model.path.write_bytes(data)
    with pytest.raises(FormatError, match="neuron 0 of layer 0 "):
        run(core, PROMPT, [])
    model.path.write_bytes(whole)
    np.testing.assert_array_equal(run(core, PROMPT, STEPS), want)


def test_a_drive_that_fails_while_hot_neurons_are_loaded(model: SparseModel) -> None:
    with pytest.raises(StorageError, match=r"neurons\.bin: read of .* failed: Input/output error"):
        engine(model, "fault:error:1:1", hot=30)
    with pytest.raises(FormatError, match="checksum"):
        for seed in range(20):  # a bit may lie in the padding of a bundle, which nobody reads
            engine(model, f"fault:corrupt:{seed}:1", hot=300)


def test_a_file_on_tmpfs(want: Floats) -> None:
    """Where direct I/O is missing or means little, reads are buffered and the text is the same."""
    shm = Path("/dev/shm")
    if not shm.is_dir():
        pytest.skip("no tmpfs here")
    with tempfile.TemporaryDirectory(dir=shm) as folder:
        config = tiny_config(True, "relu", "relu", hidden=544, ffn=NEURONS)
        np.testing.assert_array_equal(run(engine(make_sparse_model(Path(folder), config, "q4_0")), PROMPT, STEPS), want)
