"""The first stage of `hotset sparsify`, layer after layer, against definitions in NumPy and against whole networks."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sparsify_runs import MODEL, command, corpus, forked

from hotset.cli.main import main

pytestmark = pytest.mark.full
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
saved = pytest.importorskip("safetensors.torch")

FIRST = {"ffn_tokens": "1600", "ffn_batch": 25, "zeros": 0.8, "distill": 0.5}
UP = "mlp.up_proj.weight"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("text"))


def networks() -> tuple[Any, Any, Any]:
    """The original, the same with dReLU, and the new FFNs."""
    from hotset.train.ffn import swap_ffns
    from hotset.train.model import load_model
    from hotset.train.settings import DataSource, Settings

    original, model = (load_model(MODEL, from_scratch=False, seed=0).requires_grad_(False) for _ in range(2))
    return original, model, swap_ffns(model, Settings(str(MODEL), (DataSource(Path("x")),)))


def ids(sequences: int = 5, length: int = 24) -> Any:
    return torch.from_numpy(np.random.default_rng(2).integers(3, 512, (sequences, length)))


# --- streams -----------------------------------------------------------------------------------------------
def test_streams_end_where_the_networks_end() -> None:
    """Passes of 2, 2 and 1 sequences, the old activation in one layer and the new one in the others."""
    from hotset.train.streams import Streams

    original, model, ffns = networks()
    ffns[1].swap = 0.0
    streams = Streams(original, model, ids(), 2)
    for number, ffn in enumerate(ffns):
        off = streams.leave(streams.enter(number), ffn)
    for network, parts in ((original, streams.right), (model, streams.new)):
        normed = network.model.norm(torch.cat(parts))
        torch.testing.assert_close(network.lm_head(normed), network(ids()).logits, rtol=1e-4, atol=1e-4)
    right, new = (torch.cat(parts).double() for parts in (streams.right, streams.new))
    wanted = ((right - new).square().sum(-1) / right.square().sum(-1)).mean()
    assert off == pytest.approx(float(wanted), rel=1e-4)


def test_a_lesson_of_the_same_network_is_the_old_ffn() -> None:
    from hotset.train.streams import Streams

    original, model, ffns = networks()
    for ffn in ffns:
        ffn.swap = 0.0
    streams = Streams(original, model, ids(), 8)
    for number, ffn in enumerate(ffns):
        lesson = streams.enter(number)
        torch.testing.assert_close(lesson.wanted, ffn(lesson.inputs), rtol=1e-3, atol=1e-4)
        assert streams.leave(lesson, ffn) < 1e-9


def test_contributions_against_their_definition() -> None:
    from hotset.train.streams import contributions

    original, _, _ = networks()
    found = contributions(original, ids(1))
    states = original(ids(1), output_hidden_states=True).hidden_states
    layer = original.model.layers[2]
    middle = (
        states[2]
        + layer.self_attn(
            layer.input_layernorm(states[2]),
            position_embeddings=original.model.rotary_emb(states[2], torch.arange(24)[None]),
            attention_mask=torch.full((24, 24), -1e30).triu(1)[None, None],
        )[0]
    )
    x = layer.post_attention_layernorm(middle)[0].numpy().astype(np.float64)
    gate, up, down = (getattr(layer.mlp, f"{n}_proj").weight.numpy().astype(np.float64) for n in ("gate", "up", "down"))
    neurons = (x @ gate.T) / (1 + np.exp(-x @ gate.T)) * (x @ up.T)
    sizes = np.abs(neurons) * np.linalg.norm(down, axis=0) / np.linalg.norm(states[3][0].numpy(), axis=-1)[:, None]
    np.testing.assert_allclose(found[2].numpy(), sizes, rtol=1e-3, atol=1e-6)


# --- what is solved for ------------------------------------------------------------------------------------
def lesson(tokens: int = 600) -> Any:
    from hotset.train.streams import Lesson

    random = np.random.default_rng(3)
    made = [random.normal(size=(tokens, 64)).astype(np.float32) for _ in range(3)]
    return Lesson(*map(torch.from_numpy, made), torch.from_numpy(random.uniform(0.5, 2, tokens).astype(np.float32)))


def test_refit_is_the_weighted_least_squares_solution(monkeypatch: pytest.MonkeyPatch) -> None:
    from hotset.train import refit as module

    monkeypatch.setattr(module, "_RIDGE", 0.0)
    monkeypatch.setattr(module, "_PART", 170)
    given, ffn = lesson(), networks()[2][0]
    module.refit(ffn, given)
    gate, up = (ffn.get_submodule(f"{n}_proj").weight.numpy().astype(np.float64) for n in ("gate", "up"))
    x, weights = given.inputs.numpy().astype(np.float64), given.weights.numpy()[:, None]
    neurons = np.maximum(x @ gate.T, 0) * np.maximum(x @ up.T, 0)
    wanted = np.linalg.lstsq(neurons * weights, given.wanted.numpy() * weights, rcond=None)[0]
    np.testing.assert_allclose(ffn.down_proj.weight.numpy(), wanted.T, rtol=1e-2, atol=1e-3)


def test_neurons_that_never_fire_keep_their_output_weights() -> None:
    from hotset.train.refit import refit

    given, ffn = lesson(), networks()[2][0]
    ffn.gate_proj.weight[5] = 0
    before = ffn.down_proj.weight.clone()
    refit(ffn, given)
    torch.testing.assert_close(ffn.down_proj.weight[:, 5], before[:, 5], rtol=1e-3, atol=1e-5)
    assert not torch.allclose(ffn.down_proj.weight[:, 6], before[:, 6])


def test_turned_signs_keep_what_the_old_activation_gives() -> None:
    from hotset.train.refit import turn_signs

    given, ffn = lesson(), networks()[2][0]
    ffn.swap = 0.0
    before, up = ffn(given.inputs), ffn.up_proj.weight.clone()
    turn_signs(ffn, given)
    torch.testing.assert_close(ffn(given.inputs), before, rtol=1e-4, atol=1e-5)
    turned = (ffn.up_proj.weight != up).any(1)
    assert 0 < int(turned.sum()) < len(up)
    x, weights = given.inputs.double(), given.weights.double()[:, None]
    values = (
        torch.nn.functional.silu(x @ ffn.gate_proj.weight.double().T) * (x @ ffn.up_proj.weight.double().T) * weights
    )
    positive = x @ ffn.up_proj.weight.double().T > 0
    assert bool(((values.square() * positive).sum(0) >= (values.square() * ~positive).sum(0) - 1e-6).all())


# --- runs --------------------------------------------------------------------------------------------------
def ended(output: Path) -> dict[str, Any]:
    return json.loads((output / "sparsify.json").read_text())["as_measured"]


def layers_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "ffn.jsonl").read_text().splitlines()]


def test_the_first_stage_lowers_the_loss_the_second_begins_with(text: Path, tmp_path: Path) -> None:
    for name, first in (("with", FIRST), ("without", {"distill": 0.5})):
        assert main(command(tmp_path / name, text, steps=1, lr=1e-9, **first)) == 0
    assert ended(tmp_path / "with")["loss"] < ended(tmp_path / "without")["loss"] - 0.1
    found = layers_of(tmp_path / "with")
    assert [entry["step"] for entry in found] == [1, 2, 3, 4, 5]
    assert np.mean([entry["zeros"] for entry in found]) == pytest.approx(0.8, abs=0.05)


def test_the_second_stage_reaches_the_wanted_zeros(text: Path, tmp_path: Path) -> None:
    arguments = command(tmp_path / "run", text, "--tensorboard", steps=150, zeros=0.9)
    assert main(arguments) == 0
    assert ended(tmp_path / "run")["zeros"] == pytest.approx(0.9, abs=0.02)


def test_random_weights_find_their_own_zeros_before_they_are_pulled(text: Path, tmp_path: Path) -> None:
    batch = {"batch": 16, "micro_batch": 16}  # zeros of fewer tokens differ from step to step by more than is tested
    arguments = command(tmp_path / "run", text, "--from-scratch", steps=120, zeros=0.9, lr=3e-3, **batch)
    assert main(arguments) == 0
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    steps = [each for each in log if each["kind"] == "train"]
    pulled = [any(each["pull"]) for each in steps]  # in the next step
    assert pulled == [each["step"] >= 0.15 * 120 for each in steps]
    found = np.array(ended(tmp_path / "run")["zeros_per_layer"])
    assert found.mean() == pytest.approx(0.9, abs=0.03)
    own = np.array(steps[pulled.index(True)]["zeros"])
    assert found - found.mean() == pytest.approx(own - own.mean(), abs=0.05)


def test_an_interrupted_first_stage_goes_on_at_its_layer(text: Path, tmp_path: Path) -> None:
    whole, broken = (command(tmp_path / name, text, steps=3, **FIRST) for name in ("whole", "broken"))
    assert main(whole) == 0
    broken += ["--checkpoint-every", "0"]
    for layers, number in ((1, signal.SIGINT), (2, signal.SIGKILL), (4, signal.SIGTERM)):
        process = forked(broken)
        while process.is_alive() and len(list((tmp_path / "broken/checkpoints/ffn").glob(f"*{layers}.pt"))) == 0:
            time.sleep(0.005)
        if process.is_alive():
            process.kill() if number == signal.SIGKILL else process.terminate()
        process.join()
        assert process.exitcode in (130, -signal.SIGKILL, 0)
    assert main(broken) == 0
    strip = ("step", "error", "zeros", "pull")
    found, wanted = ([{k: e[k] for k in strip} for e in layers_of(tmp_path / name)] for name in ("broken", "whole"))
    assert found == wanted
    assert ended(tmp_path / "broken")["loss"] == ended(tmp_path / "whole")["loss"]


def diverged(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 10
    return capsys.readouterr().err.splitlines()[-1]


def test_a_loss_that_is_no_number_ends_the_first_stage_at_once(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rate at which the first update ruins the layer: no update comes after the second, which finds it."""
    said = diverged(command(tmp_path / "run", text, steps=1, **FIRST, ffn_lr=1e30), capsys)
    assert re.search(r"FFN of layer 1/5: its loss is (nan|inf) in update 2 of 64 \(.*\); no layer is done yet\.", said)
    assert said.endswith("Go on with a lower --ffn-lr (is 1e+30)")
    assert not layers_of(tmp_path / "run")


def test_a_loss_that_is_a_number_but_absurd_ends_it_as_well(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = diverged(command(tmp_path / "run", text, steps=1, **FIRST, ffn_lr=10), capsys)
    assert re.search(r"FFN of layer 1/5: its loss is \d[\d.e+]* in update 6 of 64 \(one that", said)


def test_updates_with_an_outlier_do_not_end_it(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As measured: of 160 updates one with a loss of 12, before and after it 0.6."""
    from hotset.train.layerwise import Layerwise

    real, number = Layerwise._update, count()

    def update(*given: Any) -> tuple[float, float]:
        error, zeros = real(*given)
        return (1e3 if next(number) % 5 else error), zeros

    monkeypatch.setattr(Layerwise, "_update", update)
    assert main(command(tmp_path / "run", text, steps=1, **FIRST)) == 0
    capsys.readouterr()


def test_an_only_update_that_ruins_the_layer_is_found_behind_it(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = diverged(command(tmp_path / "run", text, steps=1, **FIRST | {"ffn_batch": 1600}, ffn_lr=1e30), capsys)
    assert re.search(r"FFN of layer 1/5: its loss is (nan|inf) (beside its updates|after its last update) \(one", said)


def badly_scaled(folder: Path, layer: int) -> Path:
    """The same model, but up of one layer is so small and down so large that any rate is absurd for them."""
    shutil.copytree(MODEL, folder)
    weights = saved.load_file(MODEL / "model.safetensors")
    for name, factor in (("up", 1e-18), ("down", 1e18)):
        weights[f"model.layers.{layer}.mlp.{name}_proj.weight"] *= factor
    saved.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_layers_before_the_one_that_diverges_are_kept(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(tmp_path / "run", text, steps=1, **FIRST)
    arguments[1] = str(badly_scaled(tmp_path / "model", 2))
    said = diverged(arguments, capsys)
    assert "FFN of layer 3/5: its loss is" in said and "; the 2 before it are kept." in said
    assert said.endswith("Go on with a lower --ffn-lr (is 0.001) and --accept-changes")
    (kept,) = (tmp_path / "run/checkpoints/ffn").glob("step-*2.pt")
    found, before = torch.load(kept)["model"], saved.load_file(tmp_path / "model/model.safetensors")
    changed = [not torch.equal(found[name], before[name]) for name in (f"model.layers.{i}.{UP}" for i in range(5))]
    assert changed == [True, True, False, False, False]
    assert main([*arguments, "--accept-changes", "--ffn-lr", "1e-30"]) == 0
    assert [entry["step"] for entry in layers_of(tmp_path / "run")] == [1, 2, 3, 4, 5]


def test_a_family_that_norms_what_ffns_give_has_no_first_stage(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import Olmo2Config, Olmo2ForCausalLM

    sizes = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
    Olmo2ForCausalLM(Olmo2Config(num_hidden_layers=2, **sizes)).save_pretrained(tmp_path / "model")
    for path in MODEL.glob("tokenizer*"):
        shutil.copy(path, tmp_path / "model")
    arguments = command(tmp_path / "run", text, steps=1, activation="relu", **FIRST)
    assert main([arguments[0], str(tmp_path / "model"), *arguments[2:]]) == 3
    assert "a olmo2 model norms it first; train without that stage" in capsys.readouterr().err


def test_goals_do_not_depend_on_the_passes() -> None:
    from hotset.train.layerwise import Layerwise
    from hotset.train.parallel import World
    from hotset.train.settings import DataSource, Running, Settings

    original, model, _ = networks()
    settings = Settings(str(MODEL), (DataSource(Path("x")),), zeros=0.8, dtype="f32")
    found = []
    for size in (1, 3, 8):
        stage = Layerwise(settings, Running(micro_batch=size), World(0, 1, torch.device("cpu")), model, None)
        found.append(stage._prepare(original, ids(9))[1])
    assert found[1] == pytest.approx(found[0], abs=1e-3) and found[2] == pytest.approx(found[0], abs=1e-3)


def test_several_processes_are_sent_to_one(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hotset.train import parallel

    monkeypatch.setattr(parallel, "join", lambda device: parallel.World(0, 2, torch.device("cpu")))
    monkeypatch.setattr(parallel, "shard", lambda model, world: None)
    assert main(command(tmp_path / "run", text, steps=2, **FIRST)) == 2
    assert "in one process; call hotset sparsify alone" in capsys.readouterr().err
