"""Runs that end too early and go on: by signals, by a killed process, and in several processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from sparsify_runs import command, corpus, forked, losses, start

from hotset.cli.main import main

pytestmark = pytest.mark.full
pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("text"))


def final(output: Path) -> dict[str, float]:
    return json.loads((output / "sparsify.json").read_text())["as_measured"]


@pytest.mark.timeout(3000)
def test_twenty_interruptions_do_not_change_the_result(text: Path, tmp_path: Path) -> None:
    """SIGINT, SIGTERM and SIGKILL at random moments, be it in start-up, in a step or while a checkpoint is written."""
    flags = {"steps": 200, "optimizer": "muon", "l1": 0.05, "swap_steps": 50, "measure_every": 1000}
    ends = [forked(command(tmp_path / "whole", text, **flags))]
    broken = command(tmp_path / "broken", text, checkpoint_every=0.05, **flags)
    random = np.random.default_rng(5)
    for interrupted in range(20):
        number = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL][interrupted % 3]
        process = forked(broken)
        while process.is_alive() and reached(tmp_path / "broken") < (interrupted + 1) * 9:  # over the whole run
            time.sleep(0.01)
        time.sleep(float(random.uniform(0, 0.1)))
        assert process.is_alive()
        os.kill(process.pid, number)
        process.join()
        assert process.exitcode == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    ends.append(forked(broken))
    for process in ends:
        process.join()
        assert process.exitcode == 0
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    assert final(tmp_path / "broken")["loss"] == final(tmp_path / "whole")["loss"]
    assert final(tmp_path / "broken")["zeros_per_layer"] == final(tmp_path / "whole")["zeros_per_layer"]


def reached(output: Path) -> int:
    """Steps in the newest checkpoint."""
    return max((int(path.stem[5:]) for path in (output / "checkpoints").glob("step-*.pt")), default=0)


def test_a_stopped_run_is_no_success_for_scripts_either(text: Path, tmp_path: Path) -> None:
    process = start(command(tmp_path / "run", text, "--json", steps=100_000, checkpoint_every=0.05))
    while process.poll() is None and reached(tmp_path / "run") < 3:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert json.loads(out)["step"] >= 3 and "perplexity" not in json.loads(out)


def test_what_a_killed_process_left_half_written_goes_with_the_next_checkpoint(text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run/checkpoints"
    folder.mkdir(parents=True)
    (folder / "step-00000001.partial").write_text("x")
    assert main(command(tmp_path / "run", text, steps=2)) == 0
    assert [path.name for path in folder.iterdir()] == ["step-00000002.pt"]


@pytest.mark.timeout(900)
def test_two_processes_go_on_behind_a_first_stage_of_one(text: Path, tmp_path: Path) -> None:
    """Killed between the stages, so that there is no checkpoint of the second one yet."""
    first = {"ffn_tokens": "256", "ffn_batch": 32, "zeros": 0.8}
    one = start(command(tmp_path / "one", text, steps=6, **first))
    assert one.wait() == 0, one.stderr.read()
    shutil.copytree(tmp_path / "one", tmp_path / "two", ignore=shutil.ignore_patterns("step-00000006.pt", "log.jsonl"))
    assert (tmp_path / "two/checkpoints/ffn/step-00000005.pt").is_file()
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2")
    two = start(command(tmp_path / "two", text, steps=6, **first), *torchrun)
    err = two.communicate()[1]
    assert two.returncode == 0, err
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)


@pytest.mark.timeout(900)
def test_two_processes_give_the_loss_of_one(text: Path, tmp_path: Path) -> None:
    """FSDP2 over gloo on the CPU; the state of two is also resumed by one."""
    flags = {"l1": 0.1, "l1_steps": 1, "distill": 0.3, "micro_batch": 1}
    one = start(command(tmp_path / "one", text, steps=8, **flags))
    assert one.wait() == 0, one.stderr.read()
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2")
    two = start(command(tmp_path / "two", text, steps=8, **flags), *torchrun)
    err = two.communicate()[1]
    assert two.returncode == 0, err
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert final(tmp_path / "two")["loss"] == pytest.approx(final(tmp_path / "one")["loss"], rel=1e-4)
    for name in ("one", "two"):
        more = start(command(tmp_path / name, text, "--accept-changes", steps=11, **flags))
        assert more.wait() == 0, more.stderr.read()
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
