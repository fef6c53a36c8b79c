"""The first stage: layer after layer, each new FFN learns to lead its stream back to that of the original.

No gradient crosses a layer and no logits are needed, so a token costs half of what it costs in the whole network and
tells every FFN directly what was wanted of it. The output weights, in which the error is quadratic, are solved for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from hotset.errors import ModelError, TrainingError
from hotset.train.checkpoint import Checkpoints, Place
from hotset.train.ffn import SparseFfn
from hotset.train.memory import halved, memory_for
from hotset.train.mixture import Mixture
from hotset.train.parallel import World
from hotset.train.pull import Pull
from hotset.train.refit import refit, turn_signs
from hotset.train.report import FfnNow, Reporter
from hotset.train.schedule import ffn_learning_rate, wanted_zeros
from hotset.train.settings import Running, Settings
from hotset.train.streams import Lesson, Streams, contributions

_BETAS = (0.9, 0.95)
_SPREAD = 0.5  # of the way from even zeros to those of one limit on all neurons' contributions; see the log
_RANGE = (0.5, 0.97)  # zeros of a layer at least and at most, where more or fewer are wanted by that
_GOAL_SEQUENCES = 8  # of the text, on which the contributions are compared
_SIGN_TOKENS = 4096
_BLEND = 0.2  # of the newest update in the zeros that lead the pull
_MOST_ERROR = 10.0  # an FFN that adds nothing has 1, one that learns less
_PATIENCE = 5  # updates above it in a row: a single one may have a token on which dReLU gives a thousand times too much


def _require_plain(model: Any) -> None:
    """Raises ModelError where an FFN's output does not go into the stream as it is."""
    if any(hasattr(layer, "post_feedforward_layernorm") for layer in model.model.layers):
        raise ModelError(
            f"--ffn-tokens adds what an FFN gives to the stream, and a {model.config.model_type} model norms it first; "
            "train without that stage"
        )


class Layerwise:
    """One run of the first stage, from its first layer or from its newest checkpoint to its last layer."""

    def __init__(self, settings: Settings, running: Running, world: World, model: Any, mixture: Mixture) -> None:
        self.s, self.running, self.world, self.model, self.mixture = settings, running, world, model, mixture
        _require_plain(model)
        self.ffns: list[SparseFfn] = [layer.mlp for layer in model.model.layers]
        self.step = 0  # layers done
        self.seconds = 0.0
        self.pull = Pull()  # of the newest layer; each begins with a weight of its own

    def resume(self, checkpoints: Checkpoints, compare: Callable[[dict[str, Any], list[str]], None]) -> None:
        """Goes to the newest checkpoint. Raises as Checkpoints.load."""
        if (place := checkpoints.load(self.model, [], compare)) is not None:
            self.step, self.seconds, self.pull = place.step, place.seconds, Pull(*place.pulls[0])

    @property
    def finished(self) -> bool:
        return self.step == len(self.ffns)

    def draw(self) -> Tensor:
        """The tokens of the stage, [sequences, length]; the second one goes on behind them."""
        self.mixture.drawn[:] = 0
        return torch.from_numpy(self.mixture.batch(self.s.ffn_sequences))[:, :-1].to(self.world.device)

    def run(self, original: Any, reporter: Reporter, stop: Callable[[], bool], save: Callable[[Place], None]) -> bool:
        """Trains to the last layer, or until `stop` says so; finished layers are saved. True: it was the last.

        original: the network that the new FFNs follow.
        Raises: TrainingError (an error that is no number, or far above that of no FFN at all), StorageError.
        """
        ids = self.draw()
        saved = before = time.monotonic()
        with self._precision():
            streams, goals = self._prepare(original, ids)
            for number, ffn in enumerate(self.ffns):
                with self._memory(f"the lesson of layer {number + 1}"):
                    lesson = streams.enter(number)
                if number < self.step:
                    streams.leave(lesson, ffn)
                    continue
                try:
                    learned = self._learn(streams, lesson, goals[number], stop)
                except TrainingError:
                    if number:
                        save(self._place())
                    raise
                if learned is None:
                    save(self._place())
                    return False
                now = time.monotonic()
                self.step, self.seconds, before = number + 1, self.seconds + now - before, now
                reporter.ffn_layer(self._now(*learned))
                if self.finished or now - saved > self.running.checkpoint_every:
                    save(self._place())
                    saved = time.monotonic()
        return True

    def _prepare(self, original: Any, ids: Tensor) -> tuple[Streams, list[float]]:
        with self._memory(f"the streams of {ids.numel()} tokens"):
            streams = Streams(original, self.model, ids, self.running.micro_batch)
        with streams.memory_for_pass():
            return streams, self._goals(original, ids[:_GOAL_SEQUENCES])

    def _place(self) -> Place:
        return Place(self.step, self.mixture.drawn.tolist(), self.seconds, [(self.pull.weight, None, 0.0)])

    def _goals(self, original: Any, ids: Tensor) -> list[float]:
        """Zeros wanted of each layer, [layers]; their mean is what was asked for, within _RANGE."""
        if not self.s.zeros:
            return [0.0] * len(self.ffns)
        passes = [contributions(original, part) for part in ids.split(self.running.micro_batch)]
        sizes = [torch.cat(parts) for parts in zip(*passes, strict=True)]
        taken = torch.cat([each.flatten()[:: max(each.numel() // 65536, 1)] for each in sizes])
        limit = float(taken.kthvalue(max(round(self.s.zeros * len(taken)), 1)).values)
        below = [float((each < limit).float().mean()) for each in sizes]
        return [min(max(self.s.zeros + _SPREAD * (b - self.s.zeros), _RANGE[0]), _RANGE[1]) for b in below]

    def _learn(
        self, streams: Streams, lesson: Lesson, goal: float, stop: Callable[[], bool]
    ) -> tuple[float, float] | None:
        """The next layer: what it is off afterwards and its zeros; None if stopped.

        Raises: TrainingError. Then, and if stopped, the layer is as it was.
        """
        ffn, learned = self.ffns[self.step], False
        kept = {name: value.clone() for name, value in ffn.state_dict().items()}
        try:
            if (zeros := self._train(ffn, lesson, goal, stop)) is None:
                return None
            error = streams.leave(lesson, ffn)
            if not error <= _MOST_ERROR:
                raise self._diverged(error, "after its last update")
            learned = True
            return error, zeros
        except torch.linalg.LinAlgError:  # weights that are no numbers have no least squares
            raise self._diverged(math.nan, "beside its updates") from None
        finally:
            if not learned:
                ffn.load_state_dict(kept)

    def _train(self, ffn: SparseFfn, lesson: Lesson, goal: float, stop: Callable[[], bool]) -> float | None:
        """Returns the zeros of the last updates; None: stopped on the way."""
        with torch.no_grad(), self._memory(f"the least squares of {ffn.up_proj.out_features} neurons"):
            if ffn.kind == "drelu":
                turn_signs(ffn, lesson.part(slice(0, _SIGN_TOKENS)))
            refit(ffn, lesson)
        optimizer = self._optimizer(ffn, lesson)
        rates = [group["lr"] for group in optimizer.param_groups]
        share, pull, zeros, absurd = lesson.share(), Pull(), 0.0, 0
        parts = self._shuffled(lesson)
        size, bf16 = len(parts[0]), "--dtype bf16" if self.s.dtype == "f32" else ""
        for number, chosen in enumerate(parts):
            done = number / len(parts)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * ffn_learning_rate(done, self.s)
            with self._memory(f"an update on {size} tokens", halved("--ffn-batch", size), bf16):
                part = lesson.part(chosen.to(self.world.device))
                error, now = self._update(ffn, part, share, pull.weight if goal else 0.0)
                absurd = self._absurd(error, absurd, f"in update {number + 1} of {len(parts)}")
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            if pull.start is None:
                pull.start = zeros = now
            zeros += _BLEND * (now - zeros)
            if goal:
                pull.follow(zeros, wanted_zeros(done, pull.start, goal))
            if stop():
                return None
        with torch.no_grad():
            refit(ffn, lesson)
        self.pull = pull
        return zeros

    def _optimizer(self, ffn: SparseFfn, lesson: Lesson) -> torch.optim.AdamW:
        """A step of AdamW moves all weights by about its rate: gate and up the further, the smaller their inputs."""
        size = float(lesson.inputs.float().square().mean().sqrt())
        groups = [
            {"params": [ffn.gate_proj.weight, ffn.up_proj.weight], "lr": 1 / max(size, 1e-6)},
            {"params": [ffn.down_proj.weight], "lr": 1.0},
        ]
        return torch.optim.AdamW(groups, betas=_BETAS, weight_decay=0.0, fused=True)

    def _shuffled(self, lesson: Lesson) -> tuple[Tensor, ...]:
        """All tokens once, in an order of the next layer's own, in parts."""
        generator = torch.Generator().manual_seed(self.s.seed * 1_000_003 + self.step)
        return torch.randperm(len(lesson.inputs), generator=generator).split(self.s.ffn_batch)

    def _update(self, ffn: SparseFfn, part: Lesson, share: float, pull: float) -> tuple[float, float]:
        """Gradients of one update; returns its error and the share of zeros before it."""
        neurons = ffn.activate(ffn.gate_proj(part.inputs), ffn.up_proj(part.inputs))
        out = ffn.down_proj(neurons)
        wrong = (out.float() - part.wanted) * part.weights[:, None]
        error = wrong.square().sum(-1).mean() / share
        added = (ffn.contributions(neurons) * part.weights).mean() / share**0.5
        loss = error + pull * added
        loss.backward()
        found: list[float] = torch.stack([error.detach(), (neurons.detach() == 0).float().mean()]).tolist()
        return found[0], found[1]

    def _absurd(self, error: float, before: int, when: str) -> int:
        """Updates in a row, this one included, with an absurd loss. Raises TrainingError if they are too many."""
        number = 0 if error <= _MOST_ERROR else before + 1
        if number == _PATIENCE or not math.isfinite(error):
            raise self._diverged(error, when)
        return number

    def _diverged(self, error: float, when: str) -> TrainingError:
        before = f"the {self.step} before it are kept" if self.step else "no layer is done yet"
        more = " and --accept-changes" if self.step else ""
        lower = f"a lower --ffn-lr (is {self.s.ffn_lr:g}){more}"
        return TrainingError(
            f"FFN of layer {self.step + 1}/{len(self.ffns)}: its loss is {error:.4g} {when} (one that adds nothing has "
            f"1 at most); {before}. "
            f"Go on with {lower}{'' if self.s.dtype == 'f32' else ', or with --dtype f32'}"
        )

    def _memory(self, what: str, *less: str) -> AbstractContextManager[None]:
        fewer = f"fewer --ffn-tokens (is {self.s.ffn_sequences * self.s.sequence})"
        return memory_for(f"{what} in the first stage", *less, fewer)

    def _now(self, error: float, zeros: float) -> FfnNow:
        each, left = self.seconds / self.step, len(self.ffns) - self.step
        speed = self.s.ffn_sequences * self.s.sequence / max(each, 1e-9)
        return FfnNow(self.step, len(self.ffns), error, zeros, self.pull.weight, speed, left * each)

    def _precision(self) -> Any:
        """Without the cache of weights in bf16, which would outlive updates of the weights themselves."""
        wanted = self.s.dtype == "bf16"
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=wanted, cache_enabled=False)
