"""Thoughts before an answer: where they end, in a text and among token ids. What ranks is what stands behind the last.

Pure functions, no torch. Marks are texts, since a tokenizer may have them as one special token each or spell them in
several plain ones; where they stand among token ids is found by decoding.
"""

import bisect
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Marks(NamedTuple):
    """What stands around a thought."""

    opens: str
    ends: str


# Those of published models, which write them whether or not their templates do: Qwen3-VL, Qwen3.5, GLM-4.1V and
# InternVL3.5 the first, then Kimi-VL, Mistral's and Gemma 4.
KNOWN = (
    Marks("<think>", "</think>"), Marks("◁think▷", "◁/think▷"), Marks("[THINK]", "[/THINK]"),
    Marks("<|channel>", "<channel|>"),
)  # fmt: skip


class Parts(NamedTuple):
    """A text cut behind its last thought."""

    answer: str | None
    """None where a thought is not finished"""
    thought: str | None
    """all before it, with the mark and the space behind that, or all of an unfinished one; None without a thought"""


class ReadAnswer(NamedTuple):
    """What token ids of an answer say."""

    text: str | None
    """the final answer, special tokens skipped, stripped; None where a thought is not finished"""
    thought: str | None = None
    """as in Parts"""
    thought_tokens: int = 0
    """how many of the ids belong to the thought, the mark included; the counted ones follow"""

    @property
    def thought_columns(self) -> dict[str, object]:
        """The values of the columns schemas.THOUGHTS."""
        return {"thought": self.thought, "thought_tokens": None if self.thought is None else self.thought_tokens}


def cut(text: str, marks: Sequence[Marks] = KNOWN, opened: bool = False) -> Parts:
    """Cut a text behind its last end mark. `opened`: the prompt before it opened a thought."""
    end = max((place + len(one.ends) for one in marks if (place := text.rfind(one.ends)) >= 0), default=0)
    behind = text[end:]
    if any(one.opens in behind for one in marks) or (opened and not end):
        return Parts(None, text)
    if not end:
        return Parts(text, None)
    answer = behind.lstrip()
    return Parts(answer, text[: len(text) - len(answer)])


def read(
    ids: Sequence[int],
    decode: Callable[[Sequence[int]], str],
    text: Callable[[Sequence[int]], str],
    marks: Sequence[Marks] = KNOWN,
    opened: bool = False,
) -> ReadAnswer:
    """Read an answer's ids. `decode` keeps special tokens, `text` skips them and strips."""
    answer, thought = cut(decode(ids), marks, opened)
    if thought is None:
        return ReadAnswer(text(ids))
    if answer is None:
        return ReadAnswer(None, thought, len(ids))
    mark = next(one.ends for one in marks if thought.rstrip().endswith(one.ends))
    number = thought.count(mark)
    # The fewest ids whose text has the mark as often: its last token is the last of them.
    size = bisect.bisect_left(range(len(ids)), number, key=lambda size: decode(ids[:size]).count(mark))
    if decode(ids[:size]).rpartition(mark)[2].strip():
        # That token holds the beginning of the answer too, so it counts, and the text is cut within it.
        return ReadAnswer(text(ids).rpartition(mark)[2].strip(), thought, size - 1)
    return ReadAnswer(text(ids[size:]), thought, size)
