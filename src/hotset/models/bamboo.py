"""Bamboo 7B and TurboSparse-Mistral: Mistral with dReLU, which is relu(gate) * relu(up).

Sources: modeling_bamboo.py of the checkpoints; TurboSparse arXiv:2406.05955. TurboSparse checkpoints bring a predictor
for each FFN, and their own code computes only the neurons that it chooses; dense computation takes them all.
"""

from dataclasses import replace

from hotset.models import mistral
from hotset.models.reader import Reader
from hotset.models.spec import Family, Names, Parts

# Of the hidden state before the norm: sigmoid(out @ relu(in @ x)) rounds to 1 for a neuron to compute.
PREDICTOR: Names = {
    "predictor_in": "model.layers.{}.mlp.predictor.fc1.weight",  # [rank of the layer, hidden]
    "predictor_out": "model.layers.{}.mlp.predictor.fc2.weight",  # [ffn, rank]
}


def build(cfg: Reader) -> Parts:
    parts = mistral.build(cfg)
    c = parts.config
    return replace(
        parts,
        config=replace(c, act_up=c.act_gate, up_threshold=c.gate_threshold),
        predictor=PREDICTOR,
        notes=(
            "all neurons are computed, not only those that predictors in the checkpoint choose; the store keeps the "
            "predictors for `hotset train-predictor --published`",
        ),
    )


FAMILY = Family(
    name="bamboo",
    architectures=("BambooForCausalLM",),
    model_types=("bamboo",),
    build=build,
    inert=frozenset({"auto_map"}),
)
