"""MiniCPM 1B and 2B, and MiniCPM-S with its shifted ReLU: Llama's shape, scaled so that widths and depths compare.

Source: modeling_minicpm.py of the checkpoints; arXiv:2404.06395 (table 7: scale_emb, scale_depth, dim_model_base).
"""

from dataclasses import replace

from hotset.models import llama
from hotset.models.reader import Reader
from hotset.models.spec import Family, Parts


def build(cfg: Reader) -> Parts:
    parts = llama.build(cfg, tied=True)
    c = parts.config
    cfg.only("num_experts", 0, why="hotset does not route to experts")
    cfg.only("sparse_config", why="hotset computes all of attention")
    config = replace(
        c,
        embedding_scale=cfg.positive("scale_emb", 1.0),
        residual_scale=cfg.positive("scale_depth", 1.0) / len(c.layers) ** 0.5,
        logit_scale=cfg.positive("dim_model_base", 1.0) / c.hidden,
    )
    return replace(parts, config=config)


FAMILY = Family(
    name="minicpm",
    architectures=("MiniCPMForCausalLM",),
    model_types=("minicpm",),
    build=build,
    inert=frozenset({"auto_map", "pretraining_tp", "mup_denominator"}),
)
