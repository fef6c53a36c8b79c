"""Tokenizers of Hugging Face folders, older ones without a tokenizer.json included."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hotset.errors import FormatError, ModelError
from hotset.tokenizer import sentencepiece
from hotset.tokenizer.files import read_json, read_text
from hotset.tokenizer.pretokenizers import pre_tokenizer
from hotset.tokenizer.vocabulary import CONTROL, NORMAL, USER_DEFINED, Vocabulary, byte_level_json, spm_json

_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
)


def from_folder(folder: str | Path) -> dict[str, str]:
    """Files that a store takes over, name to text; tokenizer.json is built if the folder has only older files.

    Raises: ModelError if the folder has no tokenizer hotset can read; FormatError for a broken file.
    """
    folder = Path(folder)
    files = {name: read_text(folder / name) for name in _COPIED if (folder / name).is_file()}
    if "tokenizer.json" not in files:
        files["tokenizer.json"] = json.dumps(build_tokenizer_json(folder), ensure_ascii=False)
    return files


def build_tokenizer_json(folder: Path) -> dict[str, Any]:
    """tokenizer.json of a folder that has tokenizer.model (SentencePiece) or vocab.json + merges.txt (GPT-2, OPT)."""
    config = read_json(folder / "tokenizer_config.json")
    if (folder / "tokenizer.model").is_file():
        return _from_sentencepiece(folder, config)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return _from_gpt2(folder, config)
    raise ModelError(
        f"{folder}: no tokenizer found; wanted tokenizer.json, tokenizer.model, or vocab.json with merges.txt. "
        "Copy the model's tokenizer files into the folder"
    )


def _from_sentencepiece(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    model = sentencepiece.parse((folder / "tokenizer.model").read_bytes())
    vocabulary = Vocabulary(
        model.tokens,
        model.kinds,
        model.bos_id,
        model.eos_id,
        add_bos=bool(config.get("add_bos_token", True)),
        add_eos=bool(config.get("add_eos_token", False)),
    )
    vocabulary = _with_added(vocabulary, _added_tokens(folder, config))
    scores = model.scores + [0.0] * (len(vocabulary.tokens) - len(model.scores))
    return spm_json(vocabulary, scores, model.rules)


def _from_gpt2(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    if (kind := config.get("tokenizer_class", "GPT2Tokenizer")) not in ("GPT2Tokenizer", "GPT2TokenizerFast"):
        raise ModelError(
            f"{folder}: vocab.json and merges.txt of a {kind}, whose rules for cutting text are not in the folder; "
            "add the model's tokenizer.json"
        )
    ids = read_json(folder / "vocab.json")
    tokens = sorted(ids, key=ids.__getitem__)
    if [ids[t] for t in tokens] != list(range(len(tokens))):
        raise FormatError(f"{folder / 'vocab.json'}: ids are not 0 to {len(tokens) - 1}, each once")
    names = {name: _content(config.get(name)) or "" for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    special = {ids.get(text) for text in names.values()}
    kinds = [CONTROL if i in special else NORMAL for i in range(len(tokens))]
    bos, eos = ids.get(names["bos_token"]), ids.get(names["eos_token"])
    vocabulary = Vocabulary(tokens, kinds, bos, eos, add_bos=bool(config.get("add_bos_token", False)))
    vocabulary = _with_added(vocabulary, _added_tokens(folder, config))
    lines = read_text(folder / "merges.txt").splitlines()
    merges = [line for line in lines if line and not line.startswith("#version")]
    return byte_level_json(vocabulary, merges, pre_tokenizer("gpt-2"))


def _added_tokens(folder: Path, config: Mapping[str, Any]) -> dict[int, tuple[str, int]]:
    """id to (text, kind) of the tokens that the config files add to the vocabulary."""
    found = {
        i: (text, USER_DEFINED) for text, i in read_json(folder / "added_tokens.json").items() if isinstance(i, int)
    }
    for key, token in dict(config.get("added_tokens_decoder") or {}).items():
        text = _content(token)
        if key.isdigit() and text is not None:
            found[int(key)] = (text, CONTROL if token.get("special") else USER_DEFINED)
    return found


def _with_added(vocabulary: Vocabulary, added: Mapping[int, tuple[str, int]]) -> Vocabulary:
    tokens, kinds = list(vocabulary.tokens), list(vocabulary.kinds)
    for i, (text, kind) in sorted(added.items()):
        if i < len(tokens):
            if tokens[i] != text:
                raise FormatError(f"added token {i} is {text!r}, but the vocabulary has {tokens[i]!r} there")
            kinds[i] = kind if kinds[i] == NORMAL else kinds[i]
        elif i == len(tokens):
            tokens.append(text)
            kinds.append(kind)
        else:
            raise FormatError(f"added token {text!r} has id {i}; the vocabulary ends at {len(tokens) - 1}")
    return replace(vocabulary, tokens=tokens, kinds=kinds)


def _content(token: Any) -> str | None:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
