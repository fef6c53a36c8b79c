"""The rounding that a forward pass is computed with, so that one twin serves as oracle and as error estimate."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
EPS32 = float(np.finfo(np.float32).eps)


class Arithmetic:
    """Products and rounding of one forward pass; float64 and nothing else by default.

    int8: linear layers as the kernels of quantized weights compute them, with activations in int8.
    noise: a seed; every result is then off by as much as float32 may make it, at random in the size of the error bound.
        A dot product gets an error of eps |w| |x|, twice the unit roundoff: rounding errors of data around zero add up
        like a random walk, in any order of summation (Higham & Mary, SIAM J. Sci. Comput. 42(5), 2020). Running the
        model a few times like this shows how far errors grow on their way to the logits (Monte Carlo arithmetic,
        Parker 1997).
    """

    def __init__(self, *, int8: bool = False, noise: int | None = None) -> None:
        self.int8 = int8
        self._random = None if noise is None else np.random.default_rng(noise)

    def linear(self, weight: Array, x: Array) -> Array:
        """A layer of the model: x [n, cols], weight [rows, cols] -> [n, rows]."""
        return self.product(weight, quantize_rows(x) if self.int8 else x)

    def product(self, a: Array, x: Array) -> Array:
        """x [n, cols], a [rows, cols] -> [n, rows]."""
        y: Array = x @ a.T
        if self._random is not None:
            size = np.linalg.norm(x, axis=-1)[:, None] * np.linalg.norm(a, axis=-1)
            y = y + EPS32 * self._random.standard_normal(y.shape) * size
        return y

    def rounded(self, y: Array, terms: int = 1) -> Array:
        """A value that a kernel has just computed; `terms`: how many values of its sign it is the sum of."""
        if self._random is not None:
            y = y * (1.0 + EPS32 * np.sqrt(terms) * self._random.standard_normal(y.shape))
        return y


def quantize_rows(x: Array, group: int = 32) -> Array:
    """x [n, cols] rounded to int8 codes with one scale (absmax / 127) per group, and back.

    Scale and codes are computed in float32 like the kernels': embeddings in 4 bit are full of exact ties.
    """
    n, cols = x.shape
    padded = np.zeros((n, -(-cols // group) * group), np.float32)
    padded[:, :cols] = x
    groups = padded.reshape(n, -1, group)
    top = np.abs(groups).max(axis=-1, keepdims=True)
    codes = np.rint(groups * (np.float32(127) / np.where(top > 0, top, np.float32(1))))
    back: Array = (codes * (top / np.float32(127)).astype(np.float64)).reshape(n, -1)[:, :cols]
    return back
