"""Makes a synthetic model layer after layer, each calibrated on what the layers before make of some tokens."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotset import _core
from hotset.config import ModelConfig
from hotset.quant import packed_bytes
from hotset.tools.sparse_model_attention import make_attention
from hotset.tools.sparse_model_ffn import make_down, make_input
from hotset.tools.sparse_model_math import Floats, Random, away_from, changing_rms, rms_norm, scale_for_correlation
from hotset.tools.sparse_model_workload import Workload

CONSTANT = 1.0  # power of what is the same for all tokens, over the power of what changes
ATTENTION_POWER = (0.02, 4.0)  # least and most that a layer's attention adds, over the power of what changes
FFN_POWER = 0.08  # the same of its FFN: neighbours in depth then correlate by 0.95, as in real models
PIECE_ROWS = 512  # rows of embedding or head with a seed of their own
LOGIT_SPREAD = 2.5  # of a token's logits, but for the one that is meant to follow


def follower_logit(vocab: int, confidence: float, echo: float) -> float:
    """Of the token that is to have this probability beside `vocab` others with normally distributed logits.

    These spread by LOGIT_SPREAD, and by `echo` times the result, as rows that make one token follow see others, too.
    Their sum is vocab * exp(spread^2 / 2), so this is the smaller root of a quadratic equation.
    """
    level = np.log(vocab) + LOGIT_SPREAD**2 / 2 + np.log(confidence / (1 - confidence))
    return float((1 - np.sqrt(max(0.0, 1 - 2 * echo**2 * level))) / echo**2)


def _followed() -> NDArray[np.int64]:
    """Which row of its piece a row follows: one cycle through all of them."""
    return (5 * np.arange(PIECE_ROWS) + 3) % PIECE_ROWS


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's weights as the store holds them, and what its FFN did on the calibration tokens."""

    weights: dict[str, Floats]  # by role
    inputs: Floats  # of the FFN, [tokens, hidden]
    activations: Floats  # [tokens, ffn]


class Stream:
    """The residual stream of the calibration tokens, from the embedding to wherever it has been advanced.

    formats: weight format by kind of tensor. Same arguments, same weights.
    """

    def __init__(
        self, config: ModelConfig, workload: Workload, formats: Callable[[str], str], seed: int, tokens: int
    ) -> None:
        self.config, self.workload, self._formats, self._seed = config, workload, formats, seed
        self._zeros = workload.zeros_by_layer(len(config.layers))
        rng = self.random("mean")("embed")
        self._mean = rng.standard_normal(config.hidden).astype(np.float32)
        self._mean *= np.float32(np.sqrt(config.hidden / np.square(self._mean).sum()))
        ids = self.random("tokens")("ids").integers(0, config.vocab, tokens)
        self._stream = self.stored("embedding")(self._embeddings(ids))

    def random(self, where: str) -> Random:
        """Generators named by role."""

        def named(role: str) -> np.random.Generator:
            key = (self._seed, zlib.crc32(f"{where} {role}".encode()))
            return np.random.Generator(np.random.SFC64(np.random.SeedSequence(key)))

        return named

    def stored(self, kind: str) -> Callable[[Floats], Floats]:
        """Rounds a matrix to what its format in the store can hold."""
        fmt = self._formats(kind)

        def rounded(weights: Floats) -> Floats:
            packed = np.empty(packed_bytes(fmt, *weights.shape), np.uint8)
            _core.encode(fmt, np.ascontiguousarray(weights, np.float32), packed)
            return _core.decode(fmt, packed, *weights.shape)

        return rounded

    def embedding(self, piece: int) -> Floats:
        """Rows [PIECE_ROWS, hidden] of the embedding: a common vector plus the token's own of power 1."""
        rng = self.random(f"embed {piece}")("rows")
        rows = rng.standard_normal((PIECE_ROWS, self.config.hidden), np.float32)
        return rows + self._mean * np.float32(np.sqrt(CONSTANT))

    def head(self, piece: int) -> Floats:
        """Rows [PIECE_ROWS, hidden] of the head, blind to the constant part; asked for after all layers.

        Each is noise, plus the own part of another token's embedding: that token's stream still holds it, so this one
        is likely to follow. How likely, in the mean, is the workload's `confidence`.
        """
        hidden = self.config.hidden
        rows = self.random(f"head {piece}")("rows").standard_normal((PIECE_ROWS, hidden), np.float32)
        rows *= np.float32(LOGIT_SPREAD * np.sqrt((1 + CONSTANT) / hidden))
        if self.workload.confidence > 0:
            own = self.embedding((piece + 1) % -(-self.config.vocab // PIECE_ROWS))[_followed()]
            own -= self._mean * np.float32(np.sqrt(CONSTANT))
            size = np.sqrt(np.square(self._stream).mean())  # that the last norm takes away
            echo = size / np.sqrt((1 + CONSTANT) * hidden)
            rows += own * np.float32(follower_logit(self.config.vocab, self.workload.confidence, echo) * size / hidden)
        return away_from(rows, self._mean)

    def _embeddings(self, ids: NDArray[np.int64]) -> Floats:
        out = np.empty((len(ids), self.config.hidden), np.float32)
        for piece in np.unique(ids // PIECE_ROWS):
            here = ids // PIECE_ROWS == piece
            out[here] = self.embedding(int(piece))[ids[here] % PIECE_ROWS]
        return out

    def next(self, index: int) -> Layer:
        """Makes layer `index`, which must follow the last one made, and runs the stream through it."""
        random = self.random(f"layer {index}")
        attention = self._attention(random)
        x = rms_norm(self._stream, self.config.norm_eps)
        ffn = make_input(self.workload, self._zeros[index], self.config.ffn, x, random, self.stored("ffn"))
        activations = ffn.activations(x)
        power = changing_rms(self._stream) ** 2
        constant = self._mean * np.float32(np.sqrt(CONSTANT * power * (1 + FFN_POWER)))
        constant = constant - self._stream.mean(axis=0)
        down = make_down(activations, self.config.hidden, FFN_POWER * power, constant, random, self.stored("ffn"))
        self._stream += activations @ down.T
        return Layer({**attention, "gate": ffn.gate, "up": ffn.up, "down": down}, x, activations)

    def _attention(self, random: Random) -> dict[str, Floats]:
        x = rms_norm(self._stream, self.config.norm_eps)
        made = make_attention(self.config, x, self.workload.decays, random, self.stored("attention"))
        unit = changing_rms(self._stream) / changing_rms(made.output)
        least, most = (np.sqrt(power) * unit for power in ATTENTION_POWER)
        scale = scale_for_correlation(self._stream, made.output, self.workload.token_correlation, least, most)
        self._stream += made.output * np.float32(scale)
        return {"q": made.q, "k": made.k, "v": made.v, "o": made.o * np.float32(scale)}
