"""Weight formats by their native names, and the choice of one for each class of tensors."""

from hotset.quant.formats import (
    COL_BLOCK,
    FORMATS,
    GGML_TYPES,
    ROW_BLOCK,
    Format,
    format_named,
    packed_bytes,
)
from hotset.quant.neurons import NEURON_FORMATS, NeuronLayout, neuron_format
from hotset.quant.plan import CLASSES, HF_DEFAULT, QuantPlan, parse_quant

__all__ = [
    "CLASSES",
    "COL_BLOCK",
    "FORMATS",
    "GGML_TYPES",
    "HF_DEFAULT",
    "NEURON_FORMATS",
    "ROW_BLOCK",
    "Format",
    "NeuronLayout",
    "QuantPlan",
    "format_named",
    "neuron_format",
    "packed_bytes",
    "parse_quant",
]
