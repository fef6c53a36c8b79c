"""How often greedy drafts hold, by the energy that predictors give up: what plans of exact answers go by.

The exact model goes on from pieces of held-out text, and drafts are made for what it wrote as the engine makes them:
some in a row after exact keys and values, with half of the neurons in memory. Text of others would not do: what a model
writes itself it is surer of, and predictors know it less well (docs/decisions/log.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hotset import _core
from hotset.engine.backend import PAGE
from hotset.formats.predictors import Predictors
from hotset.formats.progress import Progress
from hotset.tools.profile_text import Window
from hotset.tools.train_predictor_calibrate import STEP, Bench
from hotset.tools.train_predictor_inputs import run
from hotset.tools.train_predictor_written import go_on, likeliest, without

_PROMPT, _ANSWER = 32, 128  # tokens
_ROUND, _EVERY = 8, 16  # drafts in a row, and where in an answer they begin: all of it would tell little more
_ENERGIES = 3
DRAFTS = 4  # tokens drafted for each of those that set thresholds: whether one holds is known less well than divergence


@dataclass(frozen=True, slots=True)
class Drafts:
    """Of one share of energy."""

    energy: float
    failed: int
    tokens: int

    @property
    def held(self) -> float:
        """Share that holds; never 1, as half of a failure is added (Krichevsky and Trofimov 1981)."""
        return 1 - (self.failed + 0.5) / (self.tokens + 1)


@dataclass(frozen=True, slots=True)
class Answers:
    """How the exact model goes on, greedily."""

    texts: list[Window]  # prompts and answers
    prompt: int  # tokens of each that it was given
    never: Sequence[int]  # tokens that would end an answer, passed over


def write_answers(bench: Bench, held_out: Sequence[Window], tokens: int, never: Sequence[int]) -> Answers:
    """For about so many drafts."""
    context = bench.model.config.context
    prompt = min(_PROMPT, min(map(len, held_out)), context // 2)
    pieces = [w[i : i + prompt] for w in held_out for i in range(0, len(w) - prompt + 1, prompt)]
    count = min(max(1, tokens * _EVERY // (_ROUND * _ANSWER)), len(pieces))
    chosen = [pieces[i * len(pieces) // count] for i in range(count)]
    length = min(_ANSWER, context - prompt)
    together = min(count, STEP // prompt)  # their beginnings are one step
    core = bench.exact(together * -(-(prompt + length) // PAGE) * PAGE)
    texts = [
        text for at in range(0, count, together) for text in go_on(core, chosen[at : at + together], length, never)
    ]
    return Answers(texts, prompt, never)


def measure_drafts(
    bench: Bench, trained: Predictors, energies: Sequence[float], answers: Answers, progress: Progress
) -> list[Drafts]:
    """By energy, ascending."""
    found = []
    for i, energy in enumerate(energies):
        core = bench.drafting(trained, energy)
        failed = np.concatenate([failed_drafts(core, text, answers) for text in answers.texts])
        found.append(Drafts(energy, int(failed.sum()), len(failed)))
        progress(i + 1, len(energies), "shares of energy to draft with")
    return found


def shares(drafts: Sequence[Drafts]) -> list[tuple[float, float]]:
    """As the file of predictors has them."""
    return [(d.energy, d.held) for d in drafts]


def draft_energies(calibrated: float, most: float) -> list[float]:
    """From what answers may lose to the most that was tried, as drafts may be wrong more often."""
    return sorted({float(e) for e in np.geomspace(calibrated, max(most, calibrated), _ENERGIES)})


def failed_drafts(core: _core.Engine, text: Window, answers: Answers) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Of each draft, whether it is another token than that of the answer."""
    exact = core.sequence_new()
    run(core, exact, text[:-1], len(text))
    failed = []
    for start in range(answers.prompt, len(text), _EVERY):
        seq = core.sequence_fork(exact)
        core.sequence_truncate(seq, start - 1)
        for at in range(start, min(start + _ROUND, len(text))):
            run(core, seq, text[at - 1 : at], len(text), want=1, draft=True)
            failed.append(likeliest(without(core.logits(), answers.never))[0] != text[at])
        core.sequence_free(seq)
    core.sequence_free(exact)
    return np.array(failed)
