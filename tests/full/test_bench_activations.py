"""bench/activations.py on three short runs of stories260K, against the same thresholds in PyTorch."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from sparsify_runs import MODEL, ROOT, command, corpus

from hotset.cli.main import main
from hotset.errors import UsageError
from hotset.tokenizer import Tokenizer

pytestmark = pytest.mark.full
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("matplotlib")

KINDS = {"SwiGLU": "keep", "dReLU": "drelu", "ReLU": "relu"}
WINDOWS = 4


def compare(monkeypatch: pytest.MonkeyPatch, out: Path, runs: dict[str, Path], *more: str) -> dict[str, Any]:
    from bench import activations

    names = [f"{name}={folder}" for name, folder in runs.items()]
    texts = ["--text", str(ROOT / "LICENSE"), "--calibration", str(corpus(out.parent)), "--windows", str(WINDOWS)]
    monkeypatch.setattr(sys, "argv", ["activations", *names, *texts, "--quant", "f32", "--out", str(out), *more])
    activations.main()
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    text = corpus(folder)
    for name, kind in KINDS.items():
        assert main(command(folder / name, text, steps=20, activation=kind)) == 0
    return {name: folder / name for name in KINDS}


def network(run: Path, kind: str, work: Path) -> tuple[Any, list[Any]]:
    """The trained network in PyTorch, and its FFNs."""
    from hotset.train.ffn import swap_ffns
    from hotset.train.settings import DataSource, Settings

    work.mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        shutil.copyfile(run / name, work / name)
    shutil.copyfile(MODEL / "config.json", work / "config.json")
    model = transformers.AutoModelForCausalLM.from_pretrained(work, dtype=torch.float32)
    return model, swap_ffns(model, Settings("m", (DataSource(Path("x")),), activation=kind))


def left_out(ffns: list[Any], ids: Any, model: Any, share: float) -> list[float]:
    """Makes the FFNs skip what adds least; returns what is skipped below, the `share`-quantile of each layer."""
    seen: list[Any] = [[] for _ in ffns]

    def keep(number: int) -> Any:
        def before(down: Any, given: tuple[Any, ...]) -> None:
            seen[number].append(given[0].flatten(0, -2).abs() * down.weight.norm(dim=0))

        return before

    hooks = [ffn.down_proj.register_forward_pre_hook(keep(i)) for i, ffn in enumerate(ffns)]
    with torch.no_grad():
        for window in ids:
            model(window[None])
    for hook in hooks:
        hook.remove()
    return [float(torch.cat(parts).flatten().quantile(share)) for parts in seen]


def perplexity(model: Any, ffns: list[Any], limits: list[float], ids: Any) -> tuple[float, float]:
    zeros: list[float] = []

    def skip(limit: float) -> Any:
        def before(down: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
            small = given[0].abs() * down.weight.norm(dim=0) < limit
            zeros.append(float((small | (given[0] == 0)).float().mean()))
            return (given[0].masked_fill(small, 0),)

        return before

    hooks = [ffn.down_proj.register_forward_pre_hook(skip(limit)) for ffn, limit in zip(ffns, limits, strict=True)]
    with torch.no_grad():
        logits = torch.cat([model(window[None]).logits[0, :-1] for window in ids])
    for hook in hooks:
        hook.remove()
    loss = torch.nn.functional.cross_entropy(logits, torch.cat([window[1:] for window in ids]))
    return math.exp(loss), sum(zeros) / len(zeros)


@pytest.mark.parametrize("name", KINDS)
def test_curves_against_the_same_method_in_pytorch(
    name: str, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = compare(monkeypatch, tmp_path / "out.json", {name: runs[name]}, "--zeros", "0.95")
    own, thinned = found["rows"]
    model, ffns = network(runs[name], KINDS[name], tmp_path / "network")
    tokens = Tokenizer.load(MODEL).encode((ROOT / "LICENSE").read_text())
    ids = torch.tensor(tokens[: len(tokens) // 512 * 512]).split(512)
    whole, zeros = perplexity(model, ffns, [0.0] * 5, ids[:WINDOWS])
    assert own["perplexity"] == pytest.approx(whole, rel=2e-3)
    assert own["zeros"] == pytest.approx(zeros, abs=2e-3)
    # The text that gives the thresholds is cut into other windows there.
    value, zeros = perplexity(model, ffns, left_out(ffns, ids, model, 0.95), ids[:WINDOWS])
    assert thinned["zeros"] == pytest.approx(zeros, abs=0.01)
    assert math.log(thinned["perplexity"] / own["perplexity"]) == pytest.approx(math.log(value / whole), rel=0.1)
    assert value > 1.03 * whole


def test_three_activations_in_one_plot(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = compare(monkeypatch, tmp_path / "out.json", runs, "--zeros", "0.3", "0.9")
    assert {run["tokens"] for run in found["runs"].values()} == {20 * 4 * 32} and found["unequal"] == []
    by_model = {name: [row for row in found["rows"] if row["model"] == name] for name in KINDS}
    # 0.3 only where fewer are zero by themselves.
    assert [row["wanted"] for row in by_model["SwiGLU"]] == [0, 0.3, 0.9]
    assert [row["wanted"] for row in by_model["dReLU"]] == [0, 0.9]
    assert "| zeros | SwiGLU | dReLU | ReLU |" in capsys.readouterr().out
    assert (tmp_path / "out.svg").read_text().count("<svg") == 1
    assert str(tmp_path.parent) not in (tmp_path / "out.json").read_text()


def test_unequal_runs_are_refused(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = corpus(tmp_path)
    assert main(command(tmp_path / "short", text, steps=2, activation="keep", distill=0.5)) == 0
    pair = {"dReLU": runs["dReLU"], "SwiGLU": tmp_path / "short"}
    with pytest.raises(UsageError, match=r"distill: dReLU 0.0, SwiGLU 0.5.*tokens: dReLU 2560, SwiGLU 256"):
        compare(monkeypatch, tmp_path / "out.json", pair)
    with pytest.raises(UsageError, match=r"has no sparsify\.json"):
        compare(monkeypatch, tmp_path / "out.json", {"x": tmp_path})
    found = compare(monkeypatch, tmp_path / "out.json", pair, "--unequal", "--zeros", "0.9")
    assert any("tokens" in each for each in found["unequal"])
