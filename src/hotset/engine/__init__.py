"""From token ids to token ids: which sequences compute what in each step, sampling, and when an answer ends."""

from hotset.engine.engine import Engine
from hotset.engine.output import Chunk, Completion, Sample, Stats, TokenLogprob
from hotset.engine.scheduler import Scheduler
from hotset.engine.sequence import Request, Sequence
from hotset.engine.stream import Stream

__all__ = [
    "Chunk",
    "Completion",
    "Engine",
    "Request",
    "Sample",
    "Scheduler",
    "Sequence",
    "Stats",
    "Stream",
    "TokenLogprob",
]
