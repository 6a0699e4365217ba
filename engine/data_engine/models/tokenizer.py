"""Text to ids and back, without parsing special tokens: a `</s>` in a text is four characters, never an end token.

`tokenizer.model` is read by SentencePiece; a checkpoint that has only `tokenizer.json` is read by tokenizers.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import sentencepiece
import tokenizers

from data_engine.models.registry import ModelError, read_json


class Tokenizer(Protocol):
    bos: int
    eos: int
    vocabulary: str
    """fingerprint of the pieces in the order of their ids"""

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone: no BOS, no EOS, and no special token parsed from it."""

    def decode(self, ids: list[int]) -> str:
        """Text of the ids, without special tokens and ids beyond the vocabulary."""


def _fingerprint(pieces: list[str]) -> str:
    return hashlib.sha256("\n".join(pieces).encode("utf-8", "surrogatepass")).hexdigest()


class SentencePieceTokenizer:
    """Reads `tokenizer.model`; equal to transformers' slow LlamaTokenizer on text without special tokens."""

    def __init__(self, path: Path) -> None:
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise ModelError(f"{path} is not a SentencePiece model: {error}") from error
        size = self._processor.get_piece_size()
        self.bos, self.eos = self._processor.bos_id(), self._processor.eos_id()
        self._special = {id for id in range(size) if self._processor.is_control(id) or self._processor.is_unknown(id)}
        self._size = size
        self.vocabulary = _fingerprint([self._processor.id_to_piece(id) for id in range(size)])

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def decode(self, ids: list[int]) -> str:
        return self._processor.decode([id for id in ids if id < self._size and id not in self._special])


class JsonTokenizer:
    """Reads `tokenizer.json`, as transformers writes it."""

    def __init__(self, path: Path) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise ModelError(f"{path} is not a tokenizer: {error}") from error
        self._tokenizer.encode_special_tokens = True
        self._special = {id for id, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        ends = {name: self._tokenizer.token_to_id(name) for name in ("<s>", "</s>")}
        if None in ends.values():
            raise ModelError(f"{path} has no <s> and </s>: not a LLaMA tokenizer")
        self.bos, self.eos = ends["<s>"], ends["</s>"]
        base = self._tokenizer.get_vocab(with_added_tokens=False)
        self.vocabulary = _fingerprint(sorted(base, key=base.__getitem__))

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode([id for id in ids if id not in self._special], skip_special_tokens=False)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder. Raises ModelError where it has none of the two forms."""
    if (folder / "tokenizer.model").is_file():
        return SentencePieceTokenizer(folder / "tokenizer.model")
    if (folder / "tokenizer.json").is_file():
        return JsonTokenizer(folder / "tokenizer.json")
    raise ModelError(f"{folder} has neither tokenizer.model nor tokenizer.json")


def added_tokens(folder: Path) -> dict[str, int]:
    """Tokens beyond the base vocabulary and their ids, from every file that may list them.

    Raises ModelError where two files give a token different ids.
    """
    found: dict[str, int] = {}
    for name, listed in _listed_tokens(folder):
        for token, number in listed.items():
            if found.setdefault(token, number) != number:
                raise ModelError(f"{folder / name} gives {token} the id {number}, another file {found[token]}")
    return found


def _listed_tokens(folder: Path) -> Iterator[tuple[str, dict[str, int]]]:
    """(file name, token -> id) of each file that lists added tokens."""
    if (folder / "added_tokens.json").is_file():
        yield "added_tokens.json", read_json(folder / "added_tokens.json")
    if (folder / "tokenizer_config.json").is_file():
        added = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder", {})
        yield "tokenizer_config.json", {token["content"]: int(number) for number, token in added.items()}
    if (folder / "tokenizer.json").is_file():
        added = read_json(folder / "tokenizer.json").get("added_tokens", [])
        yield "tokenizer.json", {token["content"]: token["id"] for token in added}


def continuation(tokenizer: Tokenizer, prompt: str, answer: str) -> list[int]:
    """Ids of the answer behind the prompt's text; encoded alone, it would begin with a dummy space."""
    return tokenizer.encode(prompt + answer)[len(tokenizer.encode(prompt)) :]
