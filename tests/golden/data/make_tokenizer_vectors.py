"""Writes the tokenizer vectors: text to ids, made by other implementations than ours.

    python make_tokenizer_vectors.py spm                        needs sentencepiece
    python make_tokenizer_vectors.py smollm2 TOKENIZER_JSON     needs tokenizers; the model's original tokenizer.json

`spm` trains small SentencePiece BPE models on the text of this repository's own documents, so the fixtures are ours;
the ids are SentencePiece's.
"""

import io
import json
import random
import sys
from pathlib import Path

HERE = Path(__file__).parent
OUT = HERE / "tokenizer"

TEXTS = [
    "Hello, world!",
    "Once upon a time, there was a little girl named Lily.",
    "  leading, trailing  and   runs    of spaces  ",
    "tabs\tand\t\ttabs\nnew\n\nlines\r\nand returns \n  mixed \t\n",
    "def f(x: int) -> int:\n    return x ** 2  # squares\n\n\tif (a[i] != NULL && p->next) { y += 0x1F; }",
    "1234567890 3.14159 -42 1,000,000 2026-11-20 ²³ ½ ٣٤",
    "don't can't WE'LL they'Re I'd you've it's 'quoted'",
    "你好，世界！今天天气很好。我们去公园吧。漢字とかな、한국어",
    "naïve café Übergröße Ångström façade — “quotes” … e\u0301 vs é",
    "👋🌍 👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 👍🏽 ❤️",
    "Привет, мир! Γειά σου Κόσμε. مرحبا بالعالم שלום עולם हिन्दी ไทย",
    "\u0000\u0001\u007f\u0080\u00a0\u200b\u200d\ufeff\ufffd\U0010ffff",
    "https://example.org/a?b=c&d=%20#frag user@host.tld C:\\path\\file.txt",
    '<html><body>&amp;</body></html> {"k": [1, 2.5e-3, null]}',
    "x" * 300,
    " " * 70 + "end" + "\n" * 40,
    "aaaaaaaaaaaaaaaaaaaaaaa ababababababababab",
    "a",
    " ",
    "\n",
    "",
]


def random_texts(count: int, seed: int) -> list[str]:
    """Random characters of several planes, assigned or not, without surrogates."""
    rng = random.Random(seed)
    ranges = [
        (32, 127),
        (0, 0x250),
        (0x370, 0x600),
        (0x900, 0xE80),
        (0x3040, 0x9FFF),
        (0xAC00, 0xD7A4),
        (0x1F300, 0x1FAFF),
    ]
    texts = []
    for _ in range(count):
        low, high = rng.choice(ranges)
        texts.append(
            "".join(
                chr(rng.randrange(low, high) if rng.random() < 0.8 else rng.choice(b" aeiou\n"))
                for _ in range(rng.randrange(1, 40))
            )
        )
    return texts


def write(name: str, texts: list[str], ids: list[list[int]]) -> None:
    lines = [json.dumps({"text": t, "ids": i}, ensure_ascii=True) for t, i in zip(texts, ids, strict=True)]
    (OUT / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_spm() -> None:
    import sentencepiece as spm

    root = HERE.parents[2]
    corpus = [*(root / "docs").rglob("*.md"), *(root / "native").rglob("*.h")]
    lines = [line for path in sorted(corpus) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    lines += [t for t in TEXTS if t.strip() and "\0" not in t] * 3
    for name, options in {
        "spm_plain": {"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
        "spm_nfkc": {"normalization_rule_name": "nmt_nfkc", "add_dummy_prefix": False},
        "spm_symbols": {
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "add_dummy_prefix": False,
            "user_defined_symbols": ["<tool>", "\n\n", "===", "▁▁", "▁▁▁▁"],
        },
    }.items():
        model = io.BytesIO()
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=900,
            byte_fallback=True,
            character_coverage=0.98,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            minloglevel=2,
            **options,
        )
        (OUT / f"{name}.model").write_bytes(model.getvalue())
        processor = spm.SentencePieceProcessor(model_proto=model.getvalue())
        texts = [*TEXTS, *random_texts(150, seed=7)]
        write(f"{name}.jsonl", texts, [processor.encode(t) for t in texts])


def make_smollm2(tokenizer_json: str) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(tokenizer_json)
    special = [
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        "a<|endoftext|>b <|im_end|> c<|im_endx|>",
        "<repo_name>x<file_sep>",
    ]
    texts = [*TEXTS, *special, *random_texts(150, seed=11)]
    write("smollm2.jsonl", texts, [tokenizer.encode(t).ids for t in texts])


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    if sys.argv[1:] == ["spm"]:
        make_spm()
    elif sys.argv[1:2] == ["smollm2"] and len(sys.argv) == 3:
        make_smollm2(sys.argv[2])
    else:
        sys.exit(__doc__)
