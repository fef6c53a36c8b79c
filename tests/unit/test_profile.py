"""Profiles of a small real model with ReLUs put in: counts against its own bits, packed against dense, resumption."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hotset import LLM
from hotset.errors import FormatError, HostError, HotsetError, InputError, StorageError, UsageError
from hotset.formats import profile as file
from hotset.formats.profile import BATCHES, LEAST_TOKENS, Profile, load_profile, read_profile, write_profile
from hotset.formats.store import open_store
from hotset.formats.text import documents
from hotset.planner.statistics import reuse, union_counts
from hotset.tools import profile_plot, profile_report
from hotset.tools.convert import convert
from hotset.tools.pack import pack
from hotset.tools.profile import ProfileOptions, profile
from hotset.tools.profile_counts import Counter
from hotset.tools.profile_text import windows

ROOT = Path(__file__).parent.parent.parent
TEXT = ROOT / "LICENSE"
OPTIONS = ProfileOptions(tokens=5000, window=200, sample=300, trace=250, neighbours=4)
TOKENS = 5000


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stories260K with ReLU in place of SiLU: about half of its neurons are zero."""
    folder = tmp_path_factory.mktemp("relu")
    shutil.copytree(ROOT / "tests/golden/data/stories260k", folder / "source")
    config = json.loads((folder / "source/config.json").read_text())
    (folder / "source/config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    convert(folder / "source", folder / "store", quant="f32")
    return folder / "store"


@pytest.fixture(scope="module")
def model(store: Path) -> LLM:
    return LLM(store)


@pytest.fixture(scope="module")
def found(model: LLM) -> Profile:
    """The profile in the store."""
    return profile(model, [TEXT], options=OPTIONS)


def recorded(model: LLM, window: np.ndarray) -> np.ndarray:
    """What is active, token by token: [tokens, layers, ffn]."""
    core, one = model.core, np.ones(1, np.int32)
    core.record(activations=True)
    seq = core.sequence_new()
    for token in window:
        core.step(np.array([seq], np.int32), one, np.array([token], np.int32), np.zeros(1, np.uint8))
    core.sequence_free(seq)
    bits = core.take_record()[0]
    core.record(activations=False)
    return np.unpackbits(bits, axis=2, count=model.config.ffn, bitorder="little").view(np.bool_)


def test_counts(model: LLM, found: Profile) -> None:
    parts = windows([TEXT], model.tokenizer, OPTIONS.window, TOKENS)
    active = [recorded(model, window)[1:] for window in parts]  # the first is BOS
    assert sum(map(len, active)) == found.tokens == TOKENS
    # A prompt's sums are in another order than a token's, so a neuron at the border of zero may differ.
    for batch in BATCHES:
        want = sum(np.stack([union_counts(a[:, i], batch) for i in range(found.layers)]) for a in active)
        assert np.abs(found.counts[batch - 1] - want).sum() <= 1e-4 * want.sum()
        assert found.steps[0, batch - 1] == sum(len(a) // batch for a in active)
    assert np.mean(found.active() != np.concatenate(active)[:250]) < 1e-4
    zeros = [1 - np.concatenate(active)[:, i].mean() for i in range(found.layers)]
    assert found.zeros() == pytest.approx(zeros, abs=1e-4)
    assert 0.2 < min(zeros) < max(zeros) < 0.95


def test_reuse_of_one_window(model: LLM, tmp_path: Path) -> None:
    options = replace(OPTIONS, tokens=199)
    one = profile(model, [TEXT], tmp_path / "one.safetensors", options)
    active = one.active()
    assert len(active) == 199
    for place, window in enumerate((1, 5, 20)):
        want = [reuse(active[:, i], window) for i in range(one.layers)]
        assert one.reuse()[:, place] == pytest.approx(want)


def test_packed_store_gives_the_same(store: Path, found: Profile, tmp_path: Path) -> None:
    pack(store, tmp_path / "plain", fmt="q8_0", order="none")
    pack(store, tmp_path / "ordered", fmt="q8_0", order="frequency")
    profiles = []
    for name in ("plain", "ordered"):
        (tmp_path / name / file.PROFILE_FILE).unlink(missing_ok=True)
        with LLM(tmp_path / name) as packed:
            profiles.append(profile(packed, [TEXT], options=OPTIONS))
            order = packed.store.neurons.read_order(0)
        assert profiles[-1].model == found.model
    assert (order != np.arange(found.ffn)).any()
    plain, ordered = profiles
    # Products are rounded to 8 bits in groups of neurons stored side by side, so the order moves what is near zero.
    assert np.mean(plain.active() != ordered.active()) < 0.02
    assert np.abs(plain.counts[0] - ordered.counts[0]).sum() < 0.02 * plain.counts[0].sum()
    assert np.mean(plain.neighbours[..., 0] == ordered.neighbours[..., 0]) > 0.8
    assert np.mean(plain.active() != found.active()) < 0.05  # 8-bit weights and activations


@pytest.mark.parametrize("stop_after", [200, 2500, 4700, TOKENS])  # the last: all is counted
def test_goes_on_after_an_interrupt(model: LLM, found: Profile, tmp_path: Path, stop_after: int) -> None:
    out = tmp_path / "p.safetensors"
    counted: list[int] = []

    def interrupt(done: int, total: int, what: str) -> None:
        if done > stop_after or what == "neighbours":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stop:
        profile(model, [TEXT], out, OPTIONS, interrupt)
    (checkpoint,) = tmp_path.iterdir()
    assert str(checkpoint) in stop.value.__notes__[0]
    got = profile(model, [TEXT], out, OPTIONS, lambda done, total, what: counted.append(done) if total > 5 else None)
    assert all(done > stop_after for done in counted)
    assert [path.name for path in tmp_path.iterdir()] == ["p.safetensors"]
    assert_equal(got, found)
    assert_equal(read_profile(out), found)


def test_interrupt_within_a_window(model: LLM, found: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a window's counts must not be kept."""
    out, layers = tmp_path / "p.safetensors", []
    whole = Counter._count_reuse

    def interrupted(counter: Counter, bits: np.ndarray, layer: int) -> None:
        layers.append(layer)
        if len(layers) == 48:
            raise KeyboardInterrupt
        whole(counter, bits, layer)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("hotset.tools.profile.CHECKPOINT_TOKENS", 500)
        patch.setattr(Counter, "_count_reuse", interrupted)
        profile(model, [TEXT], out, OPTIONS)
    assert_equal(profile(model, [TEXT], out, OPTIONS), found)


def test_damaged_checkpoint_starts_over(model: LLM, found: Profile, tmp_path: Path) -> None:
    def interrupt(done: int, total: int, what: str) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "p.safetensors"
    for damage in (lambda data: b"", lambda data: data[: len(data) // 2], lambda data: data[:-300] + bytes(300)):
        with pytest.raises(KeyboardInterrupt):
            profile(model, [TEXT], out, OPTIONS, interrupt)
        (checkpoint,) = tmp_path.glob(".*")
        checkpoint.write_bytes(damage(checkpoint.read_bytes()))
        assert_equal(profile(model, [TEXT], out, OPTIONS), found)


def test_other_options_start_over(model: LLM, tmp_path: Path) -> None:
    def interrupt(done: int, total: int, what: str) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "p.safetensors"
    with pytest.raises(KeyboardInterrupt):
        profile(model, [TEXT], out, OPTIONS, interrupt)
    counted: list[int] = []
    profile(model, [TEXT], out, replace(OPTIONS, window=100), lambda done, total, what: counted.append(done))
    assert counted[0] == 99


def assert_equal(a: Profile, b: Profile) -> None:
    for name in Profile.__slots__:
        x, y = getattr(a, name), getattr(b, name)
        same = x == y if isinstance(x, (str, int)) else all(np.array_equal(i, j) for i, j in zip(x, y, strict=True))
        assert same, name


# --- text -------------------------------------------------------------------------------------------


def test_windows(model: LLM, tmp_path: Path) -> None:
    lines = ["Once upon a time there was a little dog. " * n for n in (5, 1, 30, 8)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": line, "id": 1}) for line in lines) + "\n\n")
    parts = windows([tmp_path / "a.jsonl"], model.tokenizer, 100, 10**6)
    ids = [model.tokenizer.encode(line, add_special=False) for line in lines]
    assert all(part[0] == model.tokenizer.bos_id for part in parts)
    want = [piece for doc in ids for piece in (doc[at : at + 99] for at in range(0, len(doc), 99)) if len(piece) > 30]
    assert [part[1:].tolist() for part in parts] == want
    short = windows([tmp_path / "a.jsonl"], model.tokenizer, 100, 120)
    assert sum(len(part) - 1 for part in short) == 120


def test_plain_text_comes_whole(tmp_path: Path) -> None:
    text = "".join(f"line {i} of a long text with ä and 語\n" for i in range(9000))
    (tmp_path / "a.txt").write_text(text)
    pieces = list(documents(tmp_path / "a.txt"))
    assert "".join(pieces) == text
    assert len(pieces) > 3
    assert all(piece.endswith("\n") for piece in pieces)


@pytest.mark.parametrize(
    ("name", "data", "error", "message"),
    [
        ("a.txt", b"", InputError, "no text of at least 32 tokens"),
        ("a.txt", b"short", InputError, "no text of at least 32 tokens"),
        ("a.txt", b"\xff\xfe" * 50, InputError, "not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\nplain', InputError, "line 2 is not JSON"),
        ("a.jsonl", b'{"txt": "x"}', InputError, "line 1 has no text"),
        ("a.jsonl", b"[1]", InputError, "line 1 has no text"),
        ("a.jsonl", b"[" * 100_000, InputError, "line 1 is not JSON"),
        (None, b"", StorageError, "cannot be read"),
    ],
)
def test_bad_text(
    model: LLM, tmp_path: Path, name: str | None, data: bytes, error: type[HotsetError], message: str
) -> None:
    path = tmp_path / (name or "absent.txt")
    if name:
        path.write_bytes(data)
    with pytest.raises(error, match=message):
        profile(model, [path], tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


# --- the file ---------------------------------------------------------------------------------------


def test_consumers_take_it(store: Path, found: Profile) -> None:
    assert_equal(load_profile(open_store(store)), found)


def test_too_little_text(store: Path, model: LLM, tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    short = profile(model, [TEXT], out, replace(OPTIONS, tokens=LEAST_TOKENS - 1))
    assert any(str(LEAST_TOKENS) in line for line in profile_report.notes(short))
    with pytest.raises(InputError, match=f"from {LEAST_TOKENS - 1} tokens of text; at least {LEAST_TOKENS}"):
        load_profile(open_store(store), out)
    assert load_profile(open_store(store), out, least_tokens=1).tokens == LEAST_TOKENS - 1


def test_no_profile(store: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="hotset profile"):
        load_profile(open_store(store), tmp_path / "absent.safetensors")


def test_another_models_profile(store: Path, found: Profile, tmp_path: Path) -> None:
    write_profile(replace(found, model="0" * 64), tmp_path / "p.safetensors")
    with pytest.raises(UsageError, match="another model"):
        load_profile(open_store(store), tmp_path / "p.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        lambda p: replace(p, counts=(p.counts[0] * 2, *p.counts[1:])),
        lambda p: replace(p, independent=(-p.counts[0], *p.counts[1:])),
        lambda p: replace(p, counts=(*p.counts[:-1], p.counts[-1][:, :-1])),
        lambda p: replace(p, neighbours=p.neighbours + p.ffn),
        lambda p: replace(p, nearness=p.nearness[:, :, :1]),
        lambda p: replace(p, trace=p.trace[:, :1]),
        lambda p: replace(p, trace=p.trace.astype(np.int8).view(np.uint8)[..., None]),
        lambda p: replace(p, reused=p.reused + 10**9),
        lambda p: replace(p, tokens=p.tokens + 1),
    ],
)
def test_contents_that_cannot_be(found: Profile, tmp_path: Path, change: Callable[[Profile], Profile]) -> None:
    write_profile(change(found), tmp_path / "p.safetensors")
    with pytest.raises(FormatError, match=r"p\.safetensors"):
        read_profile(tmp_path / "p.safetensors")


@pytest.mark.parametrize("meta", ["", "{}", '{"format_version": 2}', '{"format_version": 1, "layers": -1}', "[]"])
def test_metadata_that_cannot_be(found: Profile, tmp_path: Path, meta: str) -> None:
    path = tmp_path / "p.safetensors"
    write_profile(found, path)
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = {"hotset": meta}
    text = json.dumps(header).encode().ljust(size)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    with pytest.raises(FormatError):
        read_profile(path)


def test_any_bytes(found: Profile, tmp_path: Path) -> None:
    """Whatever is changed, cut or added, a profile is read that could be, or one of hotset's errors is raised."""
    path = tmp_path / "p.safetensors"
    write_profile(found, path)
    data, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(data[: rng.integers(len(data))] if rng.random() < 0.2 else data)
        for at in rng.integers(0, min(len(damaged), 4000) or 1, rng.integers(1, 4)):  # mostly the header
            damaged[at : at + 1] = bytes(rng.integers(0, 256, 1, np.uint8))
        path.write_bytes(damaged)
        try:
            assert read_profile(path).layers == found.layers
        except HotsetError:
            refused += 1
    assert 200 < refused <= 300


def test_cannot_be_written(found: Profile, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        write_profile(found, tmp_path / "absent" / "p.safetensors")


def test_others_can_open_it(store: Path, found: Profile) -> None:
    from safetensors.numpy import load_file

    tensors = load_file(store / file.PROFILE_FILE)
    assert (tensors["counts.3"] == found.counts[2]).all()
    assert (tensors["trace"] == found.trace).all()


# --- report and plots -------------------------------------------------------------------------------


def test_report(found: Profile) -> None:
    got = profile_report.report(found)
    assert len(got.layers) == found.layers
    assert got.model.zeros == pytest.approx(np.mean([layer.zeros for layer in got.layers]))
    assert got.model.active[1] == pytest.approx(1 - got.model.zeros)
    assert sorted(got.model.independent.values()) == list(got.model.independent.values())
    by_policy = {(r.policy, r.share): r for r in got.replayed}
    for share in profile_report.SHARES:
        for policy in ("lru", "clock", "lfu", "window", "static"):
            assert by_policy["belady", share].mean < by_policy[policy, share].mean <= 1
            assert by_policy[policy, share].p99 >= by_policy[policy, share].mean
    lines = profile_report.lines(got)
    assert len(lines) == 1 + found.layers + 1 + 1 + len(profile_report.SHARES) + 1
    (window,) = (r for r in got.replayed if r.policy == "window of 5")
    assert window.mean == pytest.approx(1 - got.model.reuse[5], abs=0.02)  # of the trace, not of the whole text
    json.dumps(profile_report.as_json(got))


def test_plots(found: Profile, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    got = profile_report.report(found, with_replay=False)
    for name, start in (("a.svg", b"<?xml"), ("b.png", b"\x89PNG")):
        profile_plot.plot(found, got, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)


def test_plots_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"\.svg, \.png"):
        profile_plot.check(tmp_path / "a.txt")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(HostError, match=r"hotset\[plot\]"):
        profile_plot.check(tmp_path / "a.svg")
