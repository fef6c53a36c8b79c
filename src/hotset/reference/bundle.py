"""Takes bundles of neurons apart, index by index as native/quant/neuron.h describes them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hotset.quant.neurons import GROUP, LANE_GROUPS, NeuronLayout
from hotset.reference.arithmetic import Array


def decode_bundle(layout: NeuronLayout, bundle: NDArray[np.uint8]) -> dict[str, Array]:
    """One neuron's vectors [hidden] by role, from the bytes of its bundle; what follows them is left alone."""
    size = layout.vector_bytes
    return {
        role: decode_vector(layout.fmt, bundle[i * size : (i + 1) * size].tobytes(), layout.hidden)
        for i, role in enumerate(layout.roles)
    }


def decode_vector(fmt: str, vector: bytes, cols: int) -> Array:
    """The exact values [cols] of one vector."""
    out, position, groups = np.zeros(-(-cols // GROUP) * GROUP), 0, -(-cols // GROUP)
    for first in range(0, groups, LANE_GROUPS):
        lanes = min(LANE_GROUPS, groups - first)
        scale = np.frombuffer(vector, "<f2", lanes, position).astype(np.float64)
        steps = 4 if fmt == "q4_0" else 8
        codes = np.frombuffer(vector, np.uint8, steps * lanes * 4, position + 2 * lanes).reshape(steps, lanes, 4)
        for j, lane, b in np.ndindex(codes.shape):
            column, code = (first + lane) * GROUP + 4 * j + b, int(codes[j, lane, b])
            if fmt == "q4_0":
                out[column], out[column + 16] = scale[lane] * ((code & 15) - 8), scale[lane] * ((code >> 4) - 8)
            else:
                out[column] = scale[lane] * (code - 128)
        position += lanes * (2 + 4 * steps)
    return out[:cols]
