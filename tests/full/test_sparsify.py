"""`hotset sparsify` on a small real model: what it computes, what it writes, and what it refuses. Needs PyTorch."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sparsify_runs import MODEL, command, corpus, losses

from hotset import LLM
from hotset.cli.main import main
from hotset.formats.safetensors import read_folder
from hotset.models import resolve
from hotset.tools.convert import convert
from hotset.tools.pack import pack
from hotset.tools.profile import ProfileOptions, profile
from hotset.tools.train_predictor import TrainOptions, train_predictor

pytestmark = pytest.mark.full
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """stories260K with dReLU, trained for some steps."""
    output = tmp_path_factory.mktemp("runs") / "drelu"
    assert main(command(output, text, "--tensorboard", steps=40, swap_steps=6, l1=0.1, distill=0.5)) == 0
    return output


# --- what an FFN computes ----------------------------------------------------------------------------------
def numpy_ffn(kind: str, swap: float, gate: Any, up: Any) -> Any:
    old = gate / (1 + np.exp(-gate)) * up
    new = {
        "drelu": np.maximum(gate, 0) * np.maximum(up, 0),
        "relu": np.maximum(gate, 0) * up,
        "fatrelu": np.where(gate > 0.3, gate, 0) * up,
    }[kind]
    return swap * new + (1 - swap) * old


@pytest.mark.parametrize("kind", ["drelu", "relu", "fatrelu"])
@pytest.mark.parametrize("swap", [0.0, 0.25, 1.0])
def test_ffn_against_numpy(kind: str, swap: float) -> None:
    from hotset.train.ffn import swap_ffns
    from hotset.train.model import load_model
    from hotset.train.settings import DataSource, Settings

    model = load_model(MODEL, from_scratch=False, seed=0)
    mlp = model.model.layers[2].mlp
    weights = [
        getattr(mlp, f"{name}_proj").weight.detach().numpy().astype(np.float64) for name in ("gate", "up", "down")
    ]
    settings = Settings(str(MODEL), (DataSource(Path("x")),), activation=kind, threshold=0.3)
    ffn = swap_ffns(model, settings)[2]
    ffn.swap, ffn.wants_zeros, ffn.wants_size = swap, True, True
    x = np.random.default_rng(0).normal(size=(3, 7, 64)).astype(np.float32)
    got = ffn(torch.from_numpy(x)).detach().numpy()
    gate, up = x @ weights[0].T, x @ weights[1].T
    neurons = numpy_ffn(kind, swap, gate, up)
    np.testing.assert_allclose(got, neurons @ weights[2].T, rtol=1e-4, atol=1e-5)
    assert ffn.size.item() == pytest.approx(np.abs(neurons).mean(), rel=1e-4)
    assert ffn.zeros.item() == pytest.approx((neurons == 0).mean(), abs=2 / neurons.size)


def test_losses_against_their_definitions(text: Path) -> None:
    from hotset.train.ffn import swap_ffns
    from hotset.train.model import load_model
    from hotset.train.objective import Objective
    from hotset.train.settings import DataSource, Settings

    teacher, model = (load_model(MODEL, from_scratch=False, seed=0) for _ in range(2))
    ffns = swap_ffns(model, Settings(str(MODEL), (DataSource(text),)))
    windows = torch.from_numpy(np.random.default_rng(1).integers(3, 512, (2, 9)))
    weights = np.linspace(0.2, 0.7, len(ffns))
    found = Objective(model, ffns, teacher, 0.25)(windows, weights.tolist())
    with torch.no_grad():
        wrong = torch.log_softmax(model(windows[:, :-1]).logits, -1).numpy().astype(np.float64)
        right = torch.log_softmax(teacher(windows[:, :-1]).logits, -1).numpy().astype(np.float64)
    rows, columns = np.indices((2, 8))
    entropy = -wrong[rows, columns, windows[:, 1:].numpy()].mean()
    distance = (np.exp(right) * (right - wrong)).sum(-1).mean()
    assert found.next_token.item() == pytest.approx(entropy, rel=1e-5)
    assert found.distance.item() == pytest.approx(distance, rel=1e-4)
    sizes = [ffn.size.item() for ffn in ffns]
    assert found.size.item() == pytest.approx(np.mean(sizes), rel=1e-5)
    total = 0.75 * entropy + 0.25 * distance + np.mean(weights * sizes)
    assert found.total.item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_both_losses_is_that_of_their_definitions(dtype: torch.dtype) -> None:
    from hotset.train.distance import mixed_loss

    torch.manual_seed(0)
    # A vocabulary of which 83 rows are a piece: two whole pieces and a part.
    logits, right = (3 * torch.randn(170, 50_000) for _ in range(2))
    ours = logits.to(dtype).requires_grad_()
    wanted = torch.randint(50_000, (170,))
    (2 * mixed_loss(ours, wanted, right, 0.8)[0]).backward()
    exact = ours.detach().float().requires_grad_()
    pairs = exact.log_softmax(-1), right.log_softmax(-1)
    distance = torch.nn.functional.kl_div(*pairs, log_target=True, reduction="batchmean")
    (2 * (0.2 * torch.nn.functional.cross_entropy(exact, wanted) + 0.8 * distance)).backward()
    assert ours.grad is not None and exact.grad is not None
    torch.testing.assert_close(ours.grad.float(), exact.grad, rtol=1e-4 if dtype == torch.float32 else 1e-2, atol=1e-9)


# --- a run and what it leaves ------------------------------------------------------------------------------
def test_a_run_learns_and_says_what_it_reached(trained: Path) -> None:
    found = losses(trained)
    assert sorted(found) == list(range(1, 41))
    assert np.mean([found[i] for i in range(31, 41)]) < np.mean([found[i] for i in range(1, 11)])
    record = json.loads((trained / "sparsify.json").read_text())
    measured = record["as_measured"]
    assert measured["perplexity"] == pytest.approx(math.exp(measured["loss"]))
    assert len(measured["zeros_per_layer"]) == 5 and 0.3 < measured["zeros"] < 1
    assert record["settings"]["distill"] == 0.5
    weights, before = (read_folder(folder) for folder in (trained, MODEL))
    assert {name: entry.shape for name, (_, entry) in weights.items()} == {n: e.shape for n, (_, e) in before.items()}
    assert record["parameters"] == sum(math.prod(entry.shape) for _, entry in before.values())
    assert any((trained / "tensorboard").iterdir())


def test_the_result_is_what_the_engine_computes(trained: Path, tmp_path: Path) -> None:
    """Held-out loss of the trainer's network against the engine's own perplexity of the converted model."""
    from hotset.train.ffn import swap_ffns
    from hotset.train.settings import DataSource, Settings

    config = json.loads((trained / "config.json").read_text())
    assert resolve(config).config.act_up == "relu"
    as_llama = tmp_path / "llama"
    shutil.copytree(trained, as_llama, ignore=shutil.ignore_patterns("tokens", "checkpoints", "tensorboard"))
    shutil.copyfile(MODEL / "config.json", as_llama / "config.json")
    network = transformers.AutoModelForCausalLM.from_pretrained(as_llama, dtype=torch.float32)
    swap_ffns(network, Settings(str(MODEL), (DataSource(Path("x")),)))
    convert(trained, tmp_path / "store", quant="f32")
    text = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. " * 4
    with LLM(tmp_path / "store") as llm:
        ids = llm.tokenizer.encode(text)[:128]
        found = llm.perplexity(llm.tokenizer.decode(ids, skip_special=True), window=128, stride=128)
    with torch.no_grad():
        logits = network(torch.tensor([ids])).logits[0]
    wanted = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:])).item()
    assert math.log(found.value) == pytest.approx(wanted, abs=0.02)


def test_from_the_result_to_predicted_text(trained: Path, text: Path, tmp_path: Path) -> None:
    """convert, pack, profile, train-predictor and run take the result as any other sparse model."""
    convert(trained, tmp_path / "store", quant="q8_0")
    with LLM(tmp_path / "store") as dense:
        profile(dense, [text], options=ProfileOptions(tokens=5000))
    packed = pack(tmp_path / "store", tmp_path / "packed", fmt="q8_0").dest
    train_predictor(packed, [text], TrainOptions(tokens=1500, loss=0.05, measure=40))
    with LLM(tmp_path / "store") as dense, LLM(packed) as sparse:
        asked = {"max_tokens": 24, "temperature": 0}
        wanted, got = (llm.generate("Once upon a time", **asked).samples[0].tokens for llm in (dense, sparse))
    assert got == wanted


@pytest.mark.parametrize("kind", ["relu", "fatrelu", "keep"])
def test_every_activation_gives_a_model_that_converts(kind: str, text: Path, tmp_path: Path) -> None:
    assert main(command(tmp_path / "run", text, "--recompute", steps=2, activation=kind, threshold=0.02)) == 0
    config = resolve(json.loads((tmp_path / "run/config.json").read_text())).config
    assert config.act_gate == {"relu": "relu", "fatrelu": "shifted_relu", "keep": "silu"}[kind]
    assert config.gate_threshold == (0.02 if kind == "fatrelu" else 0)
    convert(tmp_path / "run", tmp_path / "store", quant="f32")


def test_recomputed_activations_give_the_same_loss(text: Path, tmp_path: Path) -> None:
    assert main(command(tmp_path / "kept", text, steps=3, l1=0.3, l1_steps=1)) == 0
    assert main(command(tmp_path / "again", text, "--recompute", steps=3, l1=0.3, l1_steps=1)) == 0
    assert losses(tmp_path / "again") == pytest.approx(losses(tmp_path / "kept"), rel=1e-5)


def test_accumulated_passes_give_the_loss_of_one(text: Path, tmp_path: Path) -> None:
    for name, size in (("one", 4), ("parts", 1), ("uneven", 3)):
        assert main(command(tmp_path / name, text, steps=4, micro_batch=size)) == 0
    for name in ("parts", "uneven"):
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


def test_zeros_and_their_pull_do_not_depend_on_the_passes(text: Path, tmp_path: Path) -> None:
    for name, size in (("one", 4), ("parts", 1), ("uneven", 3)):
        assert main(command(tmp_path / name, text, steps=6, micro_batch=size, zeros=0.9)) == 0
    whole = trained_steps(tmp_path / "one")
    for name in ("parts", "uneven"):
        for found, wanted in zip(trained_steps(tmp_path / name), whole, strict=True):
            assert found["zeros"] == pytest.approx(wanted["zeros"], abs=1e-3)
            assert found["pull"] == pytest.approx(wanted["pull"], rel=0.1)  # those of a single pass: a factor of 2


def trained_steps(output: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [entry for entry in entries if entry["kind"] == "train"]


def test_zeros_are_reached_behind_a_gradual_swap(text: Path, tmp_path: Path) -> None:
    assert main(command(tmp_path / "run", text, steps=150, zeros=0.9, swap_steps=50)) == 0
    steps = trained_steps(tmp_path / "run")
    assert not any(any(each["pull"]) for each in steps[:50]) and any(steps[50]["pull"])  # of the next step
    assert max(max(each["pull"]) for each in steps) < 100
    found = json.loads((tmp_path / "run/sparsify.json").read_text())["as_measured"]
    assert found["zeros"] == pytest.approx(0.9, abs=0.02)


def test_a_new_weight_decay_is_that_of_the_steps_after_it(text: Path, tmp_path: Path) -> None:
    """As checkpoints bring the settings of their optimizers along."""
    for name in ("kept", "changed"):
        assert main(command(tmp_path / name, text, steps=2)) == 0
    for name, decay in (("kept", 0.1), ("changed", 500.0)):
        more = command(tmp_path / name, text, "--accept-changes", steps=4, weight_decay=decay)
        assert main(more) == 0
    length = {name: weights_of(tmp_path / name).norm() for name in ("kept", "changed")}
    assert length["changed"] < 0.8 * length["kept"]


def weights_of(output: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(output / "model.safetensors")["model.layers.0.mlp.gate_proj.weight"].float()


def test_from_scratch_with_muon_learns(text: Path, tmp_path: Path) -> None:
    arguments = command(tmp_path / "run", text, "--from-scratch", steps=15, optimizer="muon", lr=5e-3, dtype="bf16")
    assert main(arguments) == 0
    found = losses(tmp_path / "run")
    assert found[1] == pytest.approx(math.log(512), abs=0.3)
    assert found[15] < found[1] - 1


# --- what is refused ---------------------------------------------------------------------------------------
def model_with(folder: Path, **changes: Any) -> Path:
    shutil.copytree(MODEL, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int) -> str:
    assert main(arguments) == code
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said.splitlines()[-1]


def test_bad_input_is_refused(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def of(model: Path, *extra: str, data: Path = text, **flags: Any) -> list[str]:
        arguments = command(tmp_path / "run", data, *extra, steps=3, **flags)
        return [arguments[0], str(model), *arguments[2:]]

    sparse = model_with(tmp_path / "sparse", hidden_act="relu")
    assert "is sparse already: its FFNs use relu" in refused(capsys, of(sparse), 3)
    biased = model_with(tmp_path / "biased", attention_bias=True)
    assert "a llama model with drelu has no place in hotset's families" in refused(capsys, of(biased), 3)
    plain = model_with(tmp_path / "opt", architectures=["OPTForCausalLM"], model_type="opt")
    assert main(of(plain)) == 3
    capsys.readouterr()
    assert "is no Hugging Face folder" in refused(capsys, of(tmp_path), 2)
    short = tmp_path / "short.txt"
    short.write_text("Once upon a time. " * 8)
    assert "wanted at least 65" in refused(capsys, of(MODEL, data=short), 7)
    short.write_text("Once upon a time. " * 40)
    assert "less than one batch of 400" in refused(capsys, of(MODEL, data=short, batch=400), 7)
    assert "--device 'gpu': want auto, cpu or cuda" in refused(capsys, of(MODEL, device="gpu"), 2)
    file = tmp_path / "a file"
    file.write_text("")
    assert f"{file}/tokens/" in (said := refused(capsys, [*of(MODEL), "-o", str(file)], 5)) and "Not a dir" in said
    small = model_with(tmp_path / "small", vocab_size=100)
    assert "model has rows for 100" in refused(capsys, of(small), 7)


def test_a_result_does_not_replace_what_it_is_made_from(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_with(tmp_path / "model")
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    arguments = command(tmp_path / "elsewhere/../model", text, steps=2)
    said = refused(capsys, [arguments[0], str(model), *arguments[2:]], 2)
    assert "is MODEL, which the result would replace; want another folder" in said
    taught = command(model, text, "--distill", "0.5", "--teacher", str(model), steps=2)
    assert "is --teacher, which the result would replace" in refused(capsys, taught, 2)
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before


def test_files_of_a_run_before_do_not_stay_beside_the_result(text: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json"):
        (tmp_path / "run" / name).write_text("{}")
    assert main(command(tmp_path / "run", text, steps=1)) == 0
    assert [path.name for path in (tmp_path / "run").glob("*safetensors*")] == ["model.safetensors"]
    assert not list((tmp_path / "run").glob("*.partial"))


def test_a_loss_that_is_no_number_ends_the_run(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotset.train.trainer import Trainer

    backward = Trainer._backward

    def broken(self: Trainer, batch: Any) -> tuple[Any, Any]:
        losses, zeros = backward(self, batch)
        return losses + (math.nan if self.step == 4 else 0), zeros

    monkeypatch.setattr(Trainer, "_backward", broken)
    arguments = command(tmp_path / "run", text, steps=8, checkpoint_every=0)
    said = refused(capsys, arguments, 10)
    assert "step 5: the loss is nan" in said and "step-00000004.pt" in said
    monkeypatch.undo()
    assert main(arguments) == 0  # from the checkpoint that was kept
    assert max(losses(tmp_path / "run")) == 8


def test_changed_settings_are_named(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(tmp_path / "run", text, steps=3)) == 0
    said = refused(capsys, command(tmp_path / "run", text, steps=5, lr=0.5), 2)
    assert "steps was 3, is 5" in said and "lr was 0.001, is 0.5" in said
    assert main(command(tmp_path / "run", text, "--accept-changes", steps=5)) == 0
    assert sorted(losses(tmp_path / "run")) == [1, 2, 3, 4, 5]
    assert main(command(tmp_path / "run", text, "--restart", steps=2)) == 0
    assert sorted(losses(tmp_path / "run")) == [1, 2]
