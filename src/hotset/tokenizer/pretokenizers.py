"""How text is cut into words before byte-level BPE merges inside them: one row per name used in GGUF files.

The regular expressions are those of the models' own tokenizer.json; the names are llama.cpp's
(`tokenizer.ggml.pre`). A wrong cut gives plausible but wrong tokens, so an unknown name is an error.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from hotset.errors import ModelError

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CL100K = rf"{_CONTRACTION}|{_WORDS}|\p{{N}}{{1,3}}|{_TAIL}"
_QWEN2 = rf"{_CONTRACTION}|{_WORDS}|\p{{N}}|{_TAIL}"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_SLASH_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_SLASH_TAIL}"
_O200K = rf"{_CASED[0]}{_CONTRACTION}?|{_CASED[1]}{_CONTRACTION}?|\p{{N}}{{1,3}}|{_SLASH_TAIL}"
_UNNAMED = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """Each pattern cuts further what the one before has left whole."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False  # a word that is a token is taken whole, whatever the merges say
    add_bos: bool = False  # where the file does not say
    nfc: bool = False  # text is brought to Unicode's composed form first

    def to_json(self) -> dict[str, Any]:
        splits = [
            {"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False} for p in self.patterns
        ]
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        return {"type": "Sequence", "pretokenizers": [*splits, byte_level]}


def _table() -> dict[str, PreTokenizer]:
    groups = {
        ("gpt-2", "phi-2", "mpt", "jais", "gigachat", "exaone4", "roberta-bpe"): PreTokenizer((_GPT2,)),
        ("olmo", "dolma"): PreTokenizer((_GPT2,), nfc=True),
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"): PreTokenizer(
            (r"\p{N}", _GPT2)
        ),
        ("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "lfm2"): PreTokenizer(
            (_CL100K,), ignore_merges=True, add_bos=True
        ),
        ("dbrx", "smaug-bpe", "dolma2"): PreTokenizer((_CL100K,)),
        ("qwen2", "deepseek-r1-qwen", "megrez"): PreTokenizer((_QWEN2,), nfc=True),
        ("stablelm2",): PreTokenizer((_QWEN2,)),
        ("tekken",): PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True),
        ("gpt-4o", "llama4"): PreTokenizer((_O200K,)),
        ("default",): PreTokenizer(_UNNAMED),
    }
    return {name: spec for names, spec in groups.items() for name in names}


def pre_tokenizer(name: str) -> PreTokenizer:
    """The cut that `name` stands for. Raises ModelError with the closest known name."""
    table = _table()
    if name in table:
        return table[name]
    close = difflib.get_close_matches(name, table, n=1)
    hint = f" (closest known: {close[0]!r})" if close else ""
    raise ModelError(
        f"tokenizer.ggml.pre is {name!r}, a pre-tokenizer hotset does not know{hint}; "
        f"known: {', '.join(sorted(table))}. "
        "Convert from the model's Hugging Face folder, whose tokenizer.json says how text is cut"
    )
