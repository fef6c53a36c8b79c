"""A model's tokenizer: text to ids, ids to text, and its chat template."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from hotset.errors import FormatError, InputError, ModelError, UsageError
from hotset.tokenizer.chat import ChatTemplate, find_template
from hotset.tokenizer.files import read_json
from hotset.tokenizer.huggingface import build_tokenizer_json
from hotset.tokenizer.stream import StreamDecoder, TokenBytes

_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class Tokenizer:
    """One vocabulary with its rules. Safe to share between threads; the streams it makes are not."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        config: Mapping[str, Any] | None = None,
        generation_config: Mapping[str, Any] | None = None,
        template: str | None = None,
    ) -> None:
        """config: of tokenizer_config.json; generation_config: may hold the keys of config.json too."""
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._added = dict(backend.get_added_tokens_decoder())
        self._to_bytes = TokenBytes.of(backend)
        self._bytes: dict[int, bytes] = {}
        self._special = _special_tokens(config or {})
        self.bos_id = self._id_of("bos_token", generation_config or {})
        self.eos_ids = self._find_eos_ids(generation_config or {})
        self._template = template
        self._chat: ChatTemplate | None = None

    @staticmethod
    def load(folder: str | Path) -> Tokenizer:
        """Reads the tokenizer of a store or of a Hugging Face folder.

        BOS and EOS go around texts as tokenizer.json's post-processor says; add_bos_token and add_eos_token of
        tokenizer_config.json count only where there is no tokenizer.json, as in transformers 5.

        Raises: ModelError if there is none that hotset can read; FormatError if a file is broken.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        try:
            if path.is_file():
                backend = tokenizers.Tokenizer.from_file(str(path))
            else:
                backend = tokenizers.Tokenizer.from_str(json.dumps(build_tokenizer_json(folder)))
        except (ModelError, FormatError):
            raise
        except Exception as error:  # the library raises bare Exception
            raise FormatError(
                f"{path}: not a tokenizer hotset can load: {error}; convert or download it again"
            ) from None
        config = read_json(folder / "tokenizer_config.json")
        ends = _all_eos(read_json(folder / "generation_config.json"), read_json(folder / "config.json"))
        return Tokenizer(backend, config=config, generation_config=ends, template=find_template(folder, config))

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included; a model may have more rows than that."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    @property
    def vocabulary(self) -> dict[str, int]:
        """Id of each token, added ones included."""
        return dict(self._backend.get_vocab(with_added_tokens=True))

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    @property
    def adds_bos(self) -> bool:
        """Whether every text starts with BOS, unless encoded with add_special=False."""
        return self.bos_id is not None and self.encode("")[:1] == [self.bos_id]

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """Ids of `text`; special tokens written in it count as such. add_special: with BOS or EOS, as the model wants.

        Raises: InputError if the text is no valid Unicode (lone surrogates); UsageError if it is no str.
        """
        try:
            return list(self._backend.encode(text, add_special_tokens=add_special).ids)
        except (TypeError, UnicodeEncodeError):
            raise _explain(text) from None

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without BOS or EOS; texts are shared out to all cores. Raises as `encode`."""
        try:
            return [list(found.ids) for found in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
        except (TypeError, UnicodeEncodeError):
            return [self.encode(text, add_special=False) for text in texts]  # raises at the one to blame

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """Text of `ids`; bytes that are no UTF-8 become U+FFFD. Raises InputError for an id that has no token."""
        parts = [self._checked_bytes(i) for i in ids if not (skip_special and self.is_special(i))]
        text = b"".join(parts).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self._to_bytes.strips_first_space and text[:1] == " " else text

    def stream(self, skip_special: bool = False) -> StreamDecoder:
        """A decoder for text that goes on from earlier text: unlike `decode`, it keeps the first space."""
        if not skip_special:
            return StreamDecoder(self.token_bytes)
        return StreamDecoder(lambda i: b"" if self.is_special(i) else self.token_bytes(i))

    def token_bytes(self, token: int) -> bytes:
        """Bytes that `token` stands for; empty for an id without a token (padding rows of a model)."""
        found = self._bytes.get(token)
        if found is None:
            found = self._bytes[token] = self._compute_bytes(token)
        return found

    def token_text(self, token: int) -> str:
        """Readable text of one token; part of a character shows as U+FFFD."""
        return self.token_bytes(token).decode("utf-8", errors="replace")

    def token_id(self, text: str) -> int | None:
        """Id of the token that is written `text` in the vocabulary."""
        found = self._backend.token_to_id(text)
        return None if found is None else int(found)

    def is_special(self, token: int) -> bool:
        added = self._added.get(token)
        return added is not None and bool(added.special)

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """Text of a conversation in the model's own form; encode it with add_special=False.

        Raises: ModelError if the model has no chat template or it fails; UsageError for malformed messages.
        """
        if self._template is None:
            raise ModelError(
                "this model has no chat template; use a prompt instead of messages, or add chat_template.jinja"
            )
        if self._chat is None:
            self._chat = ChatTemplate(self._template)
        return self._chat.render(messages, add_generation_prompt=add_generation_prompt, **(self._special | variables))

    def _compute_bytes(self, token: int) -> bytes:
        if token in self._added:
            return str(self._added[token].content).encode()
        text = self._backend.id_to_token(token) if token >= 0 else None
        return b"" if text is None else self._to_bytes(text)

    def _checked_bytes(self, token: int) -> bytes:
        if token < 0 or (not self.token_bytes(token) and self._backend.id_to_token(token) is None):
            raise InputError(f"token id {token} is not in the vocabulary; ids go from 0 to {self.vocab_size - 1}")
        return self.token_bytes(token)

    def _id_of(self, name: str, generation_config: Mapping[str, Any]) -> int | None:
        if name in self._special:
            return self.token_id(self._special[name])
        found = generation_config.get(f"{name}_id")
        return found if isinstance(found, int) else None

    def _find_eos_ids(self, generation_config: Mapping[str, Any]) -> frozenset[int]:
        named = generation_config.get("eos_token_id")
        ids = set(named) if isinstance(named, list) else {named}
        ids.add(self._id_of("eos_token", {}))
        return frozenset(i for i in ids if isinstance(i, int))


def _explain(text: object) -> InputError | UsageError:
    """Why the library would not take `text`."""
    if not isinstance(text, str):
        return UsageError(f"text is a {type(text).__name__}; wanted str")
    at = next((i for i, c in enumerate(text) if "\ud800" <= c <= "\udfff"), 0)
    return InputError(
        f"text is not valid Unicode: lone surrogate {text[at]!r} at character {at}; "
        "decode the bytes as UTF-8, with errors='replace' if need be"
    )


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Texts of the named special tokens; older files write a token as an object with its content."""
    values = {name: config.get(name) for name in _SPECIAL_NAMES}
    texts = {name: v.get("content") if isinstance(v, dict) else v for name, v in values.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _all_eos(*configs: Mapping[str, Any]) -> dict[str, Any]:
    """Merges the ids of BOS (first wins) and EOS (all count) of several config files."""
    named = [c.get("eos_token_id") for c in configs]
    ends = [i for value in named for i in (value if isinstance(value, list) else [value]) if isinstance(i, int)]
    bos = next((c["bos_token_id"] for c in configs if isinstance(c.get("bos_token_id"), int)), None)
    return {"eos_token_id": ends, "bos_token_id": bos}
