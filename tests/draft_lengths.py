"""Draft lengths that do not hang on the clock."""

from __future__ import annotations

import random

from hotset.engine.draft_length import DraftLength


class RandomLength(DraftLength):
    """Stops anywhere."""

    def __init__(self, seed: int, most: int) -> None:
        super().__init__()
        self._random, self._most, self._wanted = random.Random(seed), most, 0

    def start(self, sequences: int, acceptance: float) -> float:
        self._wanted = self._random.randint(0, self._most)
        return 1.0

    def pays(self, worth: float, sequences: int, survival: float, acceptance: float, done: int) -> bool:
        assert 0 <= survival <= 1 and 0 <= acceptance <= 1
        return done < self._wanted and self._random.random() < 0.9
