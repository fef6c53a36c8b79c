"""The sparse engine against the dense one with the same weights, whatever is in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hotset import _core
from hotset.errors import FormatError, UsageError
from tests.sparse_models import SparseModel, make_sparse_model, run, tiny_config

PROMPT = [int(i * 7 % 97) for i in range(40)]
STEPS = [int(i * 31 % 97) for i in range(24)]
NEURONS, LAYERS = 300, 2
TINY = float(np.finfo(np.float32).tiny)  # any gate above zero


def options(
    hot: int, slots: int, policy: str = "clock", predictor: str = "all", depth: int = 16
) -> _core.SparseOptions:
    keep = [TINY] * LAYERS if predictor != "all" else []
    return _core.SparseOptions([hot] * LAYERS, slots, policy, predictor, keep, keep, depth=depth)


@pytest.fixture(scope="module", params=["drelu q4_0", "reglu q8_0", "relu q4_0", "silu q8_0"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SparseModel:
    kind, fmt = request.param.split()
    gated = kind != "relu"
    act = "silu" if kind == "silu" else "relu"
    config = tiny_config(gated, act, "relu" if kind == "drelu" else "none", hidden=544, ffn=NEURONS)
    return make_sparse_model(tmp_path_factory.mktemp(kind), config, fmt, biased=not gated)


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2)))


def test_equals_dense_engine(model: SparseModel) -> None:
    want = run(model.dense(), PROMPT, STEPS)
    got = run(model.sparse(options(NEURONS, 0)), PROMPT, STEPS)
    # The sparse engine rounds activations to 8 bits (1/254 of a group's largest, about 1 % RMS after two layers); the
    # dense one has f32 weights and does not.
    assert relative(got, want) < 0.02
    assert np.mean(got.argmax(axis=1) == want.argmax(axis=1)) > 0.9


@pytest.mark.parametrize(("hot", "slots"), [(0, 0), (0, 50), (100, 100), (250, 7), (0, 600)])
@pytest.mark.parametrize("policy", ["lru", "clock", "lfu", "window"])
def test_memory_changes_nothing(model: SparseModel, hot: int, slots: int, policy: str) -> None:
    want = run(model.sparse(options(NEURONS, 0)), PROMPT, STEPS)
    engine = model.sparse(options(hot, slots, policy))
    got = run(engine, PROMPT, STEPS)
    assert (got == want).all()  # to the last bit: sums have one order, whatever was in memory
    stats = engine.sparse_stats
    assert stats["candidates"] == len(STEPS) * LAYERS * NEURONS
    assert stats["evictions"] == 0 if slots >= LAYERS * NEURONS else stats["missed"] > 0


def test_each_row_has_the_same_bits_however_rows_are_split_and_by_both_ways(model: SparseModel) -> None:
    tokens = [*PROMPT, *STEPS]

    def logits(hot: int, chunk: int, threads: int, predictor: str = "all", dense: bool = True) -> np.ndarray:
        keep = [TINY] * LAYERS if predictor == "gate" else []
        sparse = _core.SparseOptions([hot] * LAYERS, 30, "clock", predictor, keep, keep, draft_only=dense)
        engine = model.sparse(sparse, threads=threads)
        seq, rows = engine.sequence_new(), []
        for at in range(0, len(tokens), chunk):
            part = np.array(tokens[at : at + chunk], np.int32)
            engine.step(np.array([seq], np.int32), np.array([len(part)], np.int32), part, np.full(1, 2, np.uint8))
            rows.append(engine.logits().copy())
        assert dense == (engine.sparse_stats["layers"] == 0)
        return np.concatenate(rows)

    want = logits(NEURONS, len(tokens), 2)
    for hot, chunk, threads in [(0, 1, 2), (77, 1, 3), (NEURONS, 1, 1), (0, 7, 2), (200, 17, 1), (128, 33, 2)]:
        assert (logits(hot, chunk, threads) == want).all(), (hot, chunk, threads)
    for hot, chunk, threads in [(0, 1, 2), (77, 8, 1)]:
        assert (logits(hot, chunk, threads, dense=False) == want).all(), (hot, chunk, threads)
    if model.config.gated and model.config.act_gate != "silu":
        want = logits(NEURONS, len(tokens), 2, "gate")  # gates as matrices are summed in another order
        for hot, chunk, dense in [(0, 1, True), (77, 64, True), (200, 9, True), (77, 1, False), (0, 8, False)]:
            assert (logits(hot, chunk, 2, "gate", dense) == want).all(), (hot, chunk, dense)


def test_drafts_change_no_later_step(model: SparseModel) -> None:
    engine = model.sparse(_core.SparseOptions([50] * LAYERS, 100, draft_only=True))
    rows = {}
    for name, drafts in (("alone", 0), ("after drafts", 5)):
        seq = engine.sequence_new()
        one = np.array([seq], np.int32), np.ones(1, np.int32)
        engine.step(one[0], np.array([len(PROMPT)], np.int32), np.array(PROMPT, np.int32), np.zeros(1, np.uint8))
        for i in range(drafts):
            engine.step(*one, np.array([STEPS[i]], np.int32), np.ones(1, np.uint8), draft=True)
        assert engine.sparse_stats["layers"] == drafts * LAYERS
        engine.sequence_truncate(seq, len(PROMPT))
        engine.step(one[0], np.array([8], np.int32), np.array(STEPS[:8], np.int32), np.full(1, 2, np.uint8))
        rows[name] = engine.logits().copy()
    assert (rows["alone"] == rows["after drafts"]).all()


@pytest.mark.parametrize("policy", ["lru", "clock", "lfu", "window"])
def test_cold_slots_given_up_mid_text_change_no_bit(model: SparseModel, policy: str) -> None:
    want = run(model.sparse(options(NEURONS, 0)), PROMPT, STEPS)
    hot, slots = 20, 500
    least = NEURONS - hot  # of one layer may all be missing, and have no place elsewhere
    engine = model.sparse(options(hot, slots, policy))
    left = {0: 490, 3: 400, 9: 399, 15: least, 20: least}  # after what is done before a step

    def give_up(step: int) -> None:
        if step in left:
            before = engine.sparse_stats
            released = engine.shrink_cold(int(before["cold_slots"]) - left[step] if step < 15 else 10**9)
            after = engine.sparse_stats
            assert after["cold_slots"] == left[step] and after["cold_used"] == min(before["cold_used"], left[step])
            assert released == (before["cold_used"] - after["cold_used"]) * before["slot_bytes"]
            given_up = before["cold_slots"] - after["cold_slots"]
            assert before["bytes"] - after["bytes"] == given_up * before["slot_bytes"]

    assert (run(engine, PROMPT, STEPS, give_up) == want).all()
    assert engine.sparse_stats["cold_used"] == least


def test_memory_given_up_goes_back_to_the_system(tmp_path: Path) -> None:
    config = tiny_config(True, "relu", "none", hidden=2048, ffn=1024, layers=4)
    model = make_sparse_model(tmp_path, config, "q8_0")
    engine = model.sparse(_core.SparseOptions([0] * 4, 4096))
    run(engine, PROMPT, STEPS[:2])
    stats, slot = engine.sparse_stats, int(engine.sparse_stats["slot_bytes"])
    assert stats["cold_used"] == 4096
    held, pinned = status("VmRSS"), status("VmPin")
    if _core.io_info()["io_uring_works"] and pinned:  # where locked memory is limited the kernel refuses to pin it
        assert pinned >= 4096 * slot
    assert engine.shrink_cold(3000) == 3000 * slot
    assert status("VmRSS") == pytest.approx(held - 3000 * slot, abs=1 << 20)
    assert status("VmPin") == 0
    run(engine, PROMPT, STEPS[:2])
    assert status("VmRSS") < held - 3000 * slot + (10 << 20)  # reads that go as one take up to 8 MiB
    assert status("VmPin") <= 1096 * slot + (2 << 20)  # whole huge pages
    assert (status("VmPin") > 0) == (pinned > 0)


def status(key: str) -> int:
    """Bytes of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * 1024


def test_nothing_to_give_up(model: SparseModel) -> None:
    assert model.dense().shrink_cold(5) == 0
    assert model.sparse(options(NEURONS, 0)).shrink_cold(5) == 0
    assert model.sparse(options(10, 40)).shrink_cold(5) == 0  # all are needed for one layer
    assert model.sparse(options(NEURONS, 40)).shrink_cold(50) == 0  # none was ever used


def test_gate_predictor_is_exact(model: SparseModel) -> None:
    if not model.config.gated or model.config.act_gate == "silu":
        pytest.skip("needs a gate that is zero for some neurons")
    want = run(model.sparse(options(NEURONS, 0)), PROMPT, STEPS)
    engine = model.sparse(options(20, 100, predictor="gate"))
    got = run(engine, PROMPT, STEPS)
    assert relative(got, want) < 1e-3  # the gate has another order of sums: it may round an activation the other way
    assert (got.argmax(axis=1) == want.argmax(axis=1)).all()
    everything = run(model.sparse(options(NEURONS, 0, predictor="gate")), PROMPT, STEPS)
    assert (got == everything).all()
    stats = engine.sparse_stats
    assert stats["active"] <= stats["candidates"] < 0.75 * len(STEPS) * LAYERS * NEURONS


def test_threads_change_no_bit(model: SparseModel) -> None:
    one = run(model.sparse(options(50, 100), threads=1), PROMPT, STEPS)
    two = run(model.sparse(options(50, 100), threads=2), PROMPT, STEPS)
    four = run(model.sparse(options(50, 100), threads=4), PROMPT, STEPS)
    assert (one == two).all()
    assert (one == four).all()


@pytest.mark.parametrize("sparse", [False, True])
def test_a_refused_number_of_threads_changes_nothing(model: SparseModel, sparse: bool) -> None:
    options = _core.SparseOptions([20] * 2, 50)
    engine = model.sparse(options, threads=2) if sparse else model.dense(threads=2)
    want = run(engine, [1, 2, 3], [4, 5])
    with pytest.raises(UsageError, match="threads must be between 1 and 1024, got 5000"):
        engine.set_threads(5000)
    assert engine.threads == 2 and engine.stats["scratch_bytes"] > 0
    assert (run(engine, [1, 2, 3], [4, 5]) == want).all()
    engine.set_threads(3)
    assert engine.threads == 3 and (run(engine, [1, 2, 3], [4, 5]) == want).all()


def test_batch_of_sequences(model: SparseModel) -> None:
    engine = model.sparse(options(50, 100))
    seqs = [engine.sequence_new() for _ in range(3)]
    prompts = [PROMPT[:20], PROMPT[5:30], PROMPT[10:]]
    for seq, prompt in zip(seqs, prompts, strict=True):
        engine.step(
            np.array([seq], np.int32),
            np.array([len(prompt)], np.int32),
            np.array(prompt, np.int32),
            np.zeros(1, np.uint8),
        )
    engine.step(np.array(seqs, np.int32), np.ones(3, np.int32), np.array([1, 2, 3], np.int32), np.ones(3, np.uint8))
    together = engine.logits().copy()
    for i, prompt in enumerate(prompts):
        alone = run(model.sparse(options(NEURONS, 0)), prompt, [i + 1])[1]
        assert (together[i] == alone).all()


def test_damaged_bundle_is_named(model: SparseModel) -> None:
    data = bytearray(model.path.read_bytes())
    at = model.offsets[1] + 17 * model.stride + 3
    data[at] ^= 4
    whole = model.path.read_bytes()
    try:
        model.path.write_bytes(data)
        with pytest.raises(FormatError, match=r"neuron 17 of layer 1 .* checksum"):
            model.sparse(options(NEURONS, 0))
        engine = model.sparse(options(0, 100))
        seq = engine.sequence_new()
        step = (np.array([seq], np.int32), np.array([1], np.int32), np.array([5], np.int32), np.ones(1, np.uint8))
        for _ in range(2):  # and again: what was read is not in the cache
            with pytest.raises(FormatError, match=r"neuron 17 of layer 1"):
                engine.step(*step)
        assert engine.sequence_length(seq) == 0
        model.path.write_bytes(whole)
        engine.step(*step)  # usable once the file is whole
        assert engine.sequence_length(seq) == 1
    finally:
        model.path.write_bytes(whole)


def test_wrong_use(model: SparseModel) -> None:
    with pytest.raises(UsageError, match="hot"):
        model.sparse(_core.SparseOptions([1], 4))
    with pytest.raises(UsageError, match="policy"):
        model.sparse(options(0, 4, policy="best"))
    with pytest.raises(UsageError, match="predictor"):
        _core.SparseOptions([1, 1], 4, predictor="oracle")
    with pytest.raises(UsageError, match="hot neurons"):
        model.sparse(options(NEURONS + 1, 0))


def test_record_of_dense_and_sparse_agree(model: SparseModel) -> None:
    if model.config.act_gate == "silu":
        pytest.skip("all neurons are active")
    taken = []
    for engine in (model.dense(), model.sparse(options(50, 100)), model.sparse(options(NEURONS, 0))):
        engine.record(activations=True, inputs=True)
        run(engine, PROMPT, STEPS)
        active, inputs = engine.take_record()
        assert inputs.shape == (len(PROMPT) + len(STEPS), LAYERS, model.config.hidden)
        taken.append((np.unpackbits(active, axis=2, bitorder="little")[:, :, :NEURONS], inputs))
        assert engine.take_record()[0].shape[0] == 0
    dense = taken[0][0]
    assert 0.1 < dense.mean() < 0.7
    for active, inputs in taken[1:]:
        assert np.mean(active != dense) < 0.02  # neurons at the border of zero
        assert relative(inputs, taken[0][1]) < 0.02


def test_a_prompt_warms_the_cache(tmp_path: Path) -> None:
    """The next token finds all that the prompt's last eight used, and reads the rest."""
    model = make_sparse_model(tmp_path, tiny_config(True, "relu", "none", hidden=544, ffn=NEURONS), "q4_0")
    engine = model.sparse(options(hot=20, slots=LAYERS * NEURONS, predictor="gate"))
    engine.record(activations=True)
    run(engine, PROMPT, STEPS[:1])
    bits, _ = engine.take_record()
    active = np.unpackbits(bits, axis=2, count=NEURONS, bitorder="little").view(np.bool_)
    last, recent = active[-1], active[len(PROMPT) - 8 : len(PROMPT)].any(axis=0)
    recent[:, :20] = True  # hot
    assert engine.sparse_stats["missed"] == (last & ~recent).sum() < last[:, 20:].sum() / 2
