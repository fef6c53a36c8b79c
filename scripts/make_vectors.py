"""Makes tests/golden/vectors: tiny random models of every family with the logits that transformers computes for them.

    pip install "torch==2.13.0" transformers
    python scripts/make_vectors.py [NAME ...]

Each folder holds config.json (in the spelling of transformers 4 or 5), model.safetensors and expected.safetensors:
tokens [n], logits [n, vocab] after each of them, continuation [m] (greedy, with transformers' own cache) and its logits
[m, vocab]. All computed in float32 with eager attention, from weights that the stored dtype holds exactly. Families
whose code comes with their checkpoints are computed by the family they derive from, with what differs put in.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

FOLDER = Path(__file__).parent.parent / "tests" / "golden" / "vectors"
CONTINUATION = 12  # greedy tokens
LEAST_GAP = 0.05  # between the two best logits wherever argmax is compared; rounding must not swap them
# Sharp attention, logits far apart, and blocks that matter beside the embedding (or a tied head repeats the token).
GAIN = {
    **{"q_proj": 1.6, "k_proj": 1.6, "o_proj": 3.0, "out_proj": 3.0, "down_proj": 4.0, "fc2": 3.0, "lm_head": 3.0},
    **{"query_key_value": 1.6, "self_attention.dense": 2.0, "dense_4h_to_h": 3.0},
}


@dataclass(frozen=True)
class Case:
    """One model. `config` holds what differs from BASE; a value of None removes a key."""

    name: str
    model_type: str
    architecture: str
    config: dict[str, Any] = field(default_factory=dict)
    tokens: int = 56
    dtype: torch.dtype = torch.bfloat16
    parent: dict[str, Any] | None = None  # keys to replace for the config of the family that transformers has
    put_in: Callable[[torch.nn.Module, dict[str, Any]], None] = lambda model, config: None


BASE: dict[str, Any] = {
    "vocab_size": 192,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
LLAMA = ("llama", "LlamaForCausalLM")


class FatRelu(torch.nn.Module):
    """ProSparse's activation: x above the threshold, else 0."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.threshold(x, self.threshold, 0.0)


def put_in_fatrelu(model: torch.nn.Module, config: dict[str, Any]) -> None:
    for layer in model.model.layers:
        layer.mlp.act_fn = FatRelu(config["hidden_act_param"])


def put_in_drelu(model: torch.nn.Module, config: dict[str, Any]) -> None:
    """The activation on up too."""
    for layer in model.model.layers:
        layer.mlp.up_proj.register_forward_hook(lambda module, args, out: torch.relu(out))


def put_in_scales(model: torch.nn.Module, config: dict[str, Any]) -> None:
    """MiniCPM's: on the embedding, on what attention and FFN add, and before the head."""
    if config["hidden_act"] == "fatrelu":
        put_in_fatrelu(model, config)
    residual = config["scale_depth"] / config["num_hidden_layers"] ** 0.5
    model.model.embed_tokens.register_forward_hook(lambda module, args, out: out * config["scale_emb"])
    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(lambda module, args, out: (out[0] * residual, *out[1:]))
        layer.mlp.register_forward_hook(lambda module, args, out: out * residual)
    width = config["hidden_size"] / config["dim_model_base"]
    model.lm_head.register_forward_pre_hook(lambda module, args: (args[0] / width,))


AS_LLAMA: dict[str, Any] = {"architectures": [LLAMA[1]], "model_type": LLAMA[0], "hidden_act": "silu"}
AS_MISTRAL: dict[str, Any] = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
OPT: dict[str, Any] = {
    **dict.fromkeys(("intermediate_size", "num_key_value_heads", "rms_norm_eps", "rope_theta")),
    "ffn_dim": 104,
    "word_embed_proj_dim": 64,
    "do_layer_norm_before": True,
    "activation_function": "relu",
}
FALCON: dict[str, Any] = dict.fromkeys(("intermediate_size", "num_key_value_heads", "rms_norm_eps"))

CASES = (
    # Sizes that fill neither the 16 rows nor the 64 columns of a packed block, nor a group of 32.
    Case("llama", *LLAMA, {"hidden_size": 72, "intermediate_size": 100, "num_attention_heads": 6, "vocab_size": 187}),
    Case(
        "llama_biases_tied",
        *LLAMA,
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "head_dim": 24, "hidden_act": "gelu"},
        dtype=torch.float16,
    ),
    Case("llama_linear", *LLAMA, {"rope_scaling": {"type": "linear", "factor": 4.0}}, dtype=torch.float16),
    # Both the prompt and its continuation lie beyond the original context.
    Case(
        "llama_dynamic",
        *LLAMA,
        {"max_position_embeddings": 32, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    ),
    Case(
        "llama_llama3",
        *LLAMA,
        {
            "num_key_value_heads": 1,
            "rope_theta": None,
            "rope_parameters": {
                "rope_theta": 500.0,
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    Case(
        "llama_yarn",
        *LLAMA,
        {
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "beta_fast": 16.0,
                "beta_slow": 2.0,
            }
        },
    ),
    Case(
        "llama_yarn_mscale",
        *LLAMA,
        {
            "rope_theta": None,
            "rope_parameters": {
                "rope_theta": 1000.0,
                "rope_type": "yarn",
                "factor": 8.0,
                "original_max_position_embeddings": 32,
                "mscale": 0.7,
                "mscale_all_dim": 1.3,
                "truncate": False,
            },
        },
    ),
    Case("mistral", "mistral", "MistralForCausalLM", {"sliding_window": 16, "head_dim": 24}),
    Case(
        "qwen2",
        "qwen2",
        "Qwen2ForCausalLM",
        {
            "num_hidden_layers": 3,
            "intermediate_size": 64,
            "use_sliding_window": True,
            "sliding_window": 10,
            "max_window_layers": 1,
        },
    ),
    Case(
        "qwen2_tied",
        "qwen2",
        "Qwen2ForCausalLM",
        {
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            "rope_theta": None,
            "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
            "layer_types": ["full_attention", "full_attention"],
            "sliding_window": None,
            "use_sliding_window": False,
        },
    ),
    Case("qwen3", "qwen3", "Qwen3ForCausalLM", {"head_dim": 32, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0}),
    Case(
        "gemma3",
        "gemma3_text",
        "Gemma3ForCausalLM",
        {
            "num_hidden_layers": 4,
            "intermediate_size": 64,
            "head_dim": 16,
            "sliding_window": 12,
            "sliding_window_pattern": 2,
            "query_pre_attn_scalar": 24,
            "rope_theta": 1000000.0,
            "rope_local_base_freq": 10000.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "tie_word_embeddings": True,
            "final_logit_softcapping": 30.0,
            "hidden_activation": "gelu_pytorch_tanh",
        },
    ),
    Case(
        "gemma3_layer_types",
        "gemma3_text",
        "Gemma3ForCausalLM",
        {
            "num_hidden_layers": 3,
            "intermediate_size": 80,
            "head_dim": 24,
            "sliding_window": 20,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "query_pre_attn_scalar": 24,
            "rope_theta": None,
            "rope_parameters": {
                "full_attention": {"rope_theta": 500000.0, "rope_type": "default"},
                "sliding_attention": {"rope_theta": 2000.0, "rope_type": "default"},
            },
            "tie_word_embeddings": True,
        },
    ),
    Case("olmo2", "olmo2", "Olmo2ForCausalLM", {"rope_theta": 500000.0, "rms_norm_eps": 1e-6}),
    Case("opt", "opt", "OPTForCausalLM", {**OPT, "tie_word_embeddings": True}),
    Case(
        "opt_no_bias",
        "opt",
        "OPTForCausalLM",
        {**OPT, "enable_bias": False, "ffn_dim": 72, "vocab_size": 96, "max_position_embeddings": 72},
        dtype=torch.float32,
    ),
    Case("llama_relu", *LLAMA, {"hidden_act": "relu", "pretraining_tp": 1}),
    Case(
        "prosparse",
        "sparsellama",
        "SparseLlamaForCausalLM",
        {"hidden_act": "fatrelu", "hidden_act_param": 0.25},
        parent=AS_LLAMA,
        put_in=put_in_fatrelu,
    ),
    Case(
        "bamboo",
        "bamboo",
        "BambooForCausalLM",
        {"hidden_act": "relu", "sliding_window": 24, "intermediate_size": 160},
        parent=AS_MISTRAL,
        put_in=put_in_drelu,
    ),
    Case(
        "minicpm_s",
        "minicpm",
        "MiniCPMForCausalLM",
        {
            "hidden_act": "fatrelu",
            "hidden_act_param": 0.1,
            "scale_emb": 3.0,
            "scale_depth": 1.4,
            "dim_model_base": 40,
            "tie_word_embeddings": True,
            "num_hidden_layers": 3,
        },
        parent=AS_LLAMA,
        put_in=put_in_scales,
    ),
    Case("arcee", "arcee", "ArceeForCausalLM", {"hidden_act": "relu2", "mlp_bias": True}),
    Case(
        "nemotron",
        "nemotron",
        "NemotronForCausalLM",
        {"hidden_act": "relu2", "rms_norm_eps": None, "norm_eps": 1e-5, "partial_rotary_factor": 0.5},
    ),
    # The three layouts of query_key_value: one KV head; groups; a KV head for each head.
    Case(
        "falcon",
        "falcon",
        "FalconForCausalLM",
        {**FALCON, "hidden_size": 56, "num_attention_heads": 7, "tie_word_embeddings": True},
    ),
    Case(
        "falcon_grouped",
        "falcon",
        "FalconForCausalLM",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 160, "activation": "relu"},
    ),
    Case(
        "falcon_in_turn",
        "falcon",
        "FalconForCausalLM",
        {
            **FALCON,
            "multi_query": False,
            "parallel_attn": False,
            "bias": True,
            "ffn_hidden_size": 104,
            "activation": "relu",
        },
    ),
)


def config_of(case: Case) -> dict[str, Any]:
    """The config.json as a file would have it."""
    values = {**BASE, **case.config}
    head = {"architectures": [case.architecture], "model_type": case.model_type, "bos_token_id": 1, "eos_token_id": 2}
    # null has a meaning of its own where a window is concerned; elsewhere the key goes.
    return head | {key: value for key, value in values.items() if value is not None or key == "sliding_window"}


def config_known_to_transformers(folder: Path, case: Case) -> Any:
    if case.parent is None:
        return AutoConfig.from_pretrained(folder)
    return AutoConfig.for_model(**(config_of(case) | case.parent))


def build(folder: Path, case: Case, seed: int) -> torch.nn.Module:
    """The model that transformers makes of folder/config.json, with random weights."""
    config = config_known_to_transformers(folder, case)
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config).to(torch.float32).eval()
    case.put_in(model, config_of(case))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(_random(name, weight.shape, generator, case).to(case.dtype))
    return model


def _random(name: str, shape: torch.Size, generator: torch.Generator, case: Case) -> torch.Tensor:
    noise = torch.randn(shape, generator=generator)
    if name.endswith("bias"):
        return 0.2 * noise
    if len(shape) == 1 and case.model_type.startswith("gemma"):
        # What is added to 1. The embedding is scaled up, so the blocks' outputs must be, to matter beside it.
        return 0.2 * noise + (4.0 if "post_" in name else 0.0)
    if len(shape) == 1:
        return 0.2 * noise + 1.0
    if "embed" in name:
        return (0.25 if case.model_type.startswith("gemma") else 0.5) * noise
    gain = next((value for key, value in GAIN.items() if key in name), 1.0)
    return gain * noise / shape[1] ** 0.5


@torch.no_grad()
def expected(model: torch.nn.Module, case: Case, seed: int) -> dict[str, torch.Tensor]:
    """Logits of a random prompt in one forward, and of a greedy continuation token by token."""
    vocab = model.config.vocab_size
    tokens = torch.randint(3, vocab, (1, case.tokens), generator=torch.Generator().manual_seed(seed))
    out = model(tokens, use_cache=True)
    continuation, logits = [], []
    last = out.logits[0, -1]
    for _ in range(CONTINUATION):
        continuation.append(int(last.argmax()))
        step = model(torch.tensor([[continuation[-1]]]), past_key_values=out.past_key_values, use_cache=True)
        last = step.logits[0, -1]
        logits.append(last)
    return {
        "tokens": tokens[0].to(torch.int32),
        "logits": out.logits[0].contiguous(),
        "continuation": torch.tensor(continuation, dtype=torch.int32),
        "continuation_logits": torch.stack(logits),
    }


def least_gap(values: dict[str, torch.Tensor]) -> float:
    """Smallest distance of the two best logits, over the end of the prompt and the continuation."""
    rows = torch.cat([values["logits"][-1:], values["continuation_logits"]])
    best = rows.topk(2).values
    return float((best[:, 0] - best[:, 1]).min())


def clearest(folder: Path, case: Case, weight_seed: int) -> dict[str, torch.Tensor]:
    """The first of some prompts whose greedy continuation is clear and does not just repeat itself."""
    for seed in range(200):
        # A new model each time: dynamic RoPE remembers the longest sequence it has seen.
        values = expected(build(folder, case, weight_seed), case, seed)
        if least_gap(values) >= LEAST_GAP and len(set(values["continuation"].tolist())) > CONTINUATION // 2:
            return values
    raise SystemExit(f"{case.name}: no prompt gives a varied continuation with logits {LEAST_GAP} apart")


def stored_tensors(model: torch.nn.Module, case: Case) -> dict[str, torch.Tensor]:
    """What a checkpoint of this model holds: every parameter once, tied ones under the embedding's name."""
    return {name: weight.detach().to(case.dtype).contiguous() for name, weight in model.named_parameters()}


def write(folder: Path, case: Case, seed: int) -> None:
    """Config and weights of one case."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_of(case), indent=2) + "\n")
    save_file(stored_tensors(build(folder, case, seed), case), folder / "model.safetensors", metadata={"format": "pt"})


def report(folder: Path, values: dict[str, torch.Tensor]) -> None:
    size = sum(path.stat().st_size for path in folder.iterdir())
    std, gap, variety = float(values["logits"].std()), least_gap(values), len(set(values["continuation"].tolist()))
    print(f"{folder.name:20} {size / 1024:4.0f} KiB  std {std:.2f}  gap {gap:.3f}  {variety} different tokens")


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    for seed, case in enumerate(CASES):
        if names and case.name not in names:
            continue
        folder = FOLDER / case.name
        write(folder, case, seed)
        values = clearest(folder, case, seed)
        save_file(values, folder / "expected.safetensors")
        report(folder, values)


if __name__ == "__main__":
    main(sys.argv[1:])
