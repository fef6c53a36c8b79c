"""GGUF metadata of both kinds becomes files that give the original ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from hotset.errors import FormatError, ModelError
from hotset.tokenizer import Tokenizer, from_gguf, sentencepiece

DATA = Path(__file__).parents[1] / "golden/data/tokenizer"
G = "tokenizer.ggml."


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def vectors(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def spm_metadata(name: str, **more: Any) -> dict[str, Any]:
    model = sentencepiece.parse((DATA / f"{name}.model").read_bytes())
    values = {
        "model": "llama",
        "tokens": model.tokens,
        "scores": model.scores,
        "token_type": model.kinds,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "add_space_prefix": model.rules.add_space_prefix,
        "remove_extra_whitespaces": model.rules.remove_extra_whitespaces,
        "add_bos_token": False,
    }
    return {G + key: value for key, value in (values | more).items()}


def trained(pattern: str | None) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """A byte-level BPE whose words are cut by `pattern`, and its GGUF metadata without a pre-tokenizer."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    cut = [] if pattern is None else [tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")]
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([*cut, byte_level])
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([v["text"] for v in vectors("smollm2")], trainer)
    state = json.loads(made.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].__getitem__)
    merges = [m if isinstance(m, str) else " ".join(m) for m in state["merges"]]
    metadata = {"model": "gpt2", "tokens": tokens, "merges": merges, "eos_token_id": 0}
    metadata["token_type"] = np.array([3] + [1] * (len(tokens) - 1), np.int32)
    return made, {G + key: value for key, value in metadata.items()}


CUTS = {
    "gpt-2": None,
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",  # noqa: E501
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",  # noqa: E501
    "tekken": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",  # noqa: E501
}


@pytest.mark.parametrize("name", ["spm_plain", "spm_symbols"])
def test_spm_vocabularies_give_the_ids_of_sentencepiece(name: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write(tmp_path, from_gguf(spm_metadata(name))))
    for vector in vectors(name):
        assert tokenizer.encode(vector["text"]) == vector["ids"], vector["text"]


@pytest.mark.parametrize("pre", CUTS)
def test_byte_level_vocabularies_cut_as_the_model_does(pre: str, tmp_path: Path) -> None:
    original, metadata = trained(CUTS[pre])
    tokenizer = Tokenizer.load(write(tmp_path, from_gguf(metadata | {G + "pre": pre, G + "add_bos_token": False})))
    normal = tokenizers.normalizers.NFC() if pre == "qwen2" else None
    for vector in vectors("smollm2"):
        text = normal.normalize_str(vector["text"]) if normal else vector["text"]
        assert tokenizer.encode(vector["text"]) == original.encode(text).ids, vector["text"]
    assert tokenizer.eos_ids == {0} and tokenizer.is_special(0)


def test_digits_stand_alone_in_smollm(tmp_path: Path) -> None:
    _, metadata = trained(None)
    tokenizer = Tokenizer.load(write(tmp_path, from_gguf(metadata | {G + "pre": "smollm"})))
    assert [tokenizer.token_text(i) for i in tokenizer.encode("12 345")] == ["1", "2", " ", "3", "4", "5"]


def test_bos_and_eos_as_the_file_says(tmp_path: Path) -> None:
    files = from_gguf(spm_metadata("spm_plain", add_bos_token=True, add_eos_token=True))
    ids = Tokenizer.load(write(tmp_path, files)).encode("Hello")
    assert (ids[0], ids[-1]) == (1, 2)
    with pytest.raises(FormatError, match="BOS"):
        from_gguf({k: v for k, v in spm_metadata("spm_plain", add_bos_token=True).items() if "bos_token_id" not in k})


def test_names_of_special_tokens_and_ends_of_turns(tmp_path: Path) -> None:
    _, metadata = trained(None)
    more = {G + "pre": "gpt-2", G + "eot_token_id": 5, "tokenizer.chat_template": "{{ messages[0].content }}"}
    files = from_gguf(metadata | more)
    tokenizer = Tokenizer.load(write(tmp_path, files))
    assert tokenizer.eos_ids == {0, 5}
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}]) == "x"
    assert json.loads(files["tokenizer_config.json"])["eos_token"] == "<|end|>"


@pytest.mark.parametrize("named", [{}, {"eot_token_id": 0}])
def test_llama_3_ends_its_answers_at_the_end_of_text_too(tmp_path: Path, named: dict[str, int]) -> None:
    _, metadata = trained(None)
    tokens = ["<|eot_id|>", *metadata[G + "tokens"][1:], "<|end_of_text|>", "<|eom_id|>", "<|endoftext|>"]
    kinds = [3, *[1] * (len(tokens) - 4), 3, 3, 1]
    changed = {"pre": "llama-bpe", "add_bos_token": False, "tokens": tokens, "token_type": kinds} | named
    tokenizer = Tokenizer.load(write(tmp_path, from_gguf(metadata | {G + key: v for key, v in changed.items()})))
    ends = {tokenizer.token_id(text) for text in ("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>")}
    assert tokenizer.eos_ids == ends, "what is no control token ends nothing"


@pytest.mark.parametrize(("length", "refused"), [(4096, False), (4097, True), (3_000_000, True)])
def test_a_piece_too_long_is_refused_at_once(length: int, refused: bool) -> None:
    metadata = spm_metadata("spm_plain")
    metadata[G + "tokens"][-1] = "x" * length
    if refused:
        with pytest.raises(FormatError, match=rf"token \d+ has {length} characters; wanted at most 4096"):
            from_gguf(metadata)
    else:
        from_gguf(metadata)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": "bert"}, ModelError, r"'bert'.*'gpt2'.*'llama'"),
        ({"model": None}, FormatError, r"no tokenizer\.ggml\.model"),
        ({"pre": "quen2"}, ModelError, r"'quen2'.*closest known: 'qwen2'"),
        ({"tokens": None}, FormatError, r"no tokenizer\.ggml\.tokens"),
        ({"tokens": "abc"}, FormatError, r"tokens is not an array"),
        ({"tokens": ["a", "b", "a"], "token_type": [1, 1, 1], "merges": []}, FormatError, r"'a' twice: ids 0, 2"),
        ({"token_type": [1, 2]}, FormatError, r"token_type has 2 entries; there are \d+ tokens"),
        ({"merges": None}, FormatError, r"no tokenizer\.ggml\.merges"),
        ({"merges": ["zzz yyy"]}, FormatError, r"contradicts itself"),
        ({"eos_token_id": 10**6}, FormatError, r"eos_token_id is 1000000; the vocabulary has"),
        ({"add_bos_token": "yes"}, FormatError, r"add_bos_token is 'yes'; wanted bool"),
    ],
)
def test_what_cannot_be_right_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    _, metadata = trained(None)
    metadata |= {G + "pre": "gpt-2"} | {G + key: value for key, value in change.items()}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    with pytest.raises(error, match=message):
        from_gguf(metadata)
