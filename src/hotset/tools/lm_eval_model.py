"""hotset as a model of lm-evaluation-harness, for its whole catalogue of tasks. Needs lm_eval 0.4.

import hotset.tools.lm_eval_model
lm_eval.simple_evaluate(model="hotset", model_args="path=STORE", tasks=["arc_easy"])
"""

from __future__ import annotations

from typing import Any

import lm_eval.models  # noqa: F401  (the harness registers its own models only while there are no others)
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from hotset.engine.likelihood import Continuation, likelihoods
from hotset.errors import InputError, UsageError
from hotset.llm import LLM
from hotset.tools.evaluate import prefix_token

_OF_THE_HARNESS = ("batch_size", "max_batch_size", "device")  # it gives them to every model


@register_model("hotset")  # type: ignore[untyped-decorator, unused-ignore]
class HotsetLM(TemplateLM):  # type: ignore[misc, unused-ignore]
    """path: whatever `hotset.LLM` takes; options: its keyword arguments.

    Raises: UsageError, TypeError (an option that LLM does not have), and what LLM raises.
    """

    def __init__(self, path: str | None = None, llm: LLM | None = None, **options: Any) -> None:
        super().__init__()
        chosen = {name: value for name, value in options.items() if name not in _OF_THE_HARNESS}
        if (path is None) == (llm is None) or (llm is not None and chosen):
            raise UsageError("want either path=STORE, with options such as predict=auto, or llm=LLM(…) alone")
        if isinstance(chosen.get("ignore_keys"), str):  # one key, where the harness takes everything from one text
            chosen["ignore_keys"] = (chosen["ignore_keys"],)
        self.llm = llm if llm is not None else LLM(str(path), **chosen)

    @property
    def _single(self) -> bool:
        """Whether scored tokens are computed one by one: in steps of many, predictors would leave nothing out."""
        return self.llm.plan is not None and not self.llm.plan.exact

    @property
    def eot_token_id(self) -> int:
        return prefix_token(self.llm.tokenizer)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        starts = [self.llm.tokenizer.bos_id] if self.llm.tokenizer.adds_bos and add_special_tokens is not False else []
        return [i for i in starts if i is not None] + self.llm.tokenizer.encode(string, add_special=False)

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Requests of one context come one after another, and share it."""
        pairs = [self._continuation(context, continuation) for _pair, context, continuation in requests]
        contexts = [tuple(context) for _pair, context, _ in requests]
        starts = [i for i in range(len(pairs)) if i == 0 or contexts[i] != contexts[i - 1]]
        groups = [pairs[a:b] for a, b in zip(starts, [*starts[1:], len(pairs)], strict=True)]
        found = likelihoods(self.llm.engine, groups, single=self._single)
        return [(one.value, one.greedy) for some in found for one in some]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Whole texts in windows of the context, which the harness cuts."""
        found = []
        for request in requests:
            tokens = self.tok_encode(request.args[0], add_special_tokens=False)
            windows = get_rolling_token_windows(tokens, self.eot_token_id, self.llm.context, context_len=1)
            groups = [[self._continuation(*make_disjoint_window(window))] for window in windows]
            scored = likelihoods(self.llm.engine, groups, single=self._single)
            found.append(sum(one.value for some in scored for one in some))
        return found

    def _continuation(self, context: list[int], continuation: list[int]) -> Continuation:
        """Cut at the left to what the context holds."""
        whole = [*context, *continuation][-self.llm.context - 1 :]
        return Continuation(whole, max(len(whole) - len(continuation), 1))

    def _room(self, most: int) -> int:
        """Tokens of a prompt that leave room for so many more. Raises InputError."""
        if (room := self.llm.context - most) < 1:
            raise InputError(
                f"the task writes {most} tokens (max_gen_toks); the context holds {self.llm.context}: give a larger "
                "context, if the model has one, or a smaller max_gen_toks"
            )
        return room

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Raises InputError where the context is too short for what is to be written."""
        found: list[str] = []
        for request in requests:
            text, wishes = request.args
            until, most = wishes.get("until", ()), int(wishes.get("max_gen_toks", 256))
            prompt = self.tok_encode(text)[-self._room(most) :]
            answer = self.llm.generate(
                prompt,
                max_tokens=most,
                stop=(until,) if isinstance(until, str) else tuple(until),
                temperature=float(wishes.get("temperature", 0.0)) if wishes.get("do_sample") else 0.0,
            )
            found.append(answer.text)
        return found
