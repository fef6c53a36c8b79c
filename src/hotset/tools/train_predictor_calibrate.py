"""Thresholds of trained predictors, so that what they change in a model's answers stays within an allowed loss.

The engine itself runs held-out text, token by token as it would generate it, and its logits are compared with the exact
ones. The mean Kullback-Leibler divergence from these is what the logarithm of perplexity would grow by on text that the
model writes itself; unlike the change on a given text it cannot be negative, and it is known from few tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotset import _core
from hotset.engine.budget import Host
from hotset.formats.predictors import LEAST_ENERGY, MOST_ENERGY, Predictors
from hotset.formats.store import Store
from hotset.formats.thresholds import limits
from hotset.loader import load_core, tensor_ref
from hotset.models import Model
from hotset.planner.loss import HOT, MEMORY
from hotset.tools.profile_text import Window
from hotset.tools.train_predictor_inputs import Floats, run

STEP = 512  # tokens of a prompt's step
_FEW = 8  # most tokens of a step that looks up single neurons, SparseFfn::kMostSparseRows
_LEAST = 8  # tokens taken of a window, if there are many
_START = 0.001  # share of lost energy
_RUNS = 6
_CLOSE = 0.7  # of the allowed loss: near enough to stop


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of held-out text: a prompt, then tokens taken one by one, with the exact logits after each."""

    tokens: Window
    prompt: int
    exact: Floats  # [len(tokens) - prompt, vocab]


@dataclass(frozen=True, slots=True)
class Quality:
    """What predictors change. Means over tokens; errors are standard errors of the means, in nats."""

    energy: float  # share that thresholds give up in every layer
    kl: float  # from the exact distribution of the next token, nats
    kl_error: float
    exact_perplexity: float
    perplexity: float
    change_error: float  # of log(perplexity / exact_perplexity)
    predicted: float  # share of all neurons that were computed
    missed: float  # share of all neurons that were read for it
    tokens: int

    @property
    def change(self) -> float:
        """Relative, of perplexity on text as the model writes it."""
        return math.expm1(self.kl)

    @property
    def surely(self) -> float:
        """A loss, relative, that the true one is hardly above, by either measure."""
        grown = math.log(self.perplexity / self.exact_perplexity) - 2 * self.change_error
        return math.expm1(max(self.kl + self.kl_error, grown))


class Bench:
    """A packed model to measure predictors on."""

    def __init__(self, store: Store, model: Model, threads: int) -> None:
        self.store, self.model, self.threads = store, model, threads
        assert store.neurons is not None
        self.info = store.neurons
        count = self.info.layers * self.info.ffn
        self.room = max(Host.measure().free // 2 // self.info.stride, self.info.ffn)  # neurons
        kept = int(min(MEMORY * count, self.room))
        # As a plan does: most of them stay. An empty cache would have more skipped than one that has been used a while.
        self.hot = [int(HOT * kept / self.info.layers)] * self.info.layers
        self.slots = kept - sum(self.hot)

    def exact(self, kv_tokens: int = 2 * STEP) -> _core.Engine:
        """Computes every neuron, those that memory has no room for streamed from the drive: for many tokens at once."""
        kept = min(self.room // self.info.layers, self.info.ffn)
        return self._core(_core.SparseOptions([kept] * self.info.layers, 0), kv_tokens)

    def passages(self, core: _core.Engine, windows: Sequence[Window], tokens: int) -> list[Passage]:
        """Second halves of windows, about `tokens` in all, with the logits that every neuron gives.

        Of many windows some, spread over all: the last token of each has no next one, by which text is scored.
        Steps of few tokens, as the engine then does for each what it does for one alone, to the last bit.
        """
        count = min(len(windows), max(1, tokens // _LEAST))
        each = max(2, tokens // count)
        found = []
        for window in (windows[i * len(windows) // count] for i in range(count)):
            prompt = len(window) // 2
            part = window[: prompt + each]
            seq = core.sequence_new()
            run(core, seq, part[:prompt], len(part))
            exact = []
            for at in range(prompt, len(part), _FEW):
                run(core, seq, part[at : at + _FEW], len(part), want=2)
                exact.append(core.logits().copy())
            found.append(Passage(part, prompt, np.concatenate(exact)))
            core.sequence_free(seq)
        return found

    def measure(self, trained: Predictors, energy: float, text: Sequence[Passage]) -> Quality:
        """Runs the text with thresholds that give up this share of the energy."""
        return self.quality(self._options(trained, energy), energy, text)

    def drafting(self, trained: Predictors, energy: float) -> _core.Engine:
        """Computes every neuron but in drafts, which give up this share of the energy."""
        return self._core(self._options(trained, energy, draft_only=True))

    def _options(self, trained: Predictors, energy: float, draft_only: bool = False) -> _core.SparseOptions:
        pairs = zip(trained.down, trained.up, strict=True)
        return _core.SparseOptions(
            self.hot,
            self.slots,
            "clock",
            "low-rank",
            *limits(trained.tables, energy, trained.fetch),
            [(tensor_ref("down", i, d), tensor_ref("up", i, u)) for i, (d, u) in enumerate(pairs)],
            trained.relu,
            draft_only=draft_only,
            ahead=trained.ahead,
        )

    def quality(self, options: _core.SparseOptions, energy: float, text: Sequence[Passage]) -> Quality:
        """Runs the text with neurons found so. energy: what thresholds give up, as the result says."""
        core = self._core(options)
        figures = np.concatenate([np.array(list(_compare(core, passage))) for passage in text])
        kl, exact, got, scored = figures.T
        stats = core.sparse_stats
        count = max(stats["layers"] * self.info.ffn, 1)
        exact, got = exact[scored > 0], got[scored > 0]
        return Quality(
            energy=energy,
            kl=float(kl.mean()),
            kl_error=_error(kl),
            exact_perplexity=math.exp(exact.mean()),
            perplexity=math.exp(got.mean()),
            change_error=_error(got - exact),
            predicted=stats["candidates"] / count,
            missed=stats["missed"] / count,
            tokens=len(kl),
        )

    def _core(self, sparse: _core.SparseOptions, kv_tokens: int = 2 * STEP) -> _core.Engine:
        return load_core(
            self.store, self.model, sparse, threads=self.threads, kv_tokens=kv_tokens, max_step_tokens=STEP
        )


def calibrate(measure: Callable[[float], Quality], allowed: float) -> list[Quality]:
    """Looks for the largest share of energy whose loss stays within `allowed`, relative; all that was measured.

    The last entry is the one to use: the largest share that was within, or the least one if none was. The divergence
    grows about as the energy does, as that is the square of the error, so each try goes by the ratio of the last.
    """
    runs: list[Quality] = []
    energy = _START
    for _ in range(_RUNS):
        runs.append(measure(energy))
        ratio = allowed / max(runs[-1].surely, 1e-9)
        if 1 <= ratio <= 1 / _CLOSE:
            break
        within = [r.energy for r in runs if r.surely <= allowed]
        beyond = [r.energy for r in runs if r.surely > allowed]
        following = energy * min(max(0.9 * ratio, 0.03), 10)
        if within and beyond and not max(within) < following < min(beyond):
            following = math.sqrt(max(within) * min(beyond))
        following = min(max(following, LEAST_ENERGY), MOST_ENERGY)
        if following == energy:
            break
        energy = following
    within_runs = [r for r in runs if r.surely <= allowed]
    best = max(within_runs, key=lambda r: r.energy) if within_runs else min(runs, key=lambda r: r.energy)
    return [*(r for r in runs if r is not best), best]


def _compare(core: _core.Engine, passage: Passage) -> Iterator[tuple[float, float, float, float]]:
    """After each token: divergence; surprise of the exact and of this engine at the next token; 1 if there is one."""
    tokens, prompt = passage.tokens, passage.prompt
    seq = core.sequence_new()
    run(core, seq, tokens[:prompt], len(tokens))
    for i, exact in enumerate(passage.exact):
        run(core, seq, tokens[prompt + i : prompt + i + 1], len(tokens), want=1)
        p, q = _log_softmax(exact), _log_softmax(core.logits()[0])
        divergence = float(np.exp(p) @ (p - q))
        following = prompt + i + 1
        if following < len(tokens):
            yield divergence, -float(p[tokens[following]]), -float(q[tokens[following]]), 1.0
        else:
            yield divergence, 0.0, 0.0, 0.0
    core.sequence_free(seq)


def _log_softmax(logits: Floats) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def _error(values: NDArray[np.float64]) -> float:
    return float(values.std() / math.sqrt(max(len(values) - 1, 1)))
