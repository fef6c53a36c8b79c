"""Whether the gate of an FFN tells which of its neurons are zero."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from hotset.config import ModelConfig
from hotset.models.spec import Model

ZERO_BELOW = ("relu", "relu2", "shifted_relu")  # activations that are exactly 0 for a whole range of inputs
_TINY = float(np.finfo(np.float32).tiny)


def least_gate(model: Model, names: Collection[str]) -> float | None:
    """The least product of gate and input with which a neuron can be other than zero; None if every one can.

    names: of the tensors there are. A gate with a bias tells nothing before the bias is added.
    """
    if any(spec.role == "gate_bias" and spec.name in names for spec in model.tensors):
        return None
    return _least(model.config)


def _least(config: ModelConfig) -> float | None:
    threshold = config.gate_threshold if config.act_gate == "shifted_relu" else 0.0
    if not config.gated or config.act_gate not in ZERO_BELOW or threshold < 0:
        return None
    return max(_TINY, float(np.nextafter(np.float32(threshold), np.float32(np.inf))))
