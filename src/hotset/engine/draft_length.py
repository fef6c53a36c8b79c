"""How many tokens to draft before they are verified: what drafts cost and how often they hold is learned on the way.

A round drafts k tokens one by one and verifies them in one pass, which gives 1 + (how many of them hold) tokens. Where
each holds with probability p those are (1 - p^(k+1)) / (1 - p) in the mean (Leviathan et al., arXiv:2211.17192), at the
cost of k drafts and of a pass of k + 1 rows. The best rate r over all k is what a second is worth. Drafting goes on
while the next token is worth more than its time: survival * p > r * (draft + row), where survival is the chance that
everything drafted so far holds, by how sure the draft was of each token (Dinkelbach's rule for ratios; stopping one
step ahead is optimal as survival only falls).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

MOST_DRAFTED = 64  # of one sequence between two passes; a pass that streams the model is paid back long before
_FIRST = 8  # drafted while nothing is known of the costs
_LEAST_BUCKET, _BUCKETS = -8, 16  # confidence from 2^-4 to 2^4, in half octaves
_FORGET = 0.98  # weight of what was seen before, one draft later
_PRIOR = 4.0  # drafts that a bucket's prior is worth
_LEAST_REST, _MOST_REST = 4, 256  # passes


@dataclass(slots=True)
class _Share:
    """Of the drafts judged lately, those that held."""

    tried: float = 0.0
    held: float = 0.0

    def add(self, held: bool) -> None:
        self.tried = self.tried * _FORGET + 1
        self.held = self.held * _FORGET + held

    def towards(self, prior: float) -> float:
        return (self.held + _PRIOR * prior) / (self.tried + _PRIOR)


class Acceptance:
    """The chance that a draft holds, by how sure it was."""

    def __init__(self) -> None:
        self._all = _Share()
        self._buckets = [_Share() for _ in range(_BUCKETS)]

    @property
    def mean(self) -> float:
        return self._all.towards(0.9)

    def of(self, confidence: float) -> float:
        """confidence: how much likelier the token was than what might have come instead, as a ratio's logarithm."""
        return self._buckets[_bucket(confidence)].towards(self.mean)

    def add(self, confidence: float, held: bool) -> None:
        self._all.add(held)
        self._buckets[_bucket(confidence)].add(held)


def _bucket(confidence: float) -> int:
    octaves = math.log2(max(confidence, 2**-8))
    return min(max(round(2 * octaves) - _LEAST_BUCKET, 0), _BUCKETS - 1)


@dataclass(slots=True)
class PassTime:
    """Seconds of a pass as a fixed part and one per row: a line through what was seen lately."""

    weight: float = 0.0
    rows: float = 0.0  # weighted means
    seconds: float = 0.0
    spread: float = 0.0  # of rows; weighted mean of squares
    together: float = 0.0  # of rows and seconds

    def add(self, rows: int, seconds: float) -> None:
        self.weight = self.weight * 0.9 + 1
        share = 1 / self.weight
        off_rows, off_seconds = rows - self.rows, seconds - self.seconds
        self.rows += share * off_rows
        self.seconds += share * off_seconds
        self.spread = (1 - share) * (self.spread + share * off_rows * off_rows)
        self.together = (1 - share) * (self.together + share * off_rows * off_seconds)

    def line(self) -> tuple[float, float]:
        """(fixed, per row), neither negative; while only one size was seen, as if 64 rows cost the fixed part again."""
        guess = self.seconds / (self.rows + 64)
        # The guess counts as much as a spread of 4 rows around the mean.
        slope = (self.together + 16 * guess) / (self.spread + 16)
        slope = min(max(slope, 0.0), self.seconds / self.rows) if self.rows else 0.0
        return self.seconds - slope * self.rows, slope


@dataclass(slots=True)
class DraftLength:
    """Decides for an engine; one for all its requests."""

    passes: PassTime = field(default_factory=PassTime)
    drafts: dict[int, float] = field(default_factory=dict)  # seconds of a draft of so many sequences at once
    greedy: Acceptance = field(default_factory=Acceptance)
    sampled: Acceptance = field(default_factory=Acceptance)  # apart: there chance, too, decides what holds
    _resting: int = 0  # passes until drafts are tried again, after they did not pay
    _rest: int = _LEAST_REST  # how many those will be next time

    def drafted(self, sequences: int, seconds: float) -> None:
        """One more token of each sequence was drafted."""
        known = self.drafts.get(sequences, seconds)
        self.drafts[sequences] = known + 0.2 * (seconds - known)

    def start(self, sequences: int, acceptance: float) -> float:
        """What a second is worth, in tokens; inf if drafts do not pay now, 0 if that is not known yet."""
        if self.passes.weight == 0 or not self.drafts:
            return 0.0
        rates = [self.rate(length, sequences, acceptance) for length in range(MOST_DRAFTED + 1)]
        if max(rates) > rates[0]:
            self._resting, self._rest = 0, _LEAST_REST
            return max(rates)
        if self._resting == 0:
            self._resting, self._rest = self._rest, min(2 * self._rest, _MOST_REST)
            return 0.0
        self._resting -= 1
        return math.inf

    def rate(self, length: int, sequences: int, acceptance: float) -> float:
        """Tokens per second of rounds in which each sequence drafts so many."""
        p = min(acceptance, 0.999)
        fixed, row = self.passes.line()
        seconds = length * self._draft_seconds(sequences) + fixed + row * sequences * (length + 1)
        return sequences * (1 - p ** (length + 1)) / (1 - p) / max(seconds, 1e-9)

    def pays(self, worth: float, sequences: int, survival: float, acceptance: float, done: int) -> bool:
        """Whether a sequence should draft one more.

        worth: what `start` returned. sequences: how many draft together. survival: of its tokens so far, `done` many.
        """
        if worth == 0:  # to learn, in no more than the time of a pass
            known = self.passes.weight > 0 and bool(self.drafts)
            return done < _FIRST and not (known and done * self._draft_seconds(sequences) > self.passes.seconds)
        cost = self._draft_seconds(sequences) / sequences + self.passes.line()[1]
        return done < MOST_DRAFTED and survival * acceptance > worth * cost

    def _draft_seconds(self, sequences: int) -> float:
        return self.drafts[min(self.drafts, key=lambda known: abs(known - sequences))]
