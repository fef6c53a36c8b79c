"""Text to token ids and back, chat templates, and the vocabularies inside GGUF files and SentencePiece models."""

from hotset.tokenizer.gguf import from_gguf
from hotset.tokenizer.huggingface import from_folder
from hotset.tokenizer.stream import StreamDecoder
from hotset.tokenizer.tokenizer import Tokenizer

__all__ = ["StreamDecoder", "Tokenizer", "from_folder", "from_gguf"]
