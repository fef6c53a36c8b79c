"""What `hotset sparsify` says of its speed: operations as PyTorch counts them, and a peak as NumPy reaches it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sparsify_runs import MODEL, command, corpus

from hotset.cli.main import main

pytestmark = pytest.mark.full
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def counted(model: Any, ids: Any, *, backward: bool) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        loss = model(input_ids=ids, labels=ids).loss
        if backward:
            loss.backward()
    return counter.get_total_flops() / ids.numel()


@pytest.mark.parametrize("length", [16, 256])
def test_operations_against_those_that_pytorch_counts(length: int) -> None:
    """Attention is computed for the whole square of positions here, and counted for the half that is needed."""
    from hotset.train.speed import flops_per_token

    ids = torch.randint(3, 512, (2, length))
    load = transformers.AutoModelForCausalLM.from_pretrained
    whole, hidden = (load(MODEL, dtype=torch.float32, attn_implementation=kind) for kind in ("eager", "sdpa"))
    training, answer = (
        (counted(whole, ids, backward=b) + counted(hidden, ids, backward=b))
        / 2  # the counter sees no attention in sdpa
        for b in (True, False)
    )
    assert training > counted(hidden, ids, backward=True)
    assert flops_per_token(whole, length) == pytest.approx(training, rel=1e-6)
    assert flops_per_token(whole, length, hidden) == pytest.approx(training + answer, rel=1e-6)


def test_the_peak_is_of_the_size_that_numpy_reaches() -> None:
    from hotset.train.parallel import World
    from hotset.train.speed import peak_flops_per_s

    found = peak_flops_per_s(World(0, 1, torch.device("cpu")), torch.float32)
    matrix, best = np.ones((1024, 1024), np.float32), 1e9
    for _ in range(20):
        started = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - started)
    assert 0.2 < found / (2 * 1024**3 / best) < 5


def test_a_run_reports_its_speed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(tmp_path / "run", corpus(tmp_path), steps=6, distill=0.5, log_every=2)) == 0
    found = json.loads((tmp_path / "run/sparsify.json").read_text())["as_measured"]
    speed = found["speed"]
    assert speed["tokens_per_s"] == pytest.approx(6 * 4 * 32 / found["seconds"])
    entries = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    trained = [entry for entry in entries if entry["kind"] == "train"]
    assert len(trained) == 3
    for entry in (*trained, speed):
        assert entry["flops_per_s"] == pytest.approx(entry["tokens_per_s"] * speed["flops_per_token"])
        assert entry["peak_share"] == pytest.approx(entry["flops_per_s"] / speed["peak_flops_per_s"])
        assert 0 < entry["peak_share"] < 1
    # All of a step's time is in one of the entries.
    assert sum(256 / entry["tokens_per_s"] for entry in trained) == pytest.approx(found["seconds"], rel=1e-6)
    last = f"{trained[-1]['flops_per_s'] / 1e9:.3g} GFLOP/s ({trained[-1]['peak_share']:.0%} of peak)"
    assert last in capsys.readouterr().err
