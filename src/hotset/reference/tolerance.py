"""How far logits computed in float32 may lie from the exact ones, for this model and these tokens."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hotset.reference.arithmetic import Arithmetic, Array

SAMPLES = 6
SIGMAS = 8.0  # a row's largest error among some hundred logits lies near 3; both sides of a comparison may err


def rounding_tolerance(logits: Callable[[Arithmetic], Array], *, int8: bool = False) -> Array:
    """Allowed error of each row of logits, [rows, 1].

    Follows from length, epsilon and norms of every operation on the way (see Arithmetic) and from how this model passes
    errors on.

    Args:
        logits: computes [rows, vocab] with the arithmetic it is given.
        int8: whether that arithmetic keeps activations in int8, whose codes rounding can tip over.
    """
    exact = logits(Arithmetic(int8=int8))
    errors = np.stack([logits(Arithmetic(int8=int8, noise=seed)) - exact for seed in range(SAMPLES)])
    tolerance: Array = SIGMAS * np.sqrt(np.mean(errors**2, axis=(0, 2)))[:, None]
    return tolerance
