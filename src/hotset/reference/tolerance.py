"""How far logits computed in float32 may lie from the exact ones, for this model and these tokens."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hotset.reference.arithmetic import Array, Exact, Float32Noise

SAMPLES = 6
SIGMAS = 8.0  # a row's largest error among some hundred logits lies near 3; both sides of a comparison may err


def rounding_tolerance(logits: Callable[[Exact], Array], exact: Array | None = None) -> Array:
    """Allowed error of each row of logits, [rows, 1].

    logits: computes [rows, vocab] with the arithmetic it is given. The tolerance follows from length, epsilon and norms
    of every operation on the way (arithmetic.Float32Noise) and from how this model passes errors on.
    """
    if exact is None:
        exact = logits(Exact())
    errors = np.stack([logits(Float32Noise(seed)) - exact for seed in range(SAMPLES)])
    tolerance: Array = SIGMAS * np.sqrt(np.mean(errors**2, axis=(0, 2)))[:, None]
    return tolerance
