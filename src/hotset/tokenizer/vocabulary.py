"""A vocabulary of either kind, and the tokenizer.json that it means."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hotset.errors import FormatError
from hotset.tokenizer.pretokenizers import PreTokenizer

# Kinds of tokens, numbered as in SentencePiece's protobuf and in GGUF's tokenizer.ggml.token_type.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "\u2581"
MOST_CHARACTERS = 4096  # of a piece; published ones have some hundred, and finding its merges takes their square


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens by id, their kinds, and what is put around every text."""

    tokens: Sequence[str]
    kinds: Sequence[int]
    bos_id: int | None = None
    eos_id: int | None = None
    add_bos: bool = False
    add_eos: bool = False

    def ids(self) -> dict[str, int]:
        """Token to id. Raises FormatError if two ids have the same text."""
        ids = {token: i for i, token in enumerate(self.tokens)}
        if len(ids) != len(self.tokens):
            twice = next(i for i, token in enumerate(self.tokens) if ids[token] != i)
            raise FormatError(
                f"vocabulary has token {self.tokens[twice]!r} twice: ids {twice}, {ids[self.tokens[twice]]}"
            )
        return ids


def byte_level_json(vocabulary: Vocabulary, merges: Sequence[str], pre: PreTokenizer) -> dict[str, Any]:
    """tokenizer.json of a byte-level BPE (GPT-2's kind). merges: "left right", best first."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model: dict[str, Any] = {"type": "BPE", "unk_token": None, "fuse_unk": False, "byte_fallback": False}
    model |= {"ignore_merges": pre.ignore_merges, "vocab": vocabulary.ids(), "merges": list(merges)}
    return _tokenizer_json(
        vocabulary,
        model,
        normalizer={"type": "NFC"} if pre.nfc else None,
        pre_tokenizer=pre.to_json(),
        decoder=byte_level,
    )


@dataclass(frozen=True, slots=True)
class SpmRules:
    """What SentencePiece does to text before it looks for pieces."""

    add_space_prefix: bool = True
    remove_extra_whitespaces: bool = False
    charsmap: bytes = b""  # compiled normalization rules; empty: identity


def check_piece(piece: str, where: str) -> None:
    """Raises FormatError for a piece of SentencePiece so long that only a damaged or hostile file has it."""
    if len(piece) > MOST_CHARACTERS:
        raise FormatError(
            f"{where} has {len(piece)} characters; wanted at most {MOST_CHARACTERS}: the file is damaged, get it again"
        )


def spm_json(vocabulary: Vocabulary, scores: Sequence[float], rules: SpmRules) -> dict[str, Any]:
    """tokenizer.json of a SentencePiece BPE. scores: by id, higher merges first."""
    vocabulary = replace(vocabulary, tokens=_as_in_text(vocabulary))
    ids = vocabulary.ids()
    unknown = next((t for t, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True) if kind == UNKNOWN), None)
    merges = [[left, right] for left, right in spm_merges(vocabulary, scores)]
    model: dict[str, Any] = {
        "type": "BPE",
        "unk_token": unknown,
        "fuse_unk": True,
        "byte_fallback": BYTE in vocabulary.kinds,
    }
    model |= {"ignore_merges": False, "vocab": ids, "merges": merges}
    return _tokenizer_json(
        vocabulary, model, normalizer=_spm_normalizer(rules), pre_tokenizer=None, decoder=_spm_decoder(rules)
    )


def _as_in_text(vocabulary: Vocabulary) -> list[str]:
    """Tokens that the user defined are looked for before spaces are replaced, so they are written with spaces."""
    pairs = zip(vocabulary.tokens, vocabulary.kinds, strict=True)
    return [token.replace(SPACE, " ") if kind == USER_DEFINED else token for token, kind in pairs]


def spm_merges(vocabulary: Vocabulary, scores: Sequence[float]) -> list[tuple[str, str]]:
    """The merges that pieces and scores imply, best first.

    SentencePiece joins the neighbours whose joined text is the piece with the best score, so every cut of a piece
    into two pieces is a merge of that piece's rank. Only ordinary pieces join.
    """
    rank = {t: s for t, s, kind in zip(vocabulary.tokens, scores, vocabulary.kinds, strict=True) if kind == NORMAL}
    order = {token: i for i, token in enumerate(sorted(rank, key=lambda t: -rank[t]))}
    cuts = ((order[t], order[a], order[b], a, b) for t in order for a, b in _cuts(t) if a in order and b in order)
    return [(a, b) for *_, a, b in sorted(cuts)]


def _cuts(token: str) -> Iterator[tuple[str, str]]:
    return ((token[:i], token[i:]) for i in range(1, len(token)))


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _spm_normalizer(rules: SpmRules) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    if rules.charsmap:
        steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(rules.charsmap).decode()})
    if rules.remove_extra_whitespaces:
        steps += [_replace({"Regex": r"\A +| +\z"}, ""), _replace({"Regex": " {2,}"}, " ")]
    if rules.add_space_prefix:
        steps.append({"type": "Prepend", "prepend": SPACE})
    steps.append(_replace({"String": " "}, SPACE))
    return {"type": "Sequence", "normalizers": steps}


def _spm_decoder(rules: SpmRules) -> dict[str, Any]:
    steps = [_replace({"String": SPACE}, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    if rules.add_space_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _tokenizer_json(vocabulary: Vocabulary, model: dict[str, Any], **parts: Any) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(_added_tokens(vocabulary)),
        **parts,
        "post_processor": _template(vocabulary),
        "model": model,
    }


def _added_tokens(vocabulary: Vocabulary) -> Iterator[dict[str, Any]]:
    """Tokens found in text before any cutting: control tokens (special) and those the user defined (ordinary text)."""
    for i, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True)):
        if kind in (UNKNOWN, CONTROL, USER_DEFINED) and token:
            yield {
                "id": i,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": kind != USER_DEFINED,
            }


def _template(vocabulary: Vocabulary) -> dict[str, Any] | None:
    """Post-processor that puts BOS before and EOS after a text, as the vocabulary asks."""
    before = [vocabulary.bos_id] if vocabulary.add_bos else []
    after = [vocabulary.eos_id] if vocabulary.add_eos else []
    if not before and not after:
        return None
    around = [i for i in (*before, *after) if i is not None]
    if len(around) < len(before) + len(after):
        raise FormatError("tokenizer asks for a BOS or EOS token around texts but does not say which token that is")
    name = vocabulary.tokens.__getitem__
    special = {name(i): {"id": name(i), "ids": [i], "tokens": [name(i)]} for i in around}

    def text(sequence: str, type_id: int) -> list[dict[str, Any]]:
        def one(i: int | None) -> dict[str, Any]:
            return {"SpecialToken": {"id": name(i or 0), "type_id": type_id}}

        return [*map(one, before), {"Sequence": {"id": sequence, "type_id": type_id}}, *map(one, after)]

    single, pair = text("A", 0), text("A", 0) + text("B", 1)
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}
