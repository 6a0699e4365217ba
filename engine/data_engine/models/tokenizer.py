"""Text to ids and back, without parsing special tokens: a `</s>` in a text is four characters, never an end token.

`tokenizer.model` is read by SentencePiece; a checkpoint that has only `tokenizer.json` is read by tokenizers.
"""

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import sentencepiece
import tokenizers

from data_engine.models.checkpoints.json_files import ModelError, read_json, reason, refuse_pointer
from data_engine.store.absent import is_file


class Tokenizer(Protocol):
    bos: int
    eos: int
    vocabulary: str
    """fingerprint of the pieces in the order of their ids"""
    num_ids: int
    """one more than the largest id that encode gives"""
    special: frozenset[str]
    """texts of the special tokens, which encode reads as text"""

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
            size = self._processor.get_piece_size()
            pieces = [self._processor.id_to_piece(id) for id in range(size)]
        # ValueError: a piece is no UTF-8.
        except (RuntimeError, OSError, ValueError) as error:
            raise ModelError(f"{path} is not a SentencePiece model: {reason(error)}") from error
        self.bos, self.eos = self._processor.bos_id(), self._processor.eos_id()
        if min(self.bos, self.eos) < 0:
            raise ModelError(f"{path} has no tokens for begin and end of a text: not a LLaMA tokenizer")
        self._special = {id for id in range(size) if self._processor.is_control(id) or self._processor.is_unknown(id)}
        self.special = frozenset(pieces[id] for id in self._special)
        self.num_ids = size
        self.vocabulary = _fingerprint(pieces)

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def decode(self, ids: list[int]) -> str:
        return self._processor.decode([id for id in ids if id < self.num_ids and id not in self._special])


class JsonTokenizer:
    """Reads `tokenizer.json`, as transformers writes it."""

    def __init__(self, path: Path) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise ModelError(f"{path} is not a tokenizer: {reason(error)}") from error
        self._tokenizer.encode_special_tokens = True
        # What a trainer cut and filled up texts to is kept in the file.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {id for id, token in added.items() if token.special}
        self.special = frozenset(added[id].content for id in self._special)
        ends = {name: self._tokenizer.token_to_id(name) for name in ("<s>", "</s>")}
        if None in ends.values():
            raise ModelError(f"{path} has no <s> and </s>: not a LLaMA tokenizer")
        self.bos, self.eos = ends["<s>"], ends["</s>"]
        base = self._tokenizer.get_vocab(with_added_tokens=False)
        plain = set(self._tokenizer.get_vocab(with_added_tokens=True).values()) - self._special
        self.num_ids = 1 + max(plain, default=-1)
        self.vocabulary = _fingerprint(sorted(base, key=base.__getitem__))

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode([id for id in ids if id not in self._special], skip_special_tokens=False)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder. Raises ModelError where it has none of the two forms."""
    for name, kind in (("tokenizer.model", SentencePieceTokenizer), ("tokenizer.json", JsonTokenizer)):
        if is_file(folder / name):
            refuse_pointer(folder / name)
            file = (folder / name).stat()
            return _loaded(kind, folder / name, file.st_mtime_ns, file.st_size, file.st_ino)
    raise ModelError(f"{folder} has neither tokenizer.model nor tokenizer.json")


@functools.lru_cache(maxsize=4)
def _loaded(kind: type[Tokenizer], path: Path, *state: int) -> Tokenizer:
    """Kept while the file's `state` is the same: a start asks ten times, which takes a second at LLaMA's size."""
    return kind(path)


def control_tokens(folder: Path) -> tuple[str, ...]:
    """Texts that a tokenizer which parses special tokens would not read as text, the longest first."""
    texts = {*load_tokenizer(folder).special, *added_tokens(folder)}
    return tuple(sorted(texts, key=lambda text: (-len(text), text)))


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
    for name, field in (("added_tokens.json", None), ("tokenizer_config.json", "added_tokens_decoder"),
                        ("tokenizer.json", "added_tokens")):  # fmt: skip
        if is_file(folder / name):
            raw = read_json(folder / name)
            try:
                listed = _ids(raw if field is None else raw.get(field, {}))
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise ModelError(
                    f"{folder / name} does not list its added tokens by id ({type(error).__name__}: {reason(error)})"
                ) from error
            yield name, listed


def _ids(told: dict | list) -> dict[str, int]:
    """token -> id, of a dictionary by token or by id, or of a list. Raises what a wrong type brings about."""
    if isinstance(told, list):
        found = {token["content"]: token["id"] for token in told}
    else:
        found = dict(_entry(key, value) for key, value in told.items())
    if not all(type(number) is int and isinstance(token, str) for token, number in found.items()):
        raise TypeError("an id is no integer, or a token no text")
    return found


def _entry(key: str, value: int | dict) -> tuple[str, int]:
    return (key, value) if isinstance(value, int) else (value["content"], int(key))


def continuation(tokenizer: Tokenizer, prompt: str, answer: str) -> list[int]:
    """Ids of the answer behind the prompt's text; encoded alone, it would begin with a dummy space."""
    return tokenizer.encode(prompt + answer)[len(tokenizer.encode(prompt)) :]
