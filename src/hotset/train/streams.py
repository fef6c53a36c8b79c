"""The residual streams of the original and of the model that is made sparse, layer after layer, for a fixed text.

Both are kept for all tokens, 8 bytes a dimension, so that each layer is computed once, not again for every layer above.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hotset.train.ffn import SparseFfn, lengths
from hotset.train.memory import a_pass, halved, memory_for


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one new FFN is given and what it should give, so that its stream becomes that of the original."""

    inputs: Tensor  # [tokens, hidden]
    wanted: Tensor  # [tokens, hidden]: stream of the original behind the layer, less the new one before the FFN
    base: Tensor  # [tokens, hidden]: the new stream before the FFN
    weights: Tensor  # [tokens]: 1 / length of the original's stream behind the layer

    def part(self, chosen: Tensor | slice) -> Lesson:
        return Lesson(self.inputs[chosen], self.wanted[chosen], self.base[chosen], self.weights[chosen])

    def parts(self, size: int) -> Iterator[Lesson]:
        return (self.part(slice(at, at + size)) for at in range(0, len(self.inputs), size))

    def share(self) -> float:
        """Mean square of what is wanted, as a share of the square of the stream's length."""
        return float((self.wanted * self.weights[:, None]).square().sum(-1).mean())


class _Nothing(nn.Module):
    """In the place of an FFN: keeps what it is given and adds nothing to the stream."""

    def forward(self, x: Tensor) -> Tensor:
        self.given = x.flatten(0, 1)
        if torch.is_autocast_enabled(x.device.type):
            self.given = self.given.to(torch.get_autocast_dtype(x.device.type))
        return torch.zeros_like(x)


class Streams:
    """Of two transformers models with the same layers but for their FFNs."""

    def __init__(self, original: Any, model: Any, ids: Tensor, micro_batch: int) -> None:
        """ids: [sequences, length]."""
        self.layers = list(zip(original.model.layers, model.model.layers, strict=True))
        self.passes = ids.split(micro_batch)
        with self.memory_for_pass():
            self._extras = {len(part): _layer_arguments(original, part) for part in (self.passes[0], self.passes[-1])}
        with torch.no_grad():
            self.right = [original.model.embed_tokens(part).float() for part in self.passes]  # each [sequences, length,
            self.new = [model.model.embed_tokens(part).float() for part in self.passes]  # hidden]

    def memory_for_pass(self) -> AbstractContextManager[None]:
        size, length = self.passes[0].shape
        what = f"{a_pass(size, length)} in the first stage"
        return memory_for(what, halved("--micro-batch", size), "a shorter --sequence")

    def enter(self, number: int) -> Lesson:
        """Takes the original's stream behind a layer, and the new one up to the FFN in it."""
        original, layer = self.layers[number]
        found: list[tuple[Tensor, ...]] = []
        ffn, layer.mlp = layer.mlp, _Nothing()
        with torch.no_grad():
            for i, extra in enumerate(self._arguments(number)):
                with self.memory_for_pass():
                    self.right[i] = _hidden(original(self.right[i], **extra)).float()
                    base = _hidden(layer(self.new[i], **extra)).float().flatten(0, 1)
                right = self.right[i].flatten(0, 1)
                found.append((layer.mlp.given, right - base, base, 1 / lengths(right)))
        layer.mlp = ffn
        return Lesson(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    def leave(self, lesson: Lesson, ffn: SparseFfn) -> float:
        """Takes the new stream through the FFN. Returns its squared distance from the original's, as share of that."""
        sizes = [part.numel() for part in self.passes]
        errors = 0.0
        with torch.no_grad():
            for i, at in enumerate(torch.tensor([0, *sizes]).cumsum(0)[:-1].tolist()):
                part = lesson.part(slice(at, at + sizes[i]))
                out = ffn(part.inputs).float()
                errors += float(((out - part.wanted) * part.weights[:, None]).square().sum())
                self.new[i] = (part.base + out).view_as(self.new[i])
        return errors / sum(sizes)

    def _arguments(self, number: int) -> Iterator[dict[str, Any]]:
        return (self._extras[len(part)][number] for part in self.passes)


def _layer_arguments(model: Any, ids: Tensor) -> list[dict[str, Any]]:
    """What each layer is given besides its input: positions, masks and what else this family has."""
    found: list[dict[str, Any]] = []

    def keep(_: Any, __: Any, named: dict[str, Any]) -> None:
        found.append({name: value for name, value in named.items() if name != "hidden_states"})

    hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in model.model.layers]
    with torch.no_grad():
        model.model(input_ids=ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


def contributions(model: Any, ids: Tensor) -> list[Tensor]:
    """What each neuron of a gated FFN adds to the stream, as a share of its length; of each layer [tokens, ffn]."""
    seen: dict[int, Tensor] = {}
    found: list[Tensor] = []

    def before_down(number: int, down: Any, given: tuple[Tensor, ...]) -> None:
        seen[number] = given[0].flatten(0, 1).abs() * down.weight.detach().norm(dim=0)

    def behind(number: int, _: Any, __: Any, out: Any) -> None:
        found.append(seen.pop(number).float() / lengths(_hidden(out).flatten(0, 1))[:, None])

    hooks: list[Any] = []
    for number, layer in enumerate(model.model.layers):
        hooks.append(layer.mlp.down_proj.register_forward_pre_hook(partial(before_down, number)))
        hooks.append(layer.register_forward_hook(partial(behind, number)))
    with torch.no_grad():
        model.model(input_ids=ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


def _hidden(output: Any) -> Tensor:
    """transformers before 4.54 gave a tuple."""
    return output[0] if isinstance(output, tuple) else output
