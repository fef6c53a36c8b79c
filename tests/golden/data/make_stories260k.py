"""Makes the smallest real model: stories260K (llama2.c, MIT) as a Hugging Face folder, and its greedy story.

    python make_stories260k.py stories260K.bin tok512.bin        both of llama2.c's own formats

The story is computed here from the original file by a NumPy forward pass that follows llama2.c (interleaved RoPE,
no KV pages, no conversion), so that it shares nothing with what it tests.
"""

import json
import struct
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from hotset.tokenizer.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, SpmRules, Vocabulary, spm_json

OUT = Path(__file__).parent / "stories260k"
PROMPT = "Once upon a time"
NEW_TOKENS = 200
Weights = dict[str, np.ndarray]


def read_checkpoint(path: str) -> tuple[dict[str, int], Weights]:
    """Header and tensors of llama2.c's version 0."""
    data = Path(path).read_bytes()
    names = ("dim", "hidden", "layers", "heads", "kv_heads", "vocab", "context")
    c = dict(zip(names, struct.unpack("7i", data[:28]), strict=True))
    flat, at = np.frombuffer(data, np.float32, offset=28), 0
    layers, dim, kv = c["layers"], c["dim"], c["dim"] * c["kv_heads"] // c["heads"]
    shapes = {
        "embed": (c["vocab"], dim),
        "attn_norm": (layers, dim),
        "q": (layers, dim, dim),
        "k": (layers, kv, dim),
        "v": (layers, kv, dim),
        "o": (layers, dim, dim),
        "ffn_norm": (layers, dim),
        "gate": (layers, c["hidden"], dim),
        "down": (layers, dim, c["hidden"]),
        "up": (layers, c["hidden"], dim),
        "final_norm": (dim,),
    }
    weights = {}
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        weights[name], at = flat[at : at + size].reshape(shape), at + size
    return c, weights


def read_vocabulary(path: str) -> tuple[list[str], list[float]]:
    data, at = Path(path).read_bytes(), 4
    tokens, scores = [], []
    while at < len(data):
        score, length = struct.unpack("fi", data[at : at + 8])
        tokens.append(data[at + 8 : at + 8 + length].decode())
        scores.append(score)
        at += 8 + length
    return tokens, scores


def norm(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean() + 1e-5) * w


def rotate(x: np.ndarray, position: int) -> np.ndarray:
    """x [heads, head_dim]; neighbours are pairs, as in llama2.c."""
    size = x.shape[1]
    angle = position / 10000.0 ** (np.arange(0, size, 2) / size)
    pair = (x[:, 0::2] + 1j * x[:, 1::2]) * np.exp(1j * angle)
    return np.stack([pair.real, pair.imag], axis=2).reshape(x.shape)


class Forward:
    """One sequence, one token at a time, in double precision."""

    def __init__(self, c: dict[str, int], w: Weights) -> None:
        self.c, self.w = c, {name: value.astype(np.float64) for name, value in w.items()}
        self.keys: list[list[np.ndarray]] = [[] for _ in range(c["layers"])]
        self.values: list[list[np.ndarray]] = [[] for _ in range(c["layers"])]

    def step(self, token: int, position: int) -> np.ndarray:
        w, x = self.w, self.w["embed"][token]
        for layer in range(self.c["layers"]):
            x = x + w["o"][layer] @ self.attend(layer, norm(x, w["attn_norm"][layer]), position)
            h = norm(x, w["ffn_norm"][layer])
            gate = w["gate"][layer] @ h
            x = x + w["down"][layer] @ (gate / (1 + np.exp(-gate)) * (w["up"][layer] @ h))
        return w["embed"] @ norm(x, w["final_norm"])

    def attend(self, layer: int, x: np.ndarray, position: int) -> np.ndarray:
        heads, kv_heads = self.c["heads"], self.c["kv_heads"]
        q = rotate((self.w["q"][layer] @ x).reshape(heads, -1), position)
        self.keys[layer].append(rotate((self.w["k"][layer] @ x).reshape(kv_heads, -1), position))
        self.values[layer].append((self.w["v"][layer] @ x).reshape(kv_heads, -1))
        k = np.repeat(np.stack(self.keys[layer]), heads // kv_heads, axis=1)  # [tokens, heads, head_dim]
        v = np.repeat(np.stack(self.values[layer]), heads // kv_heads, axis=1)
        scores = np.einsum("hd,thd->ht", q, k) / np.sqrt(q.shape[1])
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.einsum("ht,thd->hd", p / p.sum(axis=1, keepdims=True), v).ravel()


def encode(text: str, tokens: list[str], scores: list[float]) -> list[int]:
    """llama2.c's encoder for ASCII text: join the best-scored neighbours until none is a token."""
    ids = [tokens.index(c) for c in " " + text]
    while True:
        pairs = [(tokens[a] + tokens[b], i) for i, (a, b) in enumerate(pairwise(ids))]
        known = [(-scores[tokens.index(text)], i, tokens.index(text)) for text, i in pairs if text in tokens]
        if not known:
            return [1, *ids]
        _, i, merged = min(known)
        ids[i : i + 2] = [merged]


def story(c: dict[str, int], w: Weights, tokens: list[str], scores: list[float]) -> dict[str, object]:
    ids = prompt = encode(PROMPT, tokens, scores)
    model, logits, gaps = Forward(c, w), np.zeros(0), []
    for position in range(len(prompt) + NEW_TOKENS - 1):
        logits = model.step(ids[position], position)
        if position + 1 >= len(prompt):
            first, second = np.sort(logits)[::-1][:2]
            gaps.append(first - second)
            ids = [*ids, int(logits.argmax())]
    text = "".join(tokens[i] for i in ids[1:]).removeprefix(" ").replace("<0x0A>", "\n")
    return {"prompt": PROMPT, "ids": ids, "text": text, "least_gap": round(float(min(gaps)), 4)}


def hugging_face(c: dict[str, int], w: Weights) -> Weights:
    """Names and row order of transformers: halves of a head are rotary pairs, not neighbours."""

    def halves(rows: np.ndarray, heads: int) -> np.ndarray:
        return rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)

    out = {"model.embed_tokens.weight": w["embed"], "model.norm.weight": w["final_norm"]}
    for i in range(c["layers"]):
        base = f"model.layers.{i}."
        out |= {
            base + "input_layernorm.weight": w["attn_norm"][i],
            base + "self_attn.q_proj.weight": halves(w["q"][i], c["heads"]),
            base + "self_attn.k_proj.weight": halves(w["k"][i], c["kv_heads"]),
            base + "self_attn.v_proj.weight": w["v"][i],
            base + "self_attn.o_proj.weight": w["o"][i],
            base + "post_attention_layernorm.weight": w["ffn_norm"][i],
            base + "mlp.gate_proj.weight": w["gate"][i],
            base + "mlp.up_proj.weight": w["up"][i],
            base + "mlp.down_proj.weight": w["down"][i],
        }
    return {name: np.ascontiguousarray(value) for name, value in out.items()}


def config(c: dict[str, int]) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": c["dim"],
        "intermediate_size": c["hidden"],
        "num_hidden_layers": c["layers"],
        "num_attention_heads": c["heads"],
        "num_key_value_heads": c["kv_heads"],
        "vocab_size": c["vocab"],
        "max_position_embeddings": c["context"],
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }


def tokenizer(tokens: list[str], scores: list[float]) -> dict[str, object]:
    names = ["<unk>", "<s>", "</s>", *(token.replace(" ", "\u2581") for token in tokens[3:])]
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * (len(names) - 259)]
    return spm_json(Vocabulary(names, kinds, bos_id=1, eos_id=2, add_bos=True), scores, SpmRules())


def main(checkpoint: str, vocabulary: str) -> None:
    c, weights = read_checkpoint(checkpoint)
    tokens, scores = read_vocabulary(vocabulary)
    OUT.mkdir(exist_ok=True)
    save_file(hugging_face(c, weights), OUT / "model.safetensors", metadata={"format": "pt"})
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    for name, value in {
        "config.json": config(c),
        "tokenizer.json": tokenizer(tokens, scores),
        "tokenizer_config.json": special,
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2},
        "story.json": story(c, weights, tokens, scores),
    }.items():
        (OUT / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
