"""Model families as data: a config.json in, shapes, tensor names and constants of the forward pass out."""

from hotset.models.gate import least_gate
from hotset.models.gguf import GgufImport, from_gguf, row_order
from hotset.models.registry import families, resolve
from hotset.models.spec import Model, TensorSpec

__all__ = ["GgufImport", "Model", "TensorSpec", "families", "from_gguf", "least_gate", "resolve", "row_order"]
