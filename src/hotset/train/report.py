"""What a run tells while it goes: a line or a bar for people, log.jsonl for plots, TensorBoard if wanted."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from hotset.errors import HostError
from hotset.train.settings import Settings
from hotset.train.speed import Speed

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Now:
    """How a run stands after a step."""

    step: int  # steps done
    steps: int
    tokens: int  # trained on so far
    loss: float  # of the next token, mean since the last report
    distance: float  # KL to the teacher
    size: float  # mean |neuron|; 0 without the L1 term
    zeros: tuple[float, ...]  # share of each layer
    swap: float
    rate: float  # learning rate
    gradient: float  # norm before clipping
    pull: tuple[float, ...]  # weight of each layer's size in the loss
    speed: Speed
    seconds_left: float

    def line(self) -> str:
        distance = f", distance {self.distance:.3f}" if self.distance else ""
        swap = f", swapped {self.swap:.0%}" if self.swap < 1 else ""
        return (
            f"step {self.step}/{self.steps}: loss {self.loss:.3f}{distance}, zeros {layers(self.zeros)}{swap}, "
            f"{self.speed}, {duration(self.seconds_left)} left"
        )


@dataclass(frozen=True, slots=True)
class FfnNow:
    """How the first stage stands behind a layer."""

    step: int  # layers done
    steps: int
    error: float  # squared distance between the streams behind this layer, as share of the original's square
    zeros: float  # of this layer, in the last updates
    pull: float
    tokens_per_s: float  # through a layer
    seconds_left: float

    def line(self) -> str:
        return (
            f"FFN of layer {self.step}/{self.steps}: {self.error:.1%} off, zeros {self.zeros:.1%}, "
            f"{self.tokens_per_s:.0f} tokens/s, {duration(self.seconds_left)} left"
        )


@dataclass(frozen=True, slots=True)
class Measured:
    """A model on held-out text."""

    loss: float
    zeros: tuple[float, ...]  # share of each layer
    tokens: int
    sources: dict[str, float]  # loss on each text

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    def line(self) -> str:
        return f"held-out text: loss {self.loss:.4f}, perplexity {self.perplexity:.2f}, zeros {layers(self.zeros)}"


class Reporter:
    """Where a run's figures go. Silent in all processes but the first."""

    def __init__(
        self, folder: Path, say: Say, *, first: bool, tensorboard: bool, start: int, log: str = "log.jsonl"
    ) -> None:
        """start: the step that the run goes on from; what an earlier try logged beyond it is dropped."""
        self._say = say if first else _nothing
        self._log: IO[str] | None = _reopened(folder / log, start) if first else None
        self._board = _board(folder / "tensorboard", start) if first and tensorboard else None
        self._bar = _Bar() if first and sys.stderr.isatty() else None

    def start(self, step: int, settings: Settings) -> None:
        """Each try's settings are logged, as they may be changed on the way with --accept-changes."""
        self._write("start", step, {"settings": settings.as_json()})
        if step:
            self._say(f"going on after step {step}")

    def step(self, now: Now) -> None:
        figures = {name: getattr(now, name) for name in Now.__slots__ if name not in ("steps", "speed")}
        self._write("train", now.step, figures | asdict(now.speed))
        if self._bar is not None:
            self._bar.show(now)
        else:
            self._say(now.line())

    def ffn_layer(self, now: FfnNow) -> None:
        self._write("ffn", now.step, {name: getattr(now, name) for name in FfnNow.__slots__ if name != "steps"})
        self._say(now.line())

    def measured(self, step: int, found: Measured) -> None:
        figures = {"loss": found.loss, "perplexity": found.perplexity, "zeros": found.zeros}
        self._write("held_out", step, figures | {f"loss of {name}": loss for name, loss in found.sources.items()})
        self._say(f"step {step}, {found.line()}")

    def _write(self, kind: str, step: int, figures: dict[str, Any]) -> None:
        if self._log is not None:
            self._log.write(json.dumps({"kind": kind} | {"step": step} | figures) + "\n")
            self._log.flush()
        if self._board is not None and kind != "start":
            for name, value in figures.items():
                if isinstance(value, tuple):
                    for layer, each in enumerate(value):
                        self._board.add_scalar(f"{kind}/{name}/{layer:02d}", each, step)
                elif name != "step":
                    self._board.add_scalar(f"{kind}/{name}", value, step)

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for part in (self._log, self._board, self._bar):
            if part is not None:
                part.close()


class _Bar:
    """Drawn on standard error, below the lines that are printed."""

    def __init__(self) -> None:
        from rich import progress as p
        from rich.console import Console

        columns = (p.TextColumn("{task.description}"), p.BarColumn(), p.MofNCompleteColumn(), p.TimeRemainingColumn())
        self._shown = p.Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._shown.add_task("", total=None)
        self._shown.start()

    def show(self, now: Now) -> None:
        text = f"loss {now.loss:.3f} · zeros {layers(now.zeros)} · {now.speed}"
        self._shown.update(self._task, completed=now.step, total=now.steps, description=text)

    def close(self) -> None:
        self._shown.stop()


def layers(zeros: Sequence[float]) -> str:
    """'71% (58 66 74 86)': the mean, then each layer, of many layers every few."""
    if not zeros:
        return "not counted"
    every = -(-len(zeros) // 12)
    single = " ".join(f"{100 * z:.0f}" for z in zeros[::every])
    return f"{sum(zeros) / len(zeros):.1%} ({single})"


def duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes // 60}:{minutes % 60:02d} h"


def _reopened(path: Path, start: int) -> IO[str]:
    """The log, without what was logged after `start` by a try that ended before its next checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = []
    if start and path.is_file():
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                break  # the last line, cut off with the process
            if entry["step"] <= start:
                kept.append(line + "\n")
    part = path.with_suffix(".partial")
    part.write_text("".join(kept))
    part.replace(path)
    return path.open("a")


def _board(folder: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise HostError(
            "--tensorboard needs tensorboard, which is not installed: pip install 'hotset[train]'"
        ) from None
    return SummaryWriter(str(folder), purge_step=start + 1 if start else None)


def _nothing(text: str) -> None:
    pass
