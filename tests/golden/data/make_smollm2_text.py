"""Writes smollm2_text.json: what SmolLM2-135M-Instruct says greedily, according to transformers in float32.

    python make_smollm2_text.py SmolLM2-135M-Instruct.Q4_1.gguf     needs torch, transformers, accelerate, gguf

Each text ends before the first token whose lead over the second is less than LEAST_LEAD: activations in int8 move
logits by 0.2 as a rule and rarely by 1, so from there on another kernel may rightly say something else.
"""

import json
import sys
from pathlib import Path
from typing import Any

OUT = Path(__file__).parent / "smollm2_text.json"
LEAST_LEAD = 0.8  # in logits
MOST_TOKENS = 40
END = 2  # <|im_end|>
PROMPTS = [
    "1 2 3 4 5 6",
    '#include <stdio.h>\n\nint main() {\n    printf("Hello, World',
    "We hold these truths to be self-evident, that all men",
    "It is what it",
    "It was the best of times, it was the",
    "def add(a, b):\n    return",
]
QUESTIONS = [
    "Count from 1 to 10.",
    "What is the boiling point of water?",
    "What is 2+2?",
    "Who wrote Romeo and Juliet?",
    "How many days are in a week?",
    "Repeat after me: The cat sat on the mat.",
]
# The model's own template, written out by hand: the templates' engine is under test too.
CHAT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)


def load(path: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    names = {"gguf_file": path.name}
    tokenizer = AutoTokenizer.from_pretrained(path.parent, **names)
    return tokenizer, AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **names)


def continue_greedily(model: Any, ids: list[int]) -> tuple[list[int], float]:
    """Tokens up to the first narrow lead, and the least lead among them."""
    import torch

    made = model.generate(
        torch.tensor([ids]),
        max_new_tokens=MOST_TOKENS,
        do_sample=False,
        eos_token_id=END,
        return_dict_in_generate=True,
        output_scores=True,
    )
    tops = [scores[0].topk(2).values.tolist() for scores in made.scores]
    leads = [first - second for first, second in tops]
    keep = next((i for i, lead in enumerate(leads) if lead < LEAST_LEAD), len(leads))
    return made.sequences[0, len(ids) : len(ids) + keep].tolist(), min(leads[:keep])


def vectors(path: Path) -> list[dict[str, Any]]:
    tokenizer, model = load(path)
    out = []
    for prompt, question in [*((p, None) for p in PROMPTS), *((CHAT.format(q), q) for q in QUESTIONS)]:
        ids = tokenizer(prompt, add_special_tokens=False).input_ids
        tokens, lead = continue_greedily(model, ids)
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        asked = {"prompt": prompt} if question is None else {"question": question}
        out.append(asked | {"prompt_ids": ids, "ids": tokens, "text": text, "least_lead": round(lead, 3)})
    return out


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    lines = [json.dumps(vector, ensure_ascii=False) for vector in vectors(Path(sys.argv[1]))]
    OUT.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
