"""The front door: a model by name or path, and text out of it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np
from numpy.typing import NDArray

from hotset import _core
from hotset.config import ModelConfig
from hotset.engine import Chunk, Completion, Engine, Request, Sample, Stats, Stream, TokenLogprob, score
from hotset.engine.budget import KvType, parse_bytes
from hotset.engine.cgroup import peak_memory
from hotset.engine.memory_watch import MemoryWatch
from hotset.engine.native import draw_factory
from hotset.engine.revocable import CLOSED
from hotset.engine.score import Perplexity
from hotset.errors import InputError, UsageError
from hotset.formats.store import is_store, open_store
from hotset.loader import LoadOptions, Predict, load_model
from hotset.models import resolve
from hotset.params import SamplingParams, merged
from hotset.tokenizer import Tokenizer
from hotset.tools.run_stats import RunStats, run_stats

if TYPE_CHECKING:
    from hotset.engine.trace import Trace

__all__ = ["LLM", "Chunk", "Completion", "Perplexity", "RunStats", "Sample", "Stats", "Stream", "TokenLogprob"]

Message = Mapping[str, Any]
Prompt = str | Sequence[int] | Sequence[Message]
_SILENT: Callable[[int, int], None] = lambda done, total: None  # noqa: E731


class LLM:
    """A loaded model.

    Args:
        model: a store; or anything `hotset convert` takes (GGUF file, Hugging Face folder or hub id) or `hotset pull`
            knows, which is made a store in the cache first.
        memory: hard budget, bytes or text such as "4GiB", for all memory of this process; None: what the machine has.
        threads: None: all CPUs the process may use.
        context: most tokens of prompt and answer; None: the model's limit, at most 8192, or what fits.
        kv_tokens: tokens that the KV cache holds in all sequences together; None: `context`.
        kv: format of the KV cache, "f16" or "int8".
        isa: kernels to use; None: the best that this CPU supports.
        load: "read" (weights into huge pages, checked), "mmap" (mapped, unchecked) or "auto".
        ignore_keys: keys of config.json to treat as absent.
        reuse: keep finished prompts, so that the next one that begins alike starts where they differ.
        predict: of a packed store, "exact" (same text as computing every neuron) or "auto" (whatever is fastest, also
            predictors within a loss of quality, where the store has them); `mode` says what was taken.
        loss: of perplexity, relative, that predictors may cost with "auto"; None: what they were calibrated for.
        draft: of a packed store under a budget, let such predictors propose tokens, many of which are then verified at
            a time, where that is fastest: the text of "exact", sooner.
        plan: of a packed store, a file that `hotset plan` wrote; None: planned now, or taken from the cache.
        parallel: of a packed store, sequences usually decoded at once, 1 to 8, for which memory is divided between
            neurons; None: one. More or fewer may run. kv_tokens must hold them all.
        trace: file for a timeline of all threads and reads, to open in ui.perfetto.dev; `close` writes it.

    Safe for several threads: their requests are computed in common steps.
    Raises: a HotsetError whose message says what to do; MemoryBudgetError before anything is loaded.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        memory: str | int | None = None,
        threads: int | None = None,
        context: int | None = None,
        kv_tokens: int | None = None,
        kv: KvType = "f16",
        isa: str | None = None,
        load: str = "auto",
        ignore_keys: Collection[str] = (),
        reuse: bool = True,
        predict: Predict = "exact",
        loss: float | None = None,
        draft: bool = True,
        plan: str | Path | None = None,
        parallel: int | None = None,
        trace: str | Path | None = None,
    ) -> None:
        budget = None if memory is None else parse_bytes(memory)
        file = None if plan is None else Path(plan).expanduser()
        options = LoadOptions(budget, threads, context, kv_tokens, kv, isa, load, predict, loss, draft, file, parallel)
        self.store = open_store(_find_store(model, ignore_keys))
        self.descriptor = resolve(self.store.config, ignore_keys=ignore_keys)
        self.config: ModelConfig = self.descriptor.config
        self.tokenizer = Tokenizer.load(self.store.path)
        core, allotment, self.plan = load_model(self.store, self.descriptor, options)
        self._trace = None if trace is None else _start_trace(trace)
        dynamic = self.config.dynamic_rope
        self._engine: Engine | None = Engine(
            core,
            vocab=self.config.vocab,
            context=allotment.context,
            max_step_tokens=allotment.max_step_tokens,
            draw_factory=draw_factory(core),
            make_decoder=lambda: self.tokenizer.stream(skip_special=True),
            token_text=self.tokenizer.token_text,
            reuse=reuse and not dynamic,  # with dynamic RoPE, keys depend on the length of the whole text
            watch=MemoryWatch(self.plan.bytes, core) if self.plan else MemoryWatch(self.store.weight_bytes),
            after_step=self._trace.flush if self._trace else None,
            drafts=draft and self.plan is not None and self.plan.drafts and not dynamic,
            counters=lambda: core.sparse_stats,
        )
        self._core: _core.Engine | None = core

    @overload
    def generate(self, prompt: str | list[int], params: SamplingParams | None = None, **options: Any) -> Completion: ...
    @overload
    def generate(
        self, prompt: list[str] | list[list[int]], params: SamplingParams | None = None, **options: Any
    ) -> list[Completion]: ...
    def generate(
        self,
        prompt: str | list[int] | list[str] | list[list[int]],
        params: SamplingParams | None = None,
        **options: Any,
    ) -> Completion | list[Completion]:
        """Continues a prompt (text or token ids), or several at once.

        options: fields of SamplingParams, in place of `params` or on top of it.
        Raises: InputError or UsageError for a prompt or an option that cannot be run, before any of them runs;
        ModelError if the model computes no numbers for one of them.
        """
        many = isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], (str, list))
        prompts: list[Any] = list(prompt) if many else [prompt]
        chosen = merged(params, options)
        completions = self._run([self._encode(one) for one in prompts], chosen)
        return completions if many else completions[0]

    def chat(self, messages: Sequence[Message], params: SamplingParams | None = None, **options: Any) -> Completion:
        """Answers a conversation of {"role": …, "content": …}, put in the model's form by its chat template."""
        return self._run([self._encode_chat(messages)], merged(params, options))[0]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, **options: Any) -> Stream:
        """Like `generate` for one prompt, or `chat` for messages, token by token."""
        encoded = self._encode_chat(prompt) if _is_messages(prompt) else self._encode(prompt)
        return Stream(self._running(), self._submit(encoded, merged(params, options)))

    async def astream(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Any
    ) -> AsyncIterator[Chunk]:
        """`stream` for asyncio: steps run in a worker thread."""
        import asyncio  # slow to import, and most programs need it not

        stream = await asyncio.to_thread(self.stream, prompt, params, **options)
        try:
            while (chunk := await asyncio.to_thread(next, stream, None)) is not None:
                yield chunk
        finally:
            stream.abandon()  # the event loop does not wait for a running step

    def tokenize(self, text: str, add_special: bool = True) -> list[int]:
        """Token ids of a text; add_special: with BOS and EOS where the model wants them."""
        return self.tokenizer.encode(text, add_special)

    def detokenize(self, tokens: Sequence[int], skip_special: bool = False) -> str:
        return self.tokenizer.decode(tokens, skip_special)

    def logits(self, prompt: str | Sequence[int]) -> NDArray[np.float32]:
        """Logits after every token: [tokens, vocab].

        Raises: InputError for a text that cannot be run; MemoryBudgetError if running requests hold its room.
        """
        return score.logits(self._running(), self._encode(prompt))

    def perplexity(
        self,
        text: str | Sequence[int],
        *,
        window: int = 512,
        stride: int | None = None,
        most_windows: int | None = None,
        progress: Callable[[int, int], None] = _SILENT,
    ) -> Perplexity:
        """How surprised the model is by a text.

        stride None: whole windows side by side, the second half of each scored, first token replaced by BOS where the
        model uses it: the same numbers as llama.cpp's perplexity tool with `-c window`. Otherwise windows `stride`
        tokens apart, each token scored once, as in Hugging Face's guide. most_windows: stop after so many.
        Raises: UsageError for a window or stride that is none; otherwise as `logits`.
        """
        engine = self._running()
        if not 2 <= window <= engine.context:
            raise UsageError(f"window is {window} tokens; wanted 2 to {engine.context}, the context")
        if stride is not None and not 1 <= stride <= window:
            raise UsageError(f"stride is {stride} tokens; wanted 1 to {window}, the window")
        tokens = self._encode(text)
        bos_id = None
        if stride is None:
            windows = score.half_windows(len(tokens), window)
            bos_id = self.tokenizer.bos_id if self.tokenizer.adds_bos else None
        else:
            windows = score.sliding_windows(len(tokens), window, stride)
        return score.perplexity(engine, tokens, windows[:most_windows], bos_id=bos_id, progress=progress)

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together."""
        return self._running().context

    @property
    def max_step_tokens(self) -> int:
        """Most tokens that one step of `core` takes."""
        return self._running().max_step_tokens

    @property
    def threads(self) -> int:
        return self._native().threads

    @property
    def isa(self) -> str:
        """Name of the kernels in use."""
        return self._native().isa

    @property
    def mode(self) -> str:
        """Of answers: "exact", "exact, drafted" or, where neurons may be left out, "predicted" and within what."""
        if self.plan is not None and not self.plan.exact:
            loss = self.plan.loss
            return "predicted as calibrated" if loss is None else f"predicted within a loss of {100 * loss:.3g}%"
        return "exact" if self._running().speculator is None else "exact, drafted"

    @property
    def core(self) -> _core.Engine:
        """The native engine itself, for measurements that no sampler should be part of; see _core.pyi."""
        return self._native()

    @property
    def engine(self) -> Engine:
        """The step loop over `core`, for measurements that share it with running requests."""
        return self._running()

    @property
    def stats(self) -> dict[str, float]:
        """weight_bytes, kv_bytes_used, kv_bytes_reserved, scratch_bytes, load_seconds, bytes_per_token; peak_bytes of
        the process, or of its cgroup if it has a limit; and of a packed model the counters of its neurons, see
        docs/reference/plan.md, as neuron_candidates, neuron_missed, and so on."""
        core = self._native()
        neurons = {f"neuron_{name}": value for name, value in core.sparse_stats.items()}
        return {**core.stats, "peak_bytes": float(peak_memory()[0]), **neurons}

    def run_stats(self, completion: Completion) -> RunStats:
        """Figures of an answer that ran alone, as `hotset run --stats` prints them: see RunStats for names and units.

        Of a packed model with what its neurons and the drive did, and, where `hotset probe` has run, what bounds the
        speed and how near that was.
        """
        return run_stats(self, completion)

    def clear(self) -> None:
        """Forgets finished prompts that were kept for reuse."""
        with self._running().lock:
            self._running().cache.clear()

    def close(self) -> None:
        """Frees the model's memory and writes the trace. Streams still open end with UsageError, as all calls do then.

        Waits for a running step.
        """
        if (engine := self._engine) is not None:
            engine.close()
        self._engine = self._core = None
        if self._trace is not None:
            self._trace.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _running(self) -> Engine:
        if self._engine is None:
            raise UsageError(CLOSED)
        return self._engine

    def _native(self) -> _core.Engine:
        if self._core is None:
            raise UsageError(CLOSED)
        return self._core

    def _encode(self, prompt: Any) -> list[int]:
        if isinstance(prompt, str):
            if not prompt:
                raise InputError("the prompt is empty; give at least one character (or token ids, such as BOS alone)")
            return self.tokenizer.encode(prompt)
        if not isinstance(prompt, (Sequence, np.ndarray)) or isinstance(prompt, bytes):
            raise UsageError(f"the prompt is a {type(prompt).__name__}; wanted text or a list of token ids")
        return list(prompt)

    def _encode_chat(self, messages: Any) -> list[int]:
        return self.tokenizer.encode(self.tokenizer.apply_chat_template(messages), add_special=False)

    def _submit(self, tokens: list[int], params: SamplingParams) -> Request:
        engine = self._running()
        for token in (*params.logit_bias, *params.stop_token_ids):
            if token >= self.config.vocab:
                raise UsageError(f"token id {token} is unknown; this model's go from 0 to {self.config.vocab - 1}")
        ends = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self.tokenizer.eos_ids)
        seed = secrets.randbits(63) if params.seed is None else params.seed
        echoed = self.tokenizer.decode(tokens, skip_special=True) if params.echo else ""
        return engine.submit(tokens, params, seed, ends, echoed)

    def _run(self, prompts: list[list[int]], params: SamplingParams) -> list[Completion]:
        engine = self._running()
        for prompt in prompts:  # all, before any of them is queued
            engine.check(prompt)
        requests: list[Request] = []
        try:
            for prompt in prompts:  # one by one, so that those queued are known when Ctrl-C comes
                requests.append(self._submit(prompt, params))  # noqa: PERF401
            for request in requests:
                while not request.finished:
                    engine.advance(request)
                if request.error is not None:  # it failed in a step that another request drove
                    raise request.error
        finally:
            for request in requests:
                engine.cancel(request)
        return [request.completion() for request in requests]


def _start_trace(path: str | Path) -> Trace:
    from hotset.engine.trace import Trace  # few runs need it

    return Trace(path)


def _find_store(model: str | Path, ignore_keys: Collection[str]) -> Path:
    path = Path(model).expanduser()
    if is_store(path):
        return path
    from hotset.tools import resolve_model  # the one way up: a name must become a store before it can be run

    return resolve_model(model, ignore_keys=ignore_keys)


def _is_messages(prompt: Prompt) -> bool:
    return isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], Mapping)
