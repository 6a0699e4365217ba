"""Which piece of an answer's text each of its tokens wrote, and d_t of each: token ids and log-probs in, spans out.

d_t = log p_reward(t) - log p_instruct(t), in nats; the reference model takes the place of the instruct model where a
run has one. The pieces are decoded one after the other, and count only where they join to the answer exactly; otherwise
the answer has no heat. No torch, no model: a tokenizer's file alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_engine.models.checkpoints.json_files import ModelError
from data_engine.models.tokenizer import SentencePieceTokenizer

Decode = Callable[[Sequence[int]], str]
# Where a character is spread over several tokens, all but the last decode to this.
BROKEN = "\ufffd"
# A character has at most 4 bytes. Ids that come to none for so long never will, and decoding them again and again would
# take time and memory by the square of their number.
MOST_TOGETHER = 16
FILES = ("tokenizer.json", "tokenizer.model")


class NoHeat(ValueError):
    """Why an answer has no heat, as a sentence."""


@dataclass(frozen=True)
class Span:
    """What one token wrote, or several that wrote one character together."""

    text: str
    """"" for a token that is no text, such as the end token"""
    difference: float
    """d_t in nats; of several tokens, the sum"""
    num_tokens: int = 1


def decoders(folder: Path) -> list[Decode]:
    """What turns ids into text, special tokens skipped, by each tokenizer file of a checkpoint folder.

    Raises NoHeat where there is none.
    """
    found = []
    for name, kind in zip(FILES, (_json_decoder, _sentencepiece_decoder), strict=True):
        if (folder / name).is_file():
            found.append(kind(folder / name))
    found = [decode for decode in found if decode is not None]
    if not found:
        raise NoHeat(f"no tokenizer.json and no tokenizer.model that can be read is in {folder.name or folder}")
    return found


def _json_decoder(path: Path) -> Decode | None:
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception:  # tokenizers raises bare Exception
        return None
    special = {id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    return lambda ids: tokenizer.decode([id for id in ids if id not in special], skip_special_tokens=False)


def _sentencepiece_decoder(path: Path) -> Decode | None:
    try:
        return SentencePieceTokenizer(path).decode
    except ModelError:
        return None


class Pieces:
    """The pieces of text of token ids, by one decoder; what the last ids come to is remembered."""

    MOST_REMEMBERED = 200_000

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._known: dict[tuple[int, ...], str] = {}

    def _text(self, ids: Sequence[int]) -> str:
        key = tuple(ids)
        if key not in self._known:
            if len(self._known) >= self.MOST_REMEMBERED:
                self._known.clear()
            self._known[key] = self._decode(list(key))
        return self._known[key]

    def of(self, ids: Sequence[int]) -> list[tuple[str, int]]:
        """(text, how many ids wrote it) in order: what each id adds to the text of those just before it.

        Decoding goes on behind the last piece, so that a space that only stands between two pieces is seen.
        """
        found, start, done = [], 0, 0
        for end in range(1, len(ids) + 1):
            before, both = self._text(ids[start:done]), self._text(ids[start:end])
            is_open = both.endswith(BROKEN) or not both.startswith(before)
            if is_open and end < len(ids) and end - done < MOST_TOGETHER:
                continue
            piece = both[len(before) :] if both.startswith(before) else both
            found.append((piece, end - done))
            # Special tokens add nothing, and the text goes on behind the last token that did.
            if piece:
                start = done
            done = end
        return found


def spans(
    pieces: Sequence[tuple[str, int]], differences: Sequence[float], answer: str, cut: bool = False
) -> list[Span]:
    """The spans of an answer, whose texts join to it exactly. Raises NoHeat where they do not.

    `cut`: the first piece may begin with the end of the thought's mark, which shares its token with the answer.
    """
    if sum(count for _, count in pieces) != len(differences):
        raise NoHeat("the two models scored another number of tokens than the answer has")
    texts = _fitted([text for text, _ in pieces], answer, cut)
    if texts is None:
        raise NoHeat("its tokens, decoded one by one, do not join to its text")
    found, at = [], 0
    for text, (_, count) in zip(texts, pieces, strict=True):
        found.append(Span(text, float(np.sum(np.asarray(differences[at : at + count], np.float64))), count))
        at += count
    return found


def _fitted(texts: list[str], answer: str, cut: bool) -> list[str] | None:
    """The pieces without the white space around the answer, which is stored stripped; None where they do not fit."""
    joined = "".join(texts)
    whole = joined.rstrip()
    start = len(joined) - len(joined.lstrip())
    if joined.strip() != answer:
        start = len(whole) - len(answer)
        if not (cut and texts and 0 <= start < len(texts[0]) and whole.endswith(answer)):
            return None
    end, at, found = start + len(answer), 0, []
    for text in texts:
        low, high = max(start, at), min(end, at + len(text))
        found.append(joined[low:high] if low < high else "")
        at += len(text)
    return found


def differences(instruct: Sequence[float] | None, reward: Sequence[float] | None, count: int) -> list[float]:
    """d_t of each counted token. Raises NoHeat where a model did not score exactly these `count` tokens."""
    if instruct is None or reward is None:
        raise NoHeat("a model gave it no log-probs")
    if not len(instruct) == len(reward) == count:
        raise NoHeat("the two models scored another number of tokens than the answer has")
    found = np.asarray(reward, np.float64) - np.asarray(instruct, np.float64)
    if not np.isfinite(found).all():
        raise NoHeat("a log-prob is no finite number")
    return found.tolist()
