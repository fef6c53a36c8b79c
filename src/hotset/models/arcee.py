"""Arcee AFM: Llama's attention and norms around a plain FFN with ReLU².

Source: transformers models/arcee.
"""

from dataclasses import replace

from hotset.models import llama
from hotset.models.reader import Reader
from hotset.models.spec import Family, Parts


def build(cfg: Reader) -> Parts:
    parts = llama.build(cfg, act="relu2", norm_eps=1e-5, max_position=4096)
    names = {role: name for role, name in parts.names.items() if role not in ("gate", "gate_bias")}
    return replace(parts, config=replace(parts.config, gated=False), names=names)


FAMILY = Family(name="arcee", architectures=("ArceeForCausalLM",), model_types=("arcee",), build=build)
