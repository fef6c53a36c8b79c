"""The rounding that a forward pass is computed with, so that one twin serves as oracle and as error estimate."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
EPS32 = float(np.finfo(np.float32).eps)


class Exact:
    """No rounding beyond NumPy's own."""

    def linear(self, weight: Array, x: Array) -> Array:
        """x [n, cols], weight [rows, cols] -> [n, rows]."""
        return x @ weight.T

    def rounded(self, y: Array, terms: int = 1) -> Array:
        """A value that a kernel has just computed, as a sum of `terms` terms of about its own size."""
        return y


class Float32Noise(Exact):
    """Every result off by as much as float32 arithmetic may make it: random, in the size of the error bound.

    A dot product gets an error of eps |w| |x|, twice the unit roundoff: rounding errors of data around zero add up like
    a random walk, in any order of summation (Higham & Mary, SIAM J. Sci. Comput. 42(5), 2020). Running the model a few
    times like this shows how far errors grow on their way to the logits (Monte Carlo arithmetic, Parker 1997).
    """

    def __init__(self, seed: int, eps: float = EPS32) -> None:
        self.random = np.random.default_rng(seed)
        self.eps = eps

    def linear(self, weight: Array, x: Array) -> Array:
        size = np.linalg.norm(x, axis=-1)[:, None] * np.linalg.norm(weight, axis=-1)
        y: Array = x @ weight.T + self._noise(size.shape) * size
        return y

    def rounded(self, y: Array, terms: int = 1) -> Array:
        off: Array = y * (1.0 + self._noise(y.shape) * np.sqrt(terms))
        return off

    def _noise(self, shape: tuple[int, ...]) -> Array:
        return self.eps * self.random.standard_normal(shape)


class Int8Activations(Exact):
    """Linear layers as the kernels of quantized weights compute them: activations in int8, groups of 32."""

    def linear(self, weight: Array, x: Array) -> Array:
        return quantize_rows(x) @ weight.T


def quantize_rows(x: Array, group: int = 32) -> Array:
    """x [n, cols] rounded to int8 codes with one scale (absmax / 127) per group, and back."""
    n, cols = x.shape
    padded = np.zeros((n, -(-cols // group) * group), dtype=x.dtype)
    padded[:, :cols] = x
    groups = padded.reshape(n, -1, group)
    scale = np.abs(groups).max(axis=-1, keepdims=True) / 127.0
    codes = np.rint(groups / np.where(scale > 0, scale, 1.0))
    back: Array = (codes * scale).reshape(n, -1)[:, :cols]
    return back
