"""Makes a model sparse by training it on with another activation, as TurboSparse does (arXiv:2406.05955)."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hotset.errors import InputError, UsageError
from hotset.formats.files import Json
from hotset.formats.progress import Progress, silent
from hotset.train import parallel
from hotset.train.checkpoint import WHOLE, Checkpoints
from hotset.train.ffn import swap_ffns
from hotset.train.layerwise import Layerwise
from hotset.train.memory import memory_for
from hotset.train.mixture import Mixture, make_source
from hotset.train.model import load_model, read_config, require_teacher, sparse_config, untied, write_model
from hotset.train.objective import Objective
from hotset.train.optimizers import make_optimizers
from hotset.train.report import Measured, Reporter, Say
from hotset.train.settings import Running, Settings
from hotset.train.speed import Work, flops_per_token, peak_flops_per_s
from hotset.train.tokens import Encoder, token_file
from hotset.train.trainer import Parts, Trainer

_DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


@dataclass(frozen=True, slots=True)
class SparsifyReport:
    """What a run ended with; `found` is None if it was stopped before its last step."""

    dest: Path
    step: int
    seconds: float
    found: Measured | None
    epochs: dict[str, float]  # of each source
    first: bool  # whether this process is the one that reports
    speed: Json  # fields of train.speed.Work and Speed


def sparsify(
    settings: Settings, running: Running, dest: Path, say: Say = print, progress: Progress = silent
) -> SparsifyReport:
    """Trains, or goes on training, and writes the model into `dest` as a Hugging Face folder.

    dest also keeps tokens/, checkpoints/, log.jsonl, tensorboard/ and, at the end, sparsify.json. SIGINT and SIGTERM
    end the run after the step under way; the same call goes on from there.
    Raises: UsageError, ModelError, InputError, StorageError, MemoryBudgetError, TrainingError, HostError.
    """
    settings.check()
    running.check()
    for name, folder in (("MODEL", settings.model), ("--teacher", settings.teacher)):
        if folder and Path(folder).resolve() == dest.resolve():
            raise UsageError(f"--output {dest} is {name}, which the result would replace; want another folder")
    if running.threads:
        torch.set_num_threads(running.threads)
    source = Path(settings.model)
    config = read_config(source)
    changed = sparse_config(config, settings)
    world = parallel.join(running.device)
    try:
        if settings.batch % world.ranks:
            raise UsageError(f"--batch is {settings.batch}; want a multiple of the {world.ranks} processes")
        with memory_for("this run"):  # where nothing within it says more
            mixture, data = _read_data(settings, source, config, dest, progress)
            parts = _build(settings, running, world, source, mixture, data)
            trainer = Trainer(settings, running, world, parts, Checkpoints(dest / "checkpoints", world))
            return _train(trainer, source, changed, dest, say)
    finally:
        parallel.leave()


def _read_data(s: Settings, source: Path, config: Json, dest: Path, progress: Progress) -> tuple[Mixture, list[str]]:
    encoder = Encoder.load(source, int(config["vocab_size"]))
    if s.teacher:
        require_teacher(Path(s.teacher), encoder)
    files = [token_file(d.path, encoder, dest / "tokens", s.tokens_from(d), progress) for d in s.data]
    sources = [
        make_source(str(d.path), f.ids, s.sequence, s.held_out, (s.seed, i))
        for i, (d, f) in enumerate(zip(s.data, files, strict=True))
    ]
    mixture = Mixture(sources, [d.weight for d in s.data])
    if (windows := sum(each.windows for each in sources)) < s.batch:
        raise InputError(
            f"the text makes {windows} sequences of {s.sequence} tokens, less than one batch of {s.batch}; "
            "give more text, a shorter --sequence or a smaller --batch"
        )
    return mixture, [f.fingerprint for f in files]


def _build(
    s: Settings, running: Running, world: parallel.World, source: Path, mixture: Mixture, data: list[str]
) -> Parts:
    peak = peak_flops_per_s(world, _DTYPES[s.dtype])
    with memory_for("the model's weights"):
        model = load_model(source, from_scratch=s.from_scratch, seed=s.seed)
        ffns = swap_ffns(model, s)
        model.train()
        if running.recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        parallel.shard(model, world)
    teacher = _teacher(s, source, world) if s.distill else None
    objective = Objective(model, ffns, teacher, s.distill)
    with memory_for("the optimizer"):
        optimizers = make_optimizers(model, s, world.ranks)
    work = Work(flops_per_token(model, s.sequence, teacher), peak)
    return Parts(model, ffns, objective, optimizers, mixture, data, work)


def _teacher(s: Settings, source: Path, world: parallel.World) -> Any:
    """What the whole network learns from."""
    if not s.teacher:
        return _original(s, source, world)
    with memory_for("the teacher's weights beside the model's", "no --teacher"):
        return _taught_by(Path(s.teacher), s, world)


def _original(s: Settings, source: Path, world: parallel.World) -> Any:
    less = "no --distill" * bool(s.distill), "no --ffn-tokens" * bool(s.ffn_sequences)
    with memory_for("the original's weights beside the model's", " and ".join(filter(None, less))):
        return _taught_by(source, s, world)


def _taught_by(folder: Path, s: Settings, world: parallel.World) -> Any:
    found = load_model(folder, from_scratch=False, seed=s.seed).eval().requires_grad_(False)
    parallel.shard(found, world)
    return found


def _train(trainer: Trainer, source: Path, config: Json, dest: Path, say: Say) -> SparsifyReport:
    world, mixture = trainer.world, trainer.parts.mixture
    ffn_checkpoints = Checkpoints(dest / "checkpoints" / "ffn", world)
    if trainer.running.restart:
        trainer.checkpoints.clear()
        ffn_checkpoints.clear()
    with _stop_flag() as stop:
        ready = not trainer.s.ffn_sequences or trainer.checkpoints.paths()
        if not ready and not _train_ffns(trainer, source, ffn_checkpoints, dest, say, stop.is_set):
            return SparsifyReport(dest, 0, 0.0, None, {}, world.first, {})
        trainer.resume()
        board = trainer.running.tensorboard
        with Reporter(dest, say, first=world.first, tensorboard=board, start=trainer.step) as reporter:
            reporter.start(trainer.step, trainer.s)
            finished = trainer.run(reporter, stop.is_set)
            found = trainer.measure() if finished else None
            if found is not None:
                reporter.measured(trainer.step, found)
    epochs = dict(zip((each.name for each in mixture.sources), mixture.epochs, strict=True))
    speed = asdict(trainer.parts.work) | asdict(trainer.speed())
    report = SparsifyReport(dest, trainer.step, trainer.seconds, found, epochs, world.first, speed)
    if found is not None:
        _write(trainer, report, source, config)
    return report


def _train_ffns(
    trainer: Trainer, source: Path, checkpoints: Checkpoints, dest: Path, say: Say, stop: Callable[[], bool]
) -> bool:
    """The first stage, or what is left of it. True: it is done."""
    s, running, world, parts = trainer.s, trainer.running, trainer.world, trainer.parts
    stage = Layerwise(s, running, world, parts.model, parts.mixture)
    stage.resume(checkpoints, trainer.compare)
    if stage.finished:
        stage.draw()
        return True
    if world.ranks > 1:
        raise UsageError(
            "--ffn-tokens trains layer by layer, in one process; call hotset sparsify alone until they are done, "
            "then torchrun goes on from there"
        )
    original = (None if s.teacher else parts.objective.teacher) or _original(s, source, world)
    board = running.tensorboard
    with Reporter(dest, say, first=True, tensorboard=board, start=stage.step, log="ffn.jsonl") as reporter:
        return stage.run(
            original, reporter, stop, lambda place: checkpoints.save(place, s, parts.data, parts.model, [])
        )


def _write(trainer: Trainer, report: SparsifyReport, source: Path, config: Json) -> None:
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    s, model = trainer.s, trainer.parts.model
    state = untied(get_model_state_dict(model, options=WHOLE), config)
    if trainer.world.first:
        write_model(model, state, config, source, report.dest, _DTYPES[s.dtype])
        record = {
            "settings": s.as_json(),
            "as_measured": as_json(report),
            "parameters": sum(t.numel() for t in state.values()),
        }
        unfinished = report.dest / "sparsify.json.partial"
        unfinished.write_text(json.dumps(record, indent=2) + "\n")
        unfinished.replace(report.dest / "sparsify.json")
    trainer.world.wait()


def as_json(report: SparsifyReport) -> Json:
    found = report.found
    measured: Json = {}
    if found is not None:
        measured = {
            "loss": found.loss,
            "perplexity": found.perplexity,
            "zeros": sum(found.zeros) / len(found.zeros),
            "zeros_per_layer": list(found.zeros),
            "held_out_tokens": found.tokens,
            "loss_per_source": found.sources,
        }
    ran: Json = {"step": report.step, "seconds": report.seconds, "epochs": report.epochs, "speed": report.speed}
    return ran | measured


@contextmanager
def _stop_flag() -> Iterator[threading.Event]:
    """Set by the first SIGINT or SIGTERM; the second one ends the process at once."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: object) -> None:
        flag.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, ask)
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
