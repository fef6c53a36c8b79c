"""One measurement of a packed store, to be run in a control group: prints JSON. bench/sparse.py starts it.

Decode of a text after a short prompt, one token a step, every step timed and its neurons counted; then prefill of a
longer text from an empty context. Greedy tokens of a synthetic model may run in a circle, so `--follow text` feeds the
text's own next token instead of the likeliest one; the logits are computed either way. Where the plan drafts, tokens
come in rounds: each is counted with the mean of its round. A text that is given cannot be drafted, so the likeliest
tokens follow there in any case.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bench.sparse_quality import quality
from bench.sparse_summary import LADDER, OVERLAPPED, WINDOW
from hotset import LLM, _core
from hotset.cli.options import parse_share
from hotset.engine import Stats
from hotset.engine.cgroup import peak_memory
from hotset.errors import HotsetError, InputError, UsageError
from hotset.formats.predictors import read_predictors
from hotset.formats.store import Store, open_store
from hotset.models import resolve
from hotset.planner.plan_file import write_plan
from hotset.planner.sizes import Predictor
from hotset.tools.plan import Wishes, make_plan
from hotset.tools.plan_sizes import neuron_sizes
from hotset.tools.run_stats import COUNTERS, bound

DRAFTS = ("passes", "drafted", "accepted")
STEPS = ("planned", *LADDER)
_GROWTH = 64 << 20  # of the process between one plan and the next
_CHARACTERS = 12  # more than a token has on average; a whole book would take a tokenizer's memory from the budget


@dataclass
class Decode:
    """Of every token: seconds, and what the neurons did. The first `dropped` warm the caches up and do not count."""

    seconds: list[float] = field(default_factory=list)
    counts: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in COUNTERS})
    tokens: list[int] = field(default_factory=list)

    def as_json(self, warm_up: int) -> dict[str, Any]:
        dropped = min(warm_up, len(self.seconds) // 3)  # a slow run stopped early keeps most of what it has
        counted = {name: values[dropped:] for name, values in self.counts.items()}
        distinct = len(set(self.tokens[dropped:]))
        return {"dropped": dropped, "distinct_tokens": distinct, "seconds": self.seconds[dropped:], **counted}


def settings(step: str, store: Store, wishes: Wishes) -> dict[str, Any]:
    """What one step of the ladder chooses; all that the budget leaves for neurons goes to one kind of place."""
    if step == "nothing predicted":  # so all neurons are read and computed
        return {"predictor": "all", "hot": 0, "cold_slots": 0}
    model = resolve(store.config)
    predictor: Predictor = "low-rank" if wishes.predict == "auto" else "gate"
    assert store.neurons is not None
    trained = read_predictors(store.path, store.neurons) if predictor == "low-rank" else None
    if step in (WINDOW, OVERLAPPED) and (trained is None or trained.ahead):
        raise UsageError(f"step {step!r} wants predictors of each layer's own input; make them with bench.window_store")
    planned = make_plan(store, model, wishes, {"predictor": predictor})
    sizes = neuron_sizes(store, model, trained).of(predictor)
    room = max(0, sum(planned.memory[part] for part in ("hot", "cold", "spill")) - _GROWTH)
    # Without cold slots the missing neurons of the layers at work need room, too.
    prefix = max(0, room // sizes.stride - sizes.most_missing(predictor, 0)) // sizes.layers
    hot, cold = {
        "nothing kept": (0, 0),
        "hot prefix": (min(sizes.ffn, prefix), 0),
        "all kept": (sizes.ffn, 0),
    }.get(step, (0, min(sizes.neurons, room // sizes.slot_bytes)))
    policy = {"policy": WINDOW if step == OVERLAPPED else step} if cold else {}
    return {"predictor": predictor, "hot": hot, "cold_slots": cold, **policy}


def load(args: argparse.Namespace) -> LLM:
    options: dict[str, Any] = {"memory": args.memory, "context": args.context, "predict": args.predict}
    options["draft"] = args.draft
    if args.loss is not None:
        options["loss"] = parse_share(args.loss, "--loss")
    if args.step == "planned":
        return LLM(args.store, **options)
    store, wishes = open_store(args.store), Wishes(**options)
    made = make_plan(store, resolve(store.config), wishes, settings(args.step, store, wishes))
    made = replace(made, overlap=args.step != WINDOW)
    with tempfile.TemporaryDirectory() as folder:
        write_plan(made, file := Path(folder) / "plan.json")
        return LLM(args.store, plan=file, **options)


def step(core: _core.Engine, seq: int, tokens: list[int], want: bool) -> None:
    ids = np.array(tokens, np.int32)
    core.step(np.array([seq], np.int32), np.array([len(ids)], np.int32), ids, np.array([want], np.uint8))


def read(llm: LLM, seq: int, tokens: list[int]) -> None:
    """A prompt, by the plan's chunks; logits after its last token."""
    for at in range(0, len(tokens), llm.max_step_tokens):
        chunk = tokens[at : at + llm.max_step_tokens]
        step(llm.core, seq, chunk, at + len(chunk) == len(tokens))


def decode(llm: LLM, prompt: list[int], following: Iterator[int] | None, tokens: int, seconds: float) -> Decode:
    """At most so many tokens, and no new one after so many seconds. following None: the likeliest token follows."""
    core, found = llm.core, Decode()
    seq = core.sequence_new()
    read(llm, seq, prompt)
    ends = time.perf_counter() + seconds
    before = core.sparse_stats
    while len(found.seconds) < tokens and time.perf_counter() < ends:
        token = int(core.logits()[0].argmax()) if following is None else next(following)
        started = time.perf_counter()
        step(core, seq, [token], True)
        found.seconds.append(time.perf_counter() - started)
        after = core.sparse_stats
        for name in COUNTERS:
            found.counts[name].append(after[name] - before[name])
        found.tokens.append(token)
        before = after
    core.sequence_free(seq)
    return found


def decode_drafted(llm: LLM, prompt: list[int], tokens: int, seconds: float) -> tuple[Decode, Stats]:
    """`decode` of the likeliest tokens, in rounds of drafts and their verification."""
    found, core = Decode(), llm.core
    rounds: list[tuple[float, dict[str, float], list[int]]] = []
    with llm.stream(prompt, max_tokens=tokens + 1, temperature=0, ignore_eos=True) as stream:
        next(stream)  # came with the prompt
        arrived, before, passes = time.perf_counter(), core.sparse_stats, 0
        ends = arrived + seconds
        for chunk in stream:
            if stream.completion.stats.passes != passes:
                now, after = time.perf_counter(), core.sparse_stats
                rounds.append((now - arrived, {name: after[name] - before[name] for name in COUNTERS}, []))
                arrived, before, passes = now, after, stream.completion.stats.passes
                if now > ends and len(rounds) > 1:
                    rounds.pop()
                    break
            rounds[-1][2].append(chunk.token)
        stats = stream.completion.stats
    for took, counts, given in rounds:
        found.seconds += [took / len(given)] * len(given)
        found.tokens += given
        for name, values in found.counts.items():
            values += [counts[name] / len(given)] * len(given)
    return found, stats


def prefill(llm: LLM, tokens: list[int]) -> float:
    """Tokens/s from an empty context."""
    seq = llm.core.sequence_new()
    started = time.perf_counter()
    read(llm, seq, tokens)
    elapsed = time.perf_counter() - started
    llm.core.sequence_free(seq)
    return len(tokens) / elapsed


def measure(args: argparse.Namespace) -> dict[str, Any]:
    started = time.perf_counter()
    with load(args) as llm:
        loaded = time.perf_counter() - started
        wanted = max(args.prefill, args.prompt + args.tokens)
        text = llm.tokenize(args.text.read_text(encoding="utf-8")[: _CHARACTERS * wanted])
        if len(text) < wanted:
            raise InputError(f"{args.text} has {len(text)} tokens; {wanted} are needed: give a longer --text")
        assert llm.plan is not None
        drafts: Stats | None = None
        if llm.plan.drafts:
            decoded, drafts = decode_drafted(llm, text[: args.prompt], args.tokens, args.seconds)
        else:
            following = islice(text, args.prompt, None) if args.follow == "text" else None
            decoded = decode(llm, text[: args.prompt], following, args.tokens, args.seconds)
        found = decoded.as_json(args.warm_up)
        limits = bound(llm, {name: float(np.mean(found[name])) for name in COUNTERS}, drafts)
        rates = prefill(llm, text[: args.prefill]) if args.prefill else None
        peak = peak_memory()[0]  # before logits are kept
        guessed = llm.plan.predictor == "low-rank" and not llm.plan.drafts
        judged = quality(llm, text[: args.prompt], decoded.tokens[args.warm_up :]) if guessed else None
        return {
            "plan": llm.plan.as_json(),
            "load_s": loaded,
            "threads": llm.threads,
            "decode": found,
            "drafts": None if drafts is None else {name: getattr(drafts, name) for name in DRAFTS},
            "bound": None if limits is None else asdict(limits) | {"tokens_per_s": limits.bound_tokens_per_s},
            "prefill_tokens_per_s": rates,
            "quality": None if judged is None else asdict(judged),
            "peak_process_or_cgroup_bytes": peak,
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--memory", type=int, help="bytes; default: what the machine has")
    parser.add_argument("--loss", metavar="SHARE", help="of perplexity, with --predict auto")
    parser.add_argument("--predict", choices=("exact", "auto"), default="exact")
    parser.add_argument("--no-draft", dest="draft", action="store_false", help="exact without drafts")
    parser.add_argument("--step", choices=STEPS, default="planned", help="of the ladder")
    parser.add_argument("--follow", choices=("greedy", "text"), default="greedy")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--prefill", type=int, default=512, help="tokens; 0: none")
    parser.add_argument("--tokens", type=int, default=160, help="to decode, warm-up included")
    parser.add_argument("--warm-up", type=int, default=32, help="tokens that do not count")
    parser.add_argument("--seconds", type=float, default=60, help="of decoding at most")
    args = parser.parse_args()
    try:
        print(json.dumps(measure(args)))
    except HotsetError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
