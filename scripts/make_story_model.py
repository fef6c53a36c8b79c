#!/usr/bin/env python3
"""Makes the story model of the package from texts: tokenizer, a teacher, and its pupils with dReLU and with SwiGLU.

    scripts/make_story_model.py OUT --stories tinystories.jsonl=0.86 storybook.jsonl=0.03 --books books.jsonl.zst

Weights are shares of the tokens trained on; the books have the rest. OUT/config is the model's shape and tokenizer.
OUT/teacher has SwiGLU and learns from the text alone; OUT/drelu and OUT/swiglu begin anew and learn from the same text
and the teacher's distribution. Interrupted runs go on. scripts/ship_story_model.py does what comes after.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from hotset.cli.main import main as hotset
from hotset.formats.text import documents
from hotset.train.settings import DataSource

VOCAB = 4096
END = "<|endoftext|>"
SHAPE = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 5}
HEADS = {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 64}
# Muon and AdamW share a rate at which the matrices of the layers change by some 5 % of their size a step.
METHOD = {"batch": 24, "sequence": 256, "lr": 4e-3, "final-lr": 0.05, "warmup": 50, "optimizer": "muon"}
ZEROS = 0.857  # asked for; dReLU alone stays at three quarters
DISTILL = 0.7  # of the loss of the teacher's two pupils
KINDS = ("teacher", "drelu", "swiglu")
SIMPLE_CHARS = 12_000_000  # of the books, the simplest ones
SENTENCE_COST = 0.004  # of a word more in the mean sentence, as share of unknown words
BOOKS_IN_BPE = 2_000_000  # characters of them that the tokenizer learns from
WORDS = 4000  # of the stories' most frequent ones that count as known


def texts(paths: list[Path]) -> Iterator[str]:
    return (text for path in paths for text in documents(path))


def write(path: Path, found: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in found))
    return path


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def simple_part(stories: list[Path], books: list[Path]) -> list[str]:
    """The documents that come closest to the stories: known words, short sentences."""
    common = Counter(word for text in texts(stories) for word in words(text))
    known = {word for word, _ in common.most_common(WORDS)}

    def simplicity(text: str) -> float:
        found = words(text)
        sentence = len(found) / max(1, len(re.findall(r"[.!?]", text)))
        return sum(word in known for word in found) / len(found) - SENTENCE_COST * sentence

    ranked = sorted((text for text in texts(books) if len(words(text)) >= 500), key=simplicity, reverse=True)
    chosen, size = [], 0
    while ranked and size < SIMPLE_CHARS:
        chosen.append(ranked.pop(0))
        size += len(chosen[-1])
    return chosen


def shortened(found: Iterator[str], most: int) -> Iterator[str]:
    for text in found:
        yield text
        most -= len(text)
        if most < 0:
            return


def make_config(folder: Path, text: Iterator[str]) -> None:
    """A byte-level BPE of the text, and the shape of a Llama model for it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=[END], initial_alphabet=alphabet)
    bpe.train_from_iterator(text, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    bpe.save(str(folder / "tokenizer.json"))
    special = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "bos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    chosen = {"do_sample": True, "temperature": 0.6, "top_k": 40, "bos_token_id": 0, "eos_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(chosen))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **SHAPE,
        **HEADS,
        "vocab_size": VOCAB,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "bos_token_id": 0,
        "eos_token_id": 0,
        "initializer_range": 0.02,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def train(out: Path, kind: str, data: list[str], tokens: str, more: list[str]) -> int:
    pull = {"activation": "drelu", "zeros": ZEROS} if kind == "drelu" else {"activation": "keep"}
    taught = {} if kind == "teacher" else {"distill": DISTILL, "teacher": out / "teacher"}
    flags = METHOD | pull | taught | {"output": out / kind, "tokens": tokens}
    pairs = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    return hotset(["sparsify", str(out / "config"), "--from-scratch", *data, *pairs, *more])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--stories", nargs="+", required=True, metavar="FILE=SHARE", help="a story a document")
    parser.add_argument("--books", type=Path, nargs="*", default=[], help="of which the simplest pages are taken")
    parser.add_argument("--tokens", default="7.37M", help="of each of the three runs")
    parser.add_argument("--only", choices=KINDS, help="one of them, to run the pupils side by side")
    known, more = parser.parse_known_args()  # the rest goes to `hotset sparsify`, such as -t 1
    stories = [DataSource.parse(each) for each in known.stories]
    simple = known.out / "simple_books.jsonl"
    if not (known.out / "config/config.json").is_file():
        write(simple, simple_part([each.path for each in stories], known.books))
        learned = (texts([each.path for each in stories]), shortened(texts([simple]), BOOKS_IN_BPE))
        make_config(known.out / "config", chain(*learned))
    data = [part for each in known.stories for part in ("-d", each)]
    data += ["-d", str(simple)] if known.books else []
    for kind in [known.only] if known.only else KINDS:
        if code := train(known.out, kind, data, known.tokens, more):
            return code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
