"""The loop: batches in, steps of the optimizer, figures and checkpoints out."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hotset.errors import TrainingError, UsageError
from hotset.train.checkpoint import Checkpoints, Place
from hotset.train.ffn import SparseFfn
from hotset.train.memory import a_pass, halved, memory_for
from hotset.train.mixture import Mixture, Source, Windows
from hotset.train.objective import Objective
from hotset.train.optimizers import set_decay, set_rate
from hotset.train.parallel import World, sync_gradients
from hotset.train.pull import Pull, goals
from hotset.train.report import Measured, Now, Reporter
from hotset.train.schedule import free_share, l1_weight, learning_rate, swap_share, wanted_zeros
from hotset.train.settings import Running, Settings
from hotset.train.speed import Speed, Work

_MEASURED = 64  # held-out windows of each source


@dataclass(slots=True)
class Parts:
    """What a loop works on."""

    model: Any
    ffns: list[SparseFfn]
    objective: Objective
    optimizers: list[Any]
    mixture: Mixture
    data: list[str]  # fingerprints of the sources' tokens
    work: Work


@dataclass(slots=True)
class Figures:
    """Of one step, means over its tokens."""

    losses: Tensor  # [3]: next token, distance, size
    gradient: Tensor  # [], norm before clipping
    zeros: Tensor  # [layers], or [0] if not counted


class Trainer:
    """One run, from its first step or from its newest checkpoint to its last step."""

    def __init__(
        self, settings: Settings, running: Running, world: World, parts: Parts, checkpoints: Checkpoints
    ) -> None:
        self.s, self.running, self.world, self.parts = settings, running, world, parts
        self.checkpoints = checkpoints
        self.step = 0  # steps done
        self.seconds = 0.0  # spent on them
        self.pulls = [Pull() for _ in parts.ffns]

    def resume(self) -> None:
        """Goes to the newest checkpoint, if there is one.

        Raises: UsageError if it was made under other settings or with other text; FormatError if it is broken.
        """
        p = self.parts
        if (place := self.checkpoints.load(p.model, p.optimizers, self.compare)) is not None:
            self.step, self.seconds, self.pulls = place.step, place.seconds, [Pull(*each) for each in place.pulls]
            set_decay(p.optimizers, self.s.weight_decay)
            if len(place.drawn) == len(p.mixture.drawn):  # with other texts, each is begun anew
                p.mixture.drawn[:] = place.drawn

    def compare(self, settings: dict[str, Any], data: list[str]) -> None:
        """Raises UsageError if a checkpoint's settings or texts are not those of this run."""
        changed = self.s.differences(settings)
        if len(data) == len(self.parts.data) and data != self.parts.data:
            changed.append("a text or the tokenizer was another")
        if changed and not self.running.accept_changes:
            raise UsageError(
                f"{self.checkpoints.folder} holds a run under other settings: {'; '.join(changed)}. "
                "Go on with the same, or with --accept-changes; or give another --output; or begin anew with --restart"
            )

    def run(self, reporter: Reporter, stop: Callable[[], bool]) -> bool:
        """Trains to the last step, or until `stop` says so after a step; the state is saved. True: it is the last.

        Raises: TrainingError (the loss is no number), MemoryBudgetError, StorageError.
        """
        seen: list[Tensor] = []
        before = saved = time.monotonic()
        logged = self.seconds
        while self.step < self.s.steps:
            logs = (self.step + 1) % self.running.log_every == 0 or self.step + 1 == self.s.steps
            figures = self.train_step(count=logs)
            seen.append(figures.losses)
            now = time.monotonic()
            self.seconds, before = self.seconds + now - before, now
            if logs:
                reporter.step(self._now(figures, seen, self.seconds - logged))
                seen, logged = [], self.seconds
            if self.step % self.running.measure_every == 0 and self.step < self.s.steps:
                reporter.measured(self.step, self.measure())
            stopped = self.world.any(stop())
            if stopped or self.world.any(now - saved > self.running.checkpoint_every):
                self.save()
                saved = now
            before = time.monotonic()
            if stopped:
                return self.step == self.s.steps
        self.save()
        return True

    def save(self) -> None:
        pulls = [(pull.weight, pull.start, pull.short) for pull in self.pulls]
        place = Place(self.step, self.parts.mixture.drawn.tolist(), self.seconds, pulls)
        self.checkpoints.save(place, self.s, self.parts.data, self.parts.model, self.parts.optimizers)

    def train_step(self, *, count: bool) -> Figures:
        """One step of the optimizer; `count`: zeros are counted on the way."""
        self._enter(self.step, count or self.s.zeros > 0)
        batch = self.parts.mixture.batch(self.s.batch, self.world.rank, self.world.ranks)
        with self._memory_for_pass("" if self.running.recompute else "--recompute"):
            losses, zeros = self._backward(batch)
            gradient = self._norm()
        self._require_number(losses[0], gradient)
        # Its state is made by its first step.
        with memory_for(f"the state of {self.s.optimizer}", *self._smaller_state()):
            for optimizer in self.parts.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.s.zeros:
            self._lead(zeros.tolist())
        return Figures(losses, gradient, zeros)

    def _lead(self, found: list[float]) -> None:
        """Makes each layer's pull as strong as its wanted zeros take, by those found in the step just done."""
        done, free = self.step / self.s.steps, free_share(self.s)
        if done < free:
            return
        starts = [zeros if pull.start is None else pull.start for pull, zeros in zip(self.pulls, found, strict=True)]
        for pull, zeros, start, goal in zip(self.pulls, found, starts, goals(starts, self.s.zeros), strict=True):
            pull.start = start
            pull.follow(zeros, wanted_zeros(done, start, goal, free))

    def _weights(self, step: int) -> list[float]:
        """Of the layers' pulls in step 0, 1, …"""
        if not self.s.zeros:
            return [l1_weight(step, self.s)] * len(self.pulls)
        return [0.0 if pull.start is None else pull.weight for pull in self.pulls]

    def _enter(self, step: int, count: bool) -> None:
        for ffn in self.parts.ffns:
            ffn.swap, ffn.wants_zeros = swap_share(step, self.s), count
        set_rate(self.parts.optimizers, learning_rate(step, self.s))

    def _backward(self, batch: Windows) -> tuple[Tensor, Tensor]:
        """Adds up the gradients of a batch [sequences, length + 1].

        Returns: means over it and all processes: losses [3], and zeros [layers], or [0] if they are not counted.
        """
        passes = torch.from_numpy(batch).split(self.running.micro_batch)
        counted = [ffn for ffn in self.parts.ffns if ffn.wants_zeros]
        sums = torch.zeros(3 + len(counted), device=self.world.device)
        weights = self._weights(self.step)
        for number, windows in enumerate(passes, 1):
            sync_gradients(self.parts.model, self.world, number == len(passes))
            share = len(windows) / len(batch)
            with self._precision():
                loss = self.parts.objective(windows.to(self.world.device), weights)
            (loss.total * share).backward()
            sums += share * torch.stack([loss.next_token, loss.distance, loss.size, *self._zeros(counted)])
        means = self.world.mean(sums)
        return means[:3], means[3:]

    def _norm(self) -> Tensor:
        norm = torch.nn.utils.clip_grad_norm_(self.parts.model.parameters(), self.s.clip or float("inf"))
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def _require_number(self, loss: Tensor, gradient: Tensor) -> None:
        if bool(torch.isfinite(loss + gradient)):
            return
        kept = [path.name for path in self.checkpoints.paths()]
        raise TrainingError(
            f"step {self.step + 1}: the loss is {loss.item():.4g} and the norm of its gradient {gradient.item():.4g}; "
            f"the weights before this step are in {kept[-1] if kept else 'no checkpoint yet'}. "
            f"Try a lower --lr (is {self.s.lr:g}), more --warmup (is {self.s.warmup}) or --dtype f32"
        )

    def measure(self) -> Measured:
        """Loss and zeros on held-out text, the same windows in every process; means over all windows."""
        for ffn in self.parts.ffns:
            ffn.wants_zeros, ffn.wants_size = True, False
        with torch.no_grad(), self._precision(), self._memory_for_pass():
            found = {source.name: self._measure(source) for source in self.parts.mixture.sources}
        sums = torch.stack([each for each, _ in found.values()]).sum(0)
        count = sum(windows for _, windows in found.values())
        loss, *zeros = (sums / count).tolist()
        sources = {name: each[0].item() / windows for name, (each, windows) in found.items()}
        return Measured(loss, tuple(zeros), count * self.s.sequence, sources)

    def _measure(self, source: Source) -> tuple[Tensor, int]:
        """Sums over the windows of one source, [1 + layers]: loss, zeros of each layer; and how many windows."""
        chosen = torch.from_numpy(source.measured(_MEASURED))
        sums = torch.zeros(1 + len(self.parts.ffns), device=self.world.device)
        for windows in chosen.split(self.running.micro_batch):
            loss = self.parts.objective.next_token(windows.to(self.world.device))
            sums += len(windows) * torch.stack([loss, *self._zeros(self.parts.ffns)])
        return sums, len(chosen)

    @staticmethod
    def _zeros(ffns: list[SparseFfn]) -> list[Tensor]:
        """Of the pass just done."""
        return [ffn.zeros for ffn in ffns if ffn.zeros is not None]

    def _now(self, figures: Figures, seen: list[Tensor], seconds: float) -> Now:
        loss, distance, size = torch.stack(seen).mean(0).tolist()
        tokens = self.s.batch * self.s.sequence
        return Now(
            step=self.step,
            steps=self.s.steps,
            tokens=self.step * tokens,
            loss=loss,
            distance=distance,
            size=size,
            zeros=tuple(figures.zeros.tolist()),
            swap=swap_share(self.step - 1, self.s),
            rate=learning_rate(self.step - 1, self.s),
            gradient=figures.gradient.item(),
            pull=tuple(self._weights(self.step - 1)),
            speed=self.parts.work.speed(len(seen) * tokens / max(seconds, 1e-9)),
            seconds_left=(self.s.steps - self.step) * seconds / len(seen),
        )

    def speed(self) -> Speed:
        """Over all steps so far, without measurements and checkpoints."""
        return self.parts.work.speed(self.step * self.s.batch * self.s.sequence / max(self.seconds, 1e-9))

    def _precision(self) -> Any:
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.s.dtype == "bf16")

    def _memory_for_pass(self, *less: str) -> AbstractContextManager[None]:
        size, length = self.running.micro_batch, self.s.sequence
        ways = (*less, "--dtype bf16" if self.s.dtype == "f32" else "", "a shorter --sequence")
        return memory_for(a_pass(size, length), halved("--micro-batch", size), *ways)

    def _smaller_state(self) -> tuple[str, ...]:
        alone = self.s.optimizer == "adamw" and self.world.ranks == 1
        return "--optimizer muon" if alone else "", "more devices under torchrun"
