"""Timelines: the file is what Perfetto reads, spans nest and account for the time of a step."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hotset import LLM, _core
from hotset.engine import trace
from hotset.engine.trace import Trace
from hotset.errors import StorageError, UsageError
from tests.sparse_models import make_sparse_model, run, tiny_config

Event = dict[str, Any]


def events_of(path: Path) -> list[Event]:
    trace = json.loads(path.read_text())
    assert trace["otherData"] == {"lost_events": 0}
    found: list[Event] = trace["traceEvents"]
    return found


def spans_of(events: list[Event], thread: int) -> list[Event]:
    found = [e for e in events if e["ph"] == "X" and e["tid"] == thread]
    return sorted(found, key=lambda e: (e["ts"], -e["dur"]))


def stepper(events: list[Event]) -> int:
    return next(e["tid"] for e in events if e["name"] == "step")


def check_nesting(spans: list[Event]) -> None:
    """Each span lies within those that were open when it began."""
    open_ends: list[float] = []
    for span in spans:
        while open_ends and open_ends[-1] <= span["ts"]:
            open_ends.pop()
        end = span["ts"] + span["dur"]
        assert not open_ends or end <= open_ends[-1] + 0.002, span  # times are rounded to 1 ns
        open_ends.append(end)


@pytest.fixture(scope="module")
def timeline(stories_store: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    path = tmp_path_factory.mktemp("trace") / "dense.json"
    with LLM(stories_store, threads=2, trace=path) as llm:
        llm.generate("Once upon a time", max_tokens=20, temperature=0, ignore_eos=True)
    return events_of(path)


def test_spans_nest_and_cover_the_step(timeline: list[Event]) -> None:
    spans = spans_of(timeline, stepper(timeline))
    check_nesting(spans)
    steps = [s for s in spans if s["name"] == "step"]
    assert len(steps) == 20
    inner, covered = ("embed", "attention", "ffn", "head"), []
    for step in steps:
        end = step["ts"] + step["dur"]
        parts = [s for s in spans if s["name"] in inner and step["ts"] <= s["ts"] < end]
        assert [p["args"]["layer"] for p in parts if p["name"] == "ffn"] == list(range(5))
        covered.append(sum(p["dur"] for p in parts) / step["dur"])
    assert max(covered) < 1.0001
    assert np.median(covered) > 0.8  # not of each: a thread may lose its core between two parts
    assert sum(s["name"] == "sample" for s in spans) == 20


def test_reads_and_counters_of_a_sparse_model(tmp_path: Path) -> None:
    model = make_sparse_model(tmp_path, tiny_config(True, "relu", "relu", hidden=544, ffn=300), "q4_0")
    engine = model.sparse(_core.SparseOptions([20] * 2, 50, "clock", "all", depth=16), threads=2)
    with Trace(tmp_path / "t.json"):
        run(engine, [1, 2, 3], [5, 6])
    events = events_of(tmp_path / "t.json")
    begun = [e for e in events if e["ph"] == "b"]
    present = [e["args"]["value"] for e in events if e["ph"] == "C" and e["name"] == "neurons in memory"]
    assert sum(e["args"]["bytes"] for e in begun) == engine.sparse_stats["bytes_read"]
    assert engine.sparse_stats["bytes_read"] == (3 * 2 * 300 - sum(present)) * model.stride
    rows: dict[int, float] = {}  # when each row of the drive is free again
    for event in (e for e in events if e["ph"] in "be"):
        if event["ph"] == "b":
            assert rows.get(event["id"], 0.0) <= event["ts"]
        rows[event["id"]] = event["ts"]
    depths = [e["args"]["value"] for e in events if e["name"] == "reads in flight"]
    assert max(depths) == len(rows) <= 16 and depths[-1] == 0
    spans = spans_of(events, stepper(events))
    check_nesting(spans)
    assert {"submit", "wait for drive", "check", "gate and up, in memory", "gate and up, read", "down"} <= {
        s["name"] for s in spans
    }
    rate = sum(e["args"]["value"] for e in events if e["name"] == "drive MB/s") * 1e6 * 0.01
    assert rate == pytest.approx(engine.sparse_stats["bytes_read"], rel=1e-4)


def test_without_overlap_nothing_is_computed_while_reads_run(tmp_path: Path) -> None:
    model = make_sparse_model(tmp_path, tiny_config(True, "relu", "relu", hidden=544, ffn=300), "q4_0")
    want = run(model.sparse(_core.SparseOptions([300] * 2, 0)), [1, 2, 3], [5, 6, 7])
    for overlap in (True, False):
        engine = model.sparse(_core.SparseOptions([100] * 2, 250, "window", depth=16, overlap=overlap), threads=2)
        path = tmp_path / "t.json"
        with Trace(path):
            assert (run(engine, [1, 2, 3], [5, 6, 7]) == want).all()
        events = events_of(path)
        inside = [s for s in spans_of(events, stepper(events)) if s["name"].startswith("gate and up")]
        begun, ended = (sorted(e["ts"] for e in events if e["ph"] == phase) for phase in "be")
        # Sorted apart, beginnings and ends tell as well when any read is under way.
        running = [(b, e) for b, e in zip(begun, ended, strict=True)]
        beside = sum(b < s["ts"] + s["dur"] and e > s["ts"] for s in inside for b, e in running)
        assert running and (beside > 0) == overlap
    with pytest.raises(UsageError, match="overlap is needed"):
        _core.SparseOptions([1], 4, predictor="low-rank", ahead=True, overlap=False)


def test_what_has_come_is_computed_before_the_rest(tmp_path: Path) -> None:
    """The back end of faults reads when asked what has come, so that a layer's three requests never come at once."""
    model = make_sparse_model(tmp_path, tiny_config(True, "relu", "relu", hidden=544, ffn=300), "q4_0")
    want = run(model.sparse(_core.SparseOptions([300] * 2, 0)), [1, 2, 3], [5, 6, 7])
    for overlap in (True, False):
        options = _core.SparseOptions([20] * 2, 300, "clock", backend="fault:slow:1:0", depth=2, overlap=overlap)
        engine = model.sparse(options, threads=2)
        with Trace(tmp_path / "t.json"):
            assert (run(engine, [1, 2, 3], [5, 6, 7]) == want).all()
        events = events_of(tmp_path / "t.json")
        spans = spans_of(events, stepper(events))
        check_nesting(spans)
        ends = [e["ts"] for e in events if e["ph"] == "e"]
        for ffn in (s for s in spans if s["name"] == "ffn"):
            end = ffn["ts"] + ffn["dur"]
            read = [s for s in spans if s["name"] == "gate and up, read" and ffn["ts"] <= s["ts"] < end]
            last = max(t for t in ends if t < end)
            assert (read[0]["ts"] < last) == overlap
            assert (len(read) > 1) == overlap


def test_a_ring_that_nobody_empties_forgets_the_oldest(stories_store: Path, tmp_path: Path) -> None:
    with LLM(stories_store, context=256) as llm, Trace(tmp_path / "t.json"):
        core, seq = llm.core, llm.core.sequence_new()
        one, zero = np.ones(1, np.int32), np.zeros(1, np.uint8)
        while _core.trace_filled() < 1.2:
            if core.sequence_length(seq) == 200:
                core.sequence_truncate(seq, 1)
            core.step(np.array([seq], np.int32), one, one, zero)
    trace = json.loads((tmp_path / "t.json").read_text())
    assert trace["otherData"]["lost_events"] > 10_000
    check_nesting(spans_of(trace["traceEvents"], stepper(trace["traceEvents"])))


def test_off_records_nothing(stories_store: Path) -> None:
    _core.trace_take()
    with LLM(stories_store) as llm:
        llm.generate("Once", max_tokens=3)
    assert _core.trace_take() == []


def test_one_at_a_time_and_only_where_one_can_write(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot write the trace /proc/none/t\.json"):
        Trace("/proc/none/t.json")
    with Trace(tmp_path / "a.json"), pytest.raises(UsageError, match="another trace"):
        Trace(tmp_path / "b.json")
    with Trace(tmp_path / "c.json"):
        pass
    assert events_of(tmp_path / "c.json")


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """What is written beyond fails as on a full drive, the last write in its middle."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 7, 16, 100, 5000])
def test_a_full_drive_ends_the_timeline_but_no_answer(
    stories_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    monkeypatch.setattr(trace, "_ENOUGH", 0.0)  # it is written after every step
    path = tmp_path / "t.json"
    with LLM(stories_store, threads=2) as llm:
        want = llm.generate("Once upon a time", max_tokens=20, temperature=0).tokens
    llm = LLM(stories_store, threads=2, trace=path)
    llm.generate("Once", max_tokens=5, temperature=0, ignore_eos=True)
    assert llm._trace is not None
    with files_of_at_most(llm._trace._raw.seek(0, 2) + room):
        assert llm.generate("Once upon a time", max_tokens=20, temperature=0).tokens == want
    with pytest.raises(StorageError, match=rf"the trace {path} ends early: File too large; free some space"):
        llm.close()
    llm.close()  # a second time does nothing
    events = events_of(path)  # whole up to there
    check_nesting(spans_of(events, stepper(events)))
    assert 5 <= sum(e["name"] == "step" for e in events if e["ph"] == "X") < 25
    with Trace(tmp_path / "b.json"):
        pass


def test_a_drive_that_is_full_at_the_end_is_told(tmp_path: Path) -> None:
    recorded = Trace(tmp_path / "t.json")
    with files_of_at_most(100), pytest.raises(StorageError, match=r"cannot write the trace .*t\.json: File too large"):
        recorded.close()
    with Trace(tmp_path / "b.json"):
        pass
