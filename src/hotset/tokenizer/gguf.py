"""The tokenizer inside a GGUF file, written out as Hugging Face's files.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, section "tokenizer".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers

from hotset.errors import FormatError, ModelError
from hotset.tokenizer.pretokenizers import pre_tokenizer
from hotset.tokenizer.vocabulary import (
    CONTROL,
    NORMAL,
    SpmRules,
    Vocabulary,
    byte_level_json,
    check_piece,
    spm_json,
)

# Ends of a turn or text that files often leave unnamed, or name only in part (Llama 3 Instruct: EOS is <|eot_id|>, and
# no key has <|end_of_text|>); taken only if the token is a control token.
_ENDS = (
    *("<|im_end|>", "<|eot_id|>", "<|end_of_turn|>", "<end_of_turn>", "<|end|>", "<|eom_id|>"),
    *("<|endoftext|>", "<|end_of_text|>"),
)


def from_gguf(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Files of a tokenizer, name to text: tokenizer.json, tokenizer_config.json, generation_config.json and, where the
    model has one, chat_template.jinja.

    Raises: ModelError for a kind of tokenizer or pre-tokenizer hotset does not know; FormatError for a missing, wrong
        or contradictory key.
    """
    keys = _Keys(metadata)
    kind = keys.text("model")
    if kind == "gpt2":
        vocabulary, tokenizer = _byte_level(keys)
    elif kind == "llama":
        vocabulary, tokenizer = _spm(keys)
    else:
        raise ModelError(
            f"tokenizer.ggml.model is {kind!r}; hotset reads 'gpt2' (byte-level BPE) and 'llama' (SentencePiece BPE). "
            "Convert from the model's Hugging Face folder instead"
        )
    _check(tokenizer)
    files = {
        "tokenizer.json": json.dumps(tokenizer, ensure_ascii=False),
        "tokenizer_config.json": _dump(_config(keys, vocabulary)),
        "generation_config.json": _dump(_generation_config(keys, vocabulary)),
    }
    template = metadata.get("tokenizer.chat_template")
    return files | ({"chat_template.jinja": template} if isinstance(template, str) and template else {})


class _Keys:
    """Reads `tokenizer.ggml.*` and refuses what has the wrong type."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata

    def has(self, key: str) -> bool:
        return f"tokenizer.ggml.{key}" in self._metadata

    def text(self, key: str, default: str | None = None) -> str:
        return str(self._get(key, str, default))

    def flag(self, key: str, default: bool) -> bool:
        return bool(self._get(key, bool, default))

    def token_id(self, key: str, vocabulary_size: int) -> int | None:
        if not self.has(key):
            return None
        value = int(self._get(key, int, None))
        if not 0 <= value < vocabulary_size:
            raise FormatError(f"tokenizer.ggml.{key} is {value}; the vocabulary has {vocabulary_size} tokens")
        return value

    def array(self, key: str, item: type | tuple[type, ...], length: int | None = None) -> list[Any]:
        values = self._metadata.get(f"tokenizer.ggml.{key}")
        if values is None:
            raise FormatError(f"GGUF file has no tokenizer.ggml.{key}; it cannot tokenize text")
        values = values.tolist() if hasattr(values, "tolist") else values
        if not isinstance(values, Sequence) or isinstance(values, str) or not all(isinstance(v, item) for v in values):
            raise FormatError(f"tokenizer.ggml.{key} is not an array of the type GGUF asks for")
        if length is not None and len(values) != length:
            raise FormatError(f"tokenizer.ggml.{key} has {len(values)} entries; there are {length} tokens")
        return list(values)

    def _get(self, key: str, kind: type, default: Any) -> Any:
        value = self._metadata.get(f"tokenizer.ggml.{key}", default)
        value = value.item() if hasattr(value, "item") else value
        if value is None:
            raise FormatError(f"GGUF file has no tokenizer.ggml.{key}; it cannot tokenize text")
        if not isinstance(value, kind):
            raise FormatError(f"tokenizer.ggml.{key} is {value!r}; wanted {kind.__name__}")
        return value


def _vocabulary(keys: _Keys, *, add_bos: bool) -> Vocabulary:
    tokens = keys.array("tokens", str)
    kinds = keys.array("token_type", int, len(tokens)) if keys.has("token_type") else [NORMAL] * len(tokens)
    bos_id, eos_id = keys.token_id("bos_token_id", len(tokens)), keys.token_id("eos_token_id", len(tokens))
    return Vocabulary(
        tokens, kinds, bos_id, eos_id, keys.flag("add_bos_token", add_bos), keys.flag("add_eos_token", False)
    )


def _byte_level(keys: _Keys) -> tuple[Vocabulary, dict[str, Any]]:
    pre = pre_tokenizer(keys.text("pre", "default"))
    vocabulary = _vocabulary(keys, add_bos=pre.add_bos)
    return vocabulary, byte_level_json(vocabulary, keys.array("merges", str), pre)


def _spm(keys: _Keys) -> tuple[Vocabulary, dict[str, Any]]:
    vocabulary = _vocabulary(keys, add_bos=True)
    for i, token in enumerate(vocabulary.tokens):
        check_piece(token, f"tokenizer.ggml.tokens: token {i}")
    rules = SpmRules(
        add_space_prefix=keys.flag("add_space_prefix", True),
        remove_extra_whitespaces=keys.flag("remove_extra_whitespaces", False),
    )
    scores = keys.array("scores", (int, float), len(vocabulary.tokens))
    return vocabulary, spm_json(vocabulary, scores, rules)


def _config(keys: _Keys, vocabulary: Vocabulary) -> dict[str, Any]:
    """tokenizer_config.json: the names of the special tokens, as chat templates want them."""
    names = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id"}
    names["pad_token"] = "padding_token_id"
    found = {name: keys.token_id(key, len(vocabulary.tokens)) for name, key in names.items()}
    special = {name: vocabulary.tokens[i] for name, i in found.items() if i is not None}
    flags = {"add_bos_token": vocabulary.add_bos, "add_eos_token": vocabulary.add_eos}
    return {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False} | flags | special


def _generation_config(keys: _Keys, vocabulary: Vocabulary) -> dict[str, Any]:
    """generation_config.json: every token that ends an answer."""
    size = len(vocabulary.tokens)
    named = [keys.token_id(key, size) for key in ("eos_token_id", "eot_token_id", "eom_token_id")]
    ends = {i for i in named if i is not None}
    kinds = zip(vocabulary.tokens, vocabulary.kinds, strict=True)
    ends |= {i for i, (token, kind) in enumerate(kinds) if kind == CONTROL and token in _ENDS}
    config: dict[str, Any] = {"eos_token_id": sorted(ends)} if ends else {}
    return config | ({} if vocabulary.bos_id is None else {"bos_token_id": vocabulary.bos_id})


def _check(tokenizer: dict[str, Any]) -> None:
    try:
        tokenizers.Tokenizer.from_str(json.dumps(tokenizer))
    except Exception as error:  # the library raises bare Exception
        raise FormatError(f"the tokenizer inside the GGUF file contradicts itself: {error}") from None


def _dump(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"
