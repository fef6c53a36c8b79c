"""What a training run is asked to do: what changes its result, and what only changes how it is run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hotset.errors import UsageError

ACTIVATIONS = ("drelu", "relu", "fatrelu", "keep")
OPTIMIZERS = ("adamw", "muon")
DTYPES = ("bf16", "f32")


@dataclass(frozen=True, slots=True)
class DataSource:
    """One text with its share of the mixture; weight None: in proportion to its tokens."""

    path: Path  # of a file or a folder, or the name of a dataset, hf:OWNER/NAME
    weight: float | None = None

    @staticmethod
    def parse(text: str) -> DataSource:
        """'stories.jsonl=0.7' or 'stories.jsonl'. Raises UsageError."""
        path, mark, number = text.rpartition("=")
        if not mark or Path(text).exists():
            return DataSource(Path(text))
        try:
            weight = float(number)
        except ValueError:
            raise UsageError(f"--data {text[:80]!r}: want FILE or FILE=WEIGHT, such as stories.jsonl=0.7") from None
        if not 0 < weight < math.inf:
            raise UsageError(f"--data {text[:80]!r}: the weight is {weight}; want a number above 0")
        return DataSource(Path(path), weight)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that changes the weights a run ends with; a run goes on under those it began with."""

    model: str
    data: tuple[DataSource, ...]
    activation: str = "drelu"
    threshold: float = 0.01  # of fatrelu, whose outputs below it are 0
    from_scratch: bool = False  # random weights in the shape of the model's config.json
    steps: int = 1000
    batch: int = 32  # sequences of one step, over all processes
    sequence: int = 1024  # tokens
    lr: float = 5e-5  # at the end of warm-up
    final_lr: float = 0.1  # share of lr at the last step
    warmup: int = 50  # steps
    swap_steps: int = 0  # from the old activation to the new one; 0: at once
    distill: float = 0.0  # weight of the teacher's distribution in the loss; the next token has the rest
    teacher: str = ""  # folder of the model that has it; none: the original
    l1: float = 0.0  # weight of the mean size of activations, reached after l1_steps
    l1_steps: int = 0  # 0: all steps
    zeros: float = 0.0  # wanted share; a pull on the neurons is made as strong as that takes. 0: l1 alone
    ffn_sequences: int = 0  # of the first stage, in which layer after layer learns to follow the original's
    ffn_batch: int = 512  # tokens of one update in it
    ffn_lr: float = 1e-3
    optimizer: str = "adamw"
    weight_decay: float = 0.1
    clip: float = 1.0  # norm of all gradients; 0: not clipped
    dtype: str = "bf16"  # of matrix products; weights and optimizer keep f32
    held_out: float = 0.01  # share of each text that is measured and not trained on
    seed: int = 0

    def check(self) -> None:
        """Raises UsageError for values that no run can have."""
        one_of("--activation", self.activation, ACTIVATIONS)
        one_of("--optimizer", self.optimizer, OPTIMIZERS)
        one_of("--dtype", self.dtype, DTYPES)
        if not self.data:
            raise UsageError("no text to train on; give at least one --data FILE")
        self._check_together()
        for name, least in (("steps", 1), ("batch", 1), ("sequence", 2), ("ffn_batch", 1)):
            self._require(name, getattr(self, name) >= least, f"at least {least}")
        for name in ("warmup", "swap_steps", "ffn_sequences"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        for name in ("lr", "ffn_lr", "held_out"):
            self._require(name, getattr(self, name) > 0, "a number above 0")
        for name in ("l1", "l1_steps", "weight_decay", "clip", "threshold"):
            self._require(name, 0 <= getattr(self, name) < math.inf, "a number from 0")
        for name in ("distill", "final_lr", "held_out"):
            self._require(name, 0 <= getattr(self, name) <= 1, "a share from 0 to 1")
        self._require("held_out", self.held_out <= 0.5, "at most 0.5")
        self._require("seed", self.seed >= 0, "at least 0")
        self._require("zeros", 0 <= self.zeros < 1, "a share below 1, such as 0.85")

    def _check_together(self) -> None:
        """Of settings that each by itself may be had."""
        if self.distill and self.from_scratch and not self.teacher:
            raise UsageError(
                "--distill learns from the original, and --from-scratch has none; drop one, or give a --teacher"
            )
        if self.teacher and not self.distill:
            raise UsageError("--teacher is what --distill learns from; give that a weight, such as --distill 0.5")
        if self.zeros and self.l1:
            raise UsageError("--zeros finds the weight that --l1 would give; drop one of them")
        if (self.zeros or self.ffn_sequences) and self.activation == "keep":
            raise UsageError("--zeros and --ffn-tokens are for a new activation, and --activation keep has the old one")
        if self.ffn_sequences and self.from_scratch:
            raise UsageError("--ffn-tokens learns from the original's FFNs, and --from-scratch has none; drop one")
        if self.zeros and self.swap_steps and self.swap_steps >= self.steps - 1:
            raise UsageError(
                f"--zeros pulls when --swap-steps (is {self.swap_steps}) are over, and the run has {self.steps} steps; "
                "want fewer of them"
            )
        if self.ffn_sequences and self.swap_steps:
            raise UsageError("--ffn-tokens trains the new activation alone, which --swap-steps would mix; drop one")

    def _require(self, name: str, holds: bool, wanted: str) -> None:
        if not holds:
            raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}; want {wanted}")

    def tokens_from(self, source: DataSource) -> int:
        """That the run takes from a source at most, those held out included."""
        weights = [each.weight for each in self.data]
        given = sum(weight for weight in weights if weight is not None)
        share = (source.weight or 1.0) / (1.0 if None in weights else given)  # without a weight: not known yet
        trained = (self.ffn_sequences + self.steps * self.batch) * share
        return math.ceil(trained / (1 - self.held_out) + 2) * self.sequence + 1

    def as_json(self) -> dict[str, Any]:
        data = [{"path": str(source.path), "weight": source.weight} for source in self.data]
        return asdict(self) | {"data": data}

    def differences(self, before: Mapping[str, Any]) -> list[str]:
        """How these settings differ from those of a checkpoint: 'lr was 0.001, is 0.01'.

        A checkpoint from before a setting existed has its default.
        """
        now = self.as_json()
        was = {field.name: before.get(field.name, field.default) for field in fields(self)}
        return [f"{name} was {value}, is {now[name]}" for name, value in was.items() if value != now[name]]


@dataclass(frozen=True, slots=True)
class Running:
    """How a run is carried out; may change when it is resumed."""

    micro_batch: int = 8  # sequences of one pass, per process
    recompute: bool = False  # activations are computed again in the backward pass instead of kept
    checkpoint_every: float = 300.0  # seconds
    log_every: int = 10  # steps
    measure_every: int = 200  # steps between measurements on held-out text
    threads: int = 0  # 0: PyTorch's own choice
    device: str = "auto"
    tensorboard: bool = False
    restart: bool = False  # begin anew where a run was left
    accept_changes: bool = False  # go on under settings other than those the run began with

    def check(self) -> None:
        """Raises UsageError."""
        for name in ("micro_batch", "log_every", "measure_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}; want at least 1")


def one_of(flag: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{flag} {value[:40]!r}: want {', '.join(known[:-1])} or {known[-1]}")
