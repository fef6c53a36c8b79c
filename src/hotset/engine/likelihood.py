"""Log-likelihood of continuations, many at once; continuations of one context share what is computed for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from hotset.engine.backend import PAGE
from hotset.engine.engine import Engine
from hotset.errors import InputError

_NONE, _ALL = 0, 2  # of `want`


@dataclass(frozen=True, slots=True)
class Continuation:
    """tokens[first:] are scored, given those before; first >= 1. The last one is never computed, so takes no room."""

    tokens: list[int]
    first: int


@dataclass(frozen=True, slots=True)
class Likelihood:
    value: float  # sum of log p of the scored tokens
    greedy: bool  # each of them is the likeliest


@dataclass(slots=True)
class _Job:
    """Tokens to append to a sequence, and what became of those that are scored."""

    handle: int
    length: int  # that the sequence will have, for dynamic RoPE
    tokens: list[int]
    targets: list[int] = field(default_factory=list)  # after each token; empty: no logits are wanted
    done: int = 0
    logprobs: list[float] = field(default_factory=list)
    likeliest: list[bool] = field(default_factory=list)


def likelihoods(
    engine: Engine,
    groups: Sequence[Sequence[Continuation]],
    *,
    single: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> Iterator[list[Likelihood]]:
    """Of each group's continuations, in order; a group's common beginning is computed once.

    single: scored tokens are computed one by one, as in generating: predictors of a packed model then choose for each.
    progress: called with groups done. Raises: InputError for a continuation that exceeds the context.
    """
    pages = -(-engine.context // PAGE)
    split = [_split(group, pages) for group in groups]
    found = _in_batches(engine, [part for parts in split for part in parts], single)
    for done, parts in enumerate(split, 1):
        yield [one for _ in parts for one in next(found)]
        progress(done)


def _in_batches(engine: Engine, groups: Sequence[Sequence[Continuation]], single: bool) -> Iterator[list[Likelihood]]:
    done = 0
    while done < len(groups):
        with engine.lock:  # not while the caller has the word; what is below must not ask for it again
            count = _fitting(engine, groups[done:])
            found = _batch(engine, groups[done : done + count], single)
        yield from found
        done += count


def _split(group: Sequence[Continuation], pages: int) -> list[Sequence[Continuation]]:
    """The group, or parts of it that take no more pages than a sequence as long as the context."""
    if len(group) == 1 or _pages(group) <= pages:
        return [group]
    half = len(group) // 2
    return [*_split(group[:half], pages), *_split(group[half:], pages)]


def _fitting(engine: Engine, groups: Sequence[Sequence[Continuation]]) -> int:
    """How many groups fit the KV cache together, at least one, after old prefixes went if need be."""
    wanted = _pages(groups[0])
    for continuation in groups[0]:
        if len(continuation.tokens) > engine.context + 1:
            raise InputError(f"a text has {len(continuation.tokens)} tokens; the context holds {engine.context}")
    engine.make_room(min(wanted * PAGE, engine.context))
    free, count, tokens = engine.core.kv_free_tokens() // PAGE, 1, len(groups[0][0].tokens)
    while count < len(groups) and tokens < 4 * engine.max_step_tokens:
        wanted += _pages(groups[count])
        tokens += len(groups[count][0].tokens)
        if wanted > free:
            break
        count += 1
    return count


def _pages(group: Sequence[Continuation]) -> int:
    """Most pages that a group takes: of its beginning, and of each continuation, which copies the page they share."""
    if len(group) == 1:
        return -(-(len(group[0].tokens) - 1) // PAGE)
    shared = _shared(group)
    return -(-shared // PAGE) + sum(-((1 - len(c.tokens)) // PAGE) - shared // PAGE for c in group)


def _shared(group: Sequence[Continuation]) -> int:
    """Tokens that all have in common and that come before the last one whose logits are wanted."""
    least = min(c.first for c in group) - 1
    first = group[0].tokens
    for i in range(least):
        if any(c.tokens[i] != first[i] for c in group):
            return i
    return least


def _batch(engine: Engine, groups: Sequence[Sequence[Continuation]], single: bool) -> list[list[Likelihood]]:
    handles: list[int] = []
    try:
        roots = []
        for group in groups:
            handles.append(engine.core.sequence_new())
            longest = max(len(c.tokens) for c in group)
            roots.append(_Job(handles[-1], longest, group[0].tokens[: _shared(group)]))
        _run(engine, [job for job in roots if job.tokens], engine.max_step_tokens)
        jobs: list[list[_Job]] = []
        for root, group in zip(roots, groups, strict=True):
            jobs.append([])
            start = len(root.tokens)
            for c in group:
                handle = root.handle  # one alone goes on where its beginning ended
                if len(group) > 1:
                    handles.append(handle := engine.core.sequence_fork(root.handle))
                jobs[-1].append(_Job(handle, len(c.tokens), c.tokens[start:-1], c.tokens[start + 1 :]))
        _run(engine, [job for some in jobs for job in some], 1 if single else engine.most_logit_rows)
    finally:
        for handle in handles:
            engine.core.sequence_free(handle)
    return [[_scored(job, c) for job, c in zip(some, g, strict=True)] for some, g in zip(jobs, groups, strict=True)]


def _scored(job: _Job, c: Continuation) -> Likelihood:
    count = len(c.tokens) - c.first
    return Likelihood(float(np.sum(job.logprobs[-count:], dtype=np.float64)), all(job.likeliest[-count:]))


def _run(engine: Engine, jobs: list[_Job], most: int) -> None:
    """Computes all jobs in steps of at most `most` tokens, long ones in parts, in the order given."""
    waiting = [job for job in jobs if job.tokens]
    while waiting:
        parts: list[tuple[_Job, int]] = []
        left = most
        for job in waiting:
            if left == 0:
                break
            parts.append((job, min(left, len(job.tokens) - job.done)))
            left -= parts[-1][1]
        _step(engine, parts)
        waiting = [job for job in waiting if job.done < len(job.tokens)]


def _step(engine: Engine, parts: Sequence[tuple[_Job, int]]) -> None:
    core = engine.core
    spans = [slice(job.done, job.done + count) for job, count in parts]
    core.step(
        np.array([job.handle for job, _ in parts], np.int32),
        np.array([count for _, count in parts], np.int32),
        np.array([t for (job, _), span in zip(parts, spans, strict=True) for t in job.tokens[span]], np.int32),
        np.array([_ALL if job.targets else _NONE for job, _ in parts], np.uint8),
        np.array([job.length for job, _ in parts], np.int64),
    )
    targets = [t for (job, _), span in zip(parts, spans, strict=True) for t in job.targets[span]]
    logprobs = core.token_logprobs(np.array(targets, np.int32)).tolist() if targets else []
    best = core.logits().argmax(axis=1).tolist() if targets else []
    at = 0
    for job, count in parts:
        job.done += count
        if job.targets:
            job.logprobs += logprobs[at : at + count]
            job.likeliest += [a == b for a, b in zip(best[at : at + count], targets[at : at + count], strict=True)]
            at += count
