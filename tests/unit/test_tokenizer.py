"""Token by token against SentencePiece's own ids, streams against whole decoding, and clear errors."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from builders import byte_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from hotset.errors import FormatError, InputError, ModelError, UsageError
from hotset.tokenizer import Tokenizer, from_folder

DATA = Path(__file__).parents[1] / "golden/data"
SPM = ("spm_plain", "spm_nfkc", "spm_symbols")
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)


def spm_folder(tmp: Path, name: str, **config: Any) -> Path:
    shutil.copy(DATA / "tokenizer" / f"{name}.model", tmp / "tokenizer.model")
    (tmp / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False} | config))
    return tmp


def vectors(name: str) -> list[dict[str, Any]]:
    lines = (DATA / "tokenizer" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(spm_folder(tmp_path_factory.mktemp("plain"), "spm_plain"))


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A byte-level BPE trained by the tokenizers library on a few lines."""
    folder = tmp_path_factory.mktemp("byte-level")
    made = tokenizers.ByteLevelBPETokenizer()
    lines = [v["text"] for v in vectors("smollm2")]
    made.train_from_iterator(lines, vocab_size=600, special_tokens=["<s>", "</s>"], show_progress=False)
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": {"content": "</s>"}}')
    return Tokenizer.load(folder)


@pytest.mark.parametrize("name", SPM)
def test_spm_models_give_the_ids_that_sentencepiece_gives(name: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(spm_folder(tmp_path, name))
    for vector in vectors(name):
        assert tokenizer.encode(vector["text"]) == vector["ids"], vector["text"]


@pytest.mark.parametrize("name", ["spm_plain", "spm_symbols"])
def test_what_does_not_normalize_comes_back_unchanged(name: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(spm_folder(tmp_path, name))
    for vector in vectors(name):
        assert tokenizer.decode(vector["ids"]) == vector["text"]


@settings(deadline=None)
@given(TEXT)
def test_any_text_survives_both_kinds(plain: Tokenizer, byte_level: Tokenizer, text: str) -> None:
    for tokenizer in (plain, byte_level):
        assert tokenizer.decode(tokenizer.encode(text), skip_special=True) == text.replace(
            "\u2581", " " if tokenizer is plain else "\u2581"
        )


@settings(deadline=None)
@given(st.lists(st.integers(0, 599), max_size=40))
def test_streams_agree_with_decoding_at_once(plain: Tokenizer, byte_level: Tokenizer, ids: list[int]) -> None:
    for tokenizer in (plain, byte_level):
        stream = tokenizer.stream()
        text = "".join([*map(stream.push, ids), stream.flush()])
        whole = b"".join(map(tokenizer.token_bytes, ids)).decode(errors="replace")
        assert text == whole
        assert whole.removeprefix(" " if tokenizer is plain else "") == tokenizer.decode(ids)


def test_a_stream_gives_a_character_out_when_it_is_whole(plain: Tokenizer) -> None:
    stream = plain.stream()
    ids = [plain.token_id(f"<0x{b:02X}>") or 0 for b in "😀é".encode()]
    assert [stream.push(i) for i in ids] == ["", "", "", "😀", "", "é"]
    assert stream.flush() == ""
    assert stream.push(ids[0]) == "" and stream.flush() == "\ufffd"
    assert stream.push(ids[0]) + stream.push(plain.encode("a")[-1]) == "\ufffd a"


def test_a_stream_keeps_the_space_that_starts_a_word(plain: Tokenizer) -> None:
    ids = plain.encode("the kernel")
    assert plain.decode(ids) == "the kernel"
    stream = plain.stream()
    assert "".join(map(stream.push, ids)) == " the kernel"


def test_special_tokens_are_found_hidden_and_named(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("<s>a</s>")
    assert (ids[0], ids[-1]) == (0, 1)
    assert byte_level.decode(ids) == "<s>a</s>" and byte_level.decode(ids, skip_special=True) == "a"
    stream = byte_level.stream(skip_special=True)
    assert "".join(map(stream.push, ids)) == "a"
    assert (byte_level.bos_id, byte_level.eos_ids) == (0, frozenset({1}))
    assert byte_level.is_special(0) and not byte_level.is_special(5)
    assert byte_level.token_text(byte_level.encode(" a")[0]) in (" a", " ")


@pytest.mark.parametrize(
    ("flags", "ends"),
    [({}, (1, None)), ({"add_eos_token": True}, (1, 2)), ({"add_bos_token": False}, (None, None))],
)
def test_bos_and_eos_are_put_around_texts_as_the_config_says(tmp_path: Path, flags: dict[str, bool], ends: Any) -> None:
    config = {"add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>"} | flags
    tokenizer = Tokenizer.load(spm_folder(tmp_path, "spm_plain", **config))
    bare = tokenizer.encode("text", add_special=False)
    assert tokenizer.encode("text") == [*([ends[0]] if ends[0] else []), *bare, *([ends[1]] if ends[1] else [])]
    assert tokenizer.adds_bos == (ends[0] is not None)


# transformers 5 drops these keys where there is a tokenizer.json: tests/full/test_tokenizer_live.py compares.
@pytest.mark.parametrize("flags", [{}, {"add_bos_token": True, "add_eos_token": True}, {"add_bos_token": False}])
@pytest.mark.parametrize("adds", [False, True])
def test_the_post_processor_of_tokenizer_json_decides(tmp_path: Path, adds: bool, flags: dict[str, bool]) -> None:
    config = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "LlamaTokenizerFast"}
    tokenizer = Tokenizer.load(byte_folder(tmp_path, "template" if adds else "byte level", config | flags))
    assert tokenizer.encode("a") == [*([0] if adds else []), tokenizer.token_id("a")]
    assert tokenizer.adds_bos == adds


def test_eos_ids_are_gathered_from_all_configs(tmp_path: Path) -> None:
    folder = spm_folder(tmp_path, "spm_plain", eos_token="</s>")
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 6], "bos_token_id": 1}')
    (folder / "config.json").write_text('{"eos_token_id": 7}')
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.eos_ids == {2, 5, 6, 7} and tokenizer.bos_id == 1


def test_added_tokens_of_older_folders_are_part_of_the_vocabulary(tmp_path: Path) -> None:
    added = {"900": {"content": "<|user|>", "special": True}, "0": {"content": "<unk>", "special": True}}
    folder = spm_folder(tmp_path, "spm_plain", added_tokens_decoder=added)
    (folder / "added_tokens.json").write_text('{"<|user|>": 900, "<|end|>": 901}')
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.vocab_size == 902
    assert tokenizer.encode("<|user|>")[0] == 900 and tokenizer.encode("a<|end|>")[-1] == 901
    (folder / "added_tokens.json").write_text('{"<|far|>": 950}')
    with pytest.raises(FormatError, match=r"<\|far\|>.*950.*ends at 900"):
        Tokenizer.load(folder)


def test_gpt2_folders_without_tokenizer_json_give_the_ids_of_the_library(tmp_path: Path) -> None:
    trained = tokenizers.ByteLevelBPETokenizer()
    texts = [v["text"] for v in vectors("smollm2")]
    trained.train_from_iterator(texts, vocab_size=500, special_tokens=["</s>"], show_progress=False)
    trained.save_model(str(tmp_path))
    config = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "</s>", "eos_token": "</s>", "add_bos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.load(tmp_path)
    for text in texts:
        if "</s>" not in text:
            assert tokenizer.encode(text) == [0, *trained.encode(text).ids], text
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "OwnTokenizer"}')
    with pytest.raises(ModelError, match=r"OwnTokenizer.*tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_files_of_a_folder_are_complete(tmp_path: Path) -> None:
    files = from_folder(spm_folder(tmp_path, "spm_plain", bos_token="<s>"))
    assert set(files) == {"tokenizer.json", "tokenizer_config.json"}
    made = tokenizers.Tokenizer.from_str(files["tokenizer.json"])
    assert made.encode(vectors("spm_plain")[0]["text"]).ids == vectors("spm_plain")[0]["ids"]


def test_no_tokenizer_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer found; wanted tokenizer\.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": 1}', '{"version": "1.0"}', "\ufffd"])
def test_broken_tokenizer_json_is_a_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(FormatError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
def test_broken_config_files_are_clear_errors(tmp_path: Path, name: str) -> None:
    folder = spm_folder(tmp_path, "spm_plain")
    (folder / name).write_text("[1]")
    with pytest.raises(FormatError, match=name):
        Tokenizer.load(folder)


def test_damaged_sentencepiece_models_end_in_our_errors(tmp_path: Path) -> None:
    whole = (DATA / "tokenizer/spm_plain.model").read_bytes()
    rng = random.Random(3)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole[: rng.randrange(len(whole))] if rng.random() < 0.5 else whole)
        for _ in range(rng.randrange(4) if damaged else 0):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        (tmp_path / "tokenizer.model").write_bytes(damaged)
        try:
            Tokenizer.load(tmp_path)
        except (FormatError, ModelError):
            refused += 1
    assert refused > 50


def test_a_unigram_model_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x03\x0a\x01a\x12\x02\x18\x01")
    with pytest.raises(ModelError, match="unigram"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(("length", "refused"), [(4096, False), (4097, True), (3_000_000, True)])
def test_a_piece_too_long_is_refused_at_once(tmp_path: Path, length: int, refused: bool) -> None:
    folder = spm_folder(tmp_path, "spm_plain")
    text, whole = b"\x0a" + _varint(length) + b"x" * length, (folder / "tokenizer.model").read_bytes()
    (folder / "tokenizer.model").write_bytes(whole + b"\x0a" + _varint(len(text)) + text)
    if refused:
        with pytest.raises(FormatError, match=rf"piece 900 has {length} characters; wanted at most 4096"):
            Tokenizer.load(folder)
    else:
        assert Tokenizer.load(folder).vocab_size == 901


def _varint(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80]) + _varint(value >> 7) if value > 0x7F else bytes([value])


def test_text_that_is_no_unicode_is_refused_with_its_place(plain: Tokenizer) -> None:
    with pytest.raises(InputError, match=r"surrogate '\\udc80' at character 2"):
        plain.encode("ab\udc80")
    with pytest.raises(UsageError, match="bytes"):
        plain.encode(b"ab")  # type: ignore[arg-type]


@pytest.mark.parametrize("token", [-1, 900, 10**6])
def test_ids_without_a_token_are_refused(plain: Tokenizer, token: int) -> None:
    with pytest.raises(InputError, match=rf"{token}.*0 to 899"):
        plain.decode([5, token])
    assert plain.stream().push(token) == "", "a model may have more rows than tokens"


def test_an_unknown_decoder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"model": {"type": "WordPiece", "unk_token": "a", "continuing_subword_prefix": "##",
                              "max_input_chars_per_word": 9, "vocab": {"a": 0}},
                    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}, "added_tokens": []})
    )  # fmt: skip
    with pytest.raises(ModelError, match="WordPiece"):
        Tokenizer.load(tmp_path)


@pytest.mark.full
@settings(deadline=None, max_examples=3000)
@given(name=st.sampled_from(SPM), text=st.text(st.characters(exclude_categories=("Cs",)), max_size=120))
def test_random_text_gives_the_ids_of_sentencepiece(
    tmp_path_factory: pytest.TempPathFactory, name: str, text: str
) -> None:
    import sentencepiece

    folder = tmp_path_factory.getbasetemp() / name
    if not folder.is_dir():
        folder.mkdir()
        spm_folder(folder, name)
    if name not in _LIVE:
        model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        _LIVE[name] = (Tokenizer.load(folder), model)
    ours, theirs = _LIVE[name]
    assert ours.encode(text) == theirs.encode(text)


_LIVE: dict[str, tuple[Tokenizer, Any]] = {}
