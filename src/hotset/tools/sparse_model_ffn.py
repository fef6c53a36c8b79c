"""A dReLU FFN whose activations have wanted statistics on given inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotset.tools.sparse_model_math import Floats, Random, Stored
from hotset.tools.sparse_model_workload import Workload

PLANTED_RANK = 3 / 32  # of the predictable directions, as a share of the hidden size
DOWN_SPREAD = 0.25  # of the logarithm of the columns' norms
_SAMPLES = 256  # tokens that latents are measured on, and rows that the output is measured on


@dataclass(frozen=True, slots=True)
class GatedInput:
    """Gate and up as the store holds them, [ffn, hidden]."""

    gate: Floats
    up: Floats

    def activations(self, x: Floats) -> Floats:
        """relu(gate x) * relu(up x), [tokens, ffn]."""
        hidden = x @ self.gate.T
        np.maximum(hidden, 0, out=hidden)
        up = x @ self.up.T
        hidden *= np.maximum(up, 0, out=up)
        return hidden


def make_input(workload: Workload, zeros: float, ffn: int, x: Floats, random: Random, stored: Stored) -> GatedInput:
    """Gate and up for inputs x [tokens, hidden], with the share `zeros` of products at zero.

    Each row is noise, partly in a few directions common to all rows, scaled to a latent variance of 1 on x, plus as
    much of the mean input as makes the latent's mean what it should be.
    """
    mean = x.mean(axis=0)
    sample = x[:: max(1, len(x) // _SAMPLES)] - mean
    gate, up = _noise(workload, ffn, x.shape[1], random)
    latents = []
    for rows in (gate, up):
        latent = sample @ rows.T
        size = np.sqrt(np.square(latent).mean(axis=0))
        rows /= size[:, None]
        latents.append(latent / size)
    means = _means(workload, ffn, random("means"))
    means += _offset(latents[0] + means[0], latents[1] + means[1], zeros)
    reader = mean / np.square(mean).sum()
    for rows, wanted in zip((gate, up), means, strict=True):
        rows += np.outer(wanted - rows @ mean, reader)
    return GatedInput(stored(gate), stored(up))


def _noise(workload: Workload, ffn: int, hidden: int, random: Random) -> tuple[Floats, Floats]:
    rank = max(1, round(PLANTED_RANK * hidden))
    basis = np.linalg.qr(random("basis").standard_normal((hidden, rank)))[0].T.astype(np.float32)
    gate, other = (_rows(random(role), ffn, basis, workload.predictable) for role in ("gate", "up"))
    common = workload.noise_correlation
    other *= np.float32(np.sqrt(1 - common**2))
    other += np.float32(common) * gate
    return gate, other


def _rows(rng: np.random.Generator, ffn: int, basis: Floats, share: float) -> Floats:
    """Rows [ffn, hidden] of length about 1, the share of their squares being in `basis` [rank, hidden]."""
    rank, hidden = basis.shape
    planted = rng.standard_normal((ffn, rank), np.float32) @ (basis * np.float32(np.sqrt(share / rank)))
    planted += rng.standard_normal((ffn, hidden), np.float32) * np.float32(np.sqrt((1 - share) / hidden))
    return planted


def _means(workload: Workload, ffn: int, rng: np.random.Generator) -> Floats:
    """Means of gate and up latents before the common offset, [2, ffn]."""
    gate, other = rng.standard_normal((2, ffn)) * workload.mean_spread
    common = workload.mean_correlation
    return np.array([gate, common * gate + np.sqrt(1 - common**2) * other], np.float32)


def _offset(gate: Floats, up: Floats, zeros: float) -> np.float32:
    """What to add to both latents so that the wanted share of them are not both positive."""
    least = np.minimum(gate, up)
    return np.float32(-np.quantile(least, zeros))


def make_down(
    activations: Floats, hidden: int, power: float, constant: Floats, random: Random, stored: Stored
) -> Floats:
    """Down [hidden, ffn]: what changes in the output has mean square `power`, its mean is `constant` [hidden].

    activations: [tokens, ffn]. The mean is set by one matrix of rank one along the mean activations.
    """
    ffn = activations.shape[1]
    rng = random("down")
    down = rng.standard_normal((hidden, ffn), np.float32)
    down *= np.exp(DOWN_SPREAD * rng.standard_normal(ffn)).astype(np.float32)
    mean = activations.mean(axis=0)
    output = (activations - mean) @ down[:_SAMPLES].T
    down *= np.float32(np.sqrt(power / np.square(output).mean()))
    down += np.outer(constant - down @ mean, mean / np.square(mean).sum())
    return stored(down)


def down_norms(down: Floats) -> NDArray[np.float32]:
    """‖down column‖ of each neuron, [ffn]."""
    norms: NDArray[np.float32] = np.sqrt(np.einsum("ij,ij->j", down, down))
    return norms
