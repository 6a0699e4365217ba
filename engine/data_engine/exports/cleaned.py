"""The one step before every format: texts that a trainer would misread are rewritten, rows that teach nothing left out.

Trainers take some texts for pictures, or put something else in their place, and their tokenizers read the special
tokens of the trained model in a text as these tokens. Data Engine gave both models such texts as text.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from data_engine.exports.base import NO_SOURCE, NOT_FITTING, ExportSource, QuestionRows
from data_engine.processes.counting import counting
from data_engine.questions.dataset import Question

PLACEHOLDERS = (
    "<image>", "<video>", "<audio>",
    # ms-swift opens the file of `<img>PATH</img>`. It splits a text at the others, which then has other token ids.
    "<img>", "<bbox>", "<ref-object>", "<cot-process>", "<start-image>",
    # LLaMA-Factory puts the number of the turn in place of the last, and tokens of pictures in place of the others.
    "{{image}}", "{{video}}", "{{audio}}", "{{idx}}",
)  # fmt: skip
UNREADABLE = "a text holds a control token that cannot be rewritten"
EMPTY = "an answer is empty"
EQUAL = "both answers are equal"
# A rewritten text may hold a token that was none before; it hardly does so twice.
_ROUNDS = 4


Fits = Callable[[Question], bool]


def always(question: Question) -> bool:
    """The `fits` of a format that has a place for every question."""
    return True


class Rewriting:
    """Rewrites texts so that no trainer reads a control token in them."""

    def __init__(self, control_tokens: Iterable[str]) -> None:
        # A token of a single character, or of white space, has no inside that could be broken, and encodes to itself.
        tokens = {token for token in (*PLACEHOLDERS, *control_tokens) if len(token.strip()) > 1}
        self.tokens = tuple(sorted(tokens, key=lambda token: (-len(token), token)))

    def text(self, text: str) -> str | None:
        """The text with a space behind the first character of each control token; None where one is left still."""
        for _ in range(_ROUNDS):
            found = [token for token in self.tokens if token in text]
            if not found:
                return text
            for token in found:
                start = len(token) - len(token.lstrip()) + 1
                text = text.replace(token, f"{token[:start]} {token[start:]}")
        return None

    def question(self, question: Question) -> tuple[Question | None, bool]:
        """The question with its control tokens rewritten.

        None where one is left still. The second tells whether there was another one.
        """
        messages, changed = [], False
        for message in question.conversation.messages:
            parts = [part if isinstance(part, int) else self.text(part) for part in message.content]
            if None in parts or not self._reads_as_text(parts):
                return None, True
            changed = changed or tuple(parts) != message.content
            messages.append(dataclasses.replace(message, content=tuple(parts)))
        conversation = dataclasses.replace(question.conversation, messages=tuple(messages))
        return dataclasses.replace(question, question=conversation.question, conversation=conversation), changed

    def _reads_as_text(self, parts: Sequence[str | int]) -> bool:
        """Whether no control token begins in one text and ends in the next, which trainers see as one."""
        runs = itertools.groupby(parts, key=lambda part: isinstance(part, str))
        texts = ["".join(run) for is_text, run in runs if is_text]
        return not any(token in text for text in texts for token in self.tokens)


class Cleaned:
    """What a format reads of an ExportSource, once: question by question, cleaned. It counts what it leaves out."""

    def __init__(self, source: ExportSource) -> None:
        self.source = source
        self.left_out: Counter[str] = Counter()
        """reason -> rows"""
        self.without_source: dict[int | str, str] = {}
        """idx of a question that can no longer be read -> why"""
        self.rewritten = 0
        self._rewriting = Rewriting(source.control_tokens)

    def pairs(self, fits: Fits = always) -> Iterator[QuestionRows]:
        """Each question that has a kept pair, with those of its pairs that can be trained on.

        `fits` tells whether the format has a place for a question.
        """
        rows = counting(self.source.pairs, len(self.source.pairs), "pairs")
        return self.cleaned(self.source.with_questions(rows), ("chosen", "rejected"), fits)

    def cleaned(
        self, groups: Iterable[QuestionRows], columns: Sequence[str], fits: Fits = always
    ) -> Iterator[QuestionRows]:
        """Each question with those of its rows that can be trained on; a trainer reads their texts as texts.

        `columns` name the answers of a row. Its key "rewritten" tells whether a text is not as the models had it: one
        of these, or one of the question.
        """
        for group in groups:
            if not group.has_source:
                self.without_source[group.question.idx] = str(group.question.problem)
                self.leave_out(NO_SOURCE, len(group.rows))
                continue
            if not fits(group.question):
                self.leave_out(NOT_FITTING, len(group.rows))
                continue
            question, changed = self._rewriting.question(group.question)
            if question is None:
                self.leave_out(UNREADABLE, len(group.rows))
                continue
            rows = [row for row in (self._row(row, columns, changed) for row in group.rows) if row is not None]
            self.rewritten += sum(row["rewritten"] for row in rows)
            if rows:
                yield dataclasses.replace(group, question=question, rows=rows)

    def leave_out(self, reason: str, rows: int = 1) -> None:
        """Count rows that are not written."""
        self.left_out[reason] += rows

    def leave_out_row(self, reason: str, row: Mapping) -> None:
        """Count a row that was given by `cleaned`, and that the format does not write."""
        self.leave_out(reason)
        self.rewritten -= row["rewritten"]

    def _row(self, row: Mapping, columns: Sequence[str], changed: bool) -> dict | None:
        """A row with clean answers, or None, counted; `changed` tells whether its question was rewritten."""
        texts = {name: self._rewriting.text(row[name]) for name in columns}
        reason = None
        if None in texts.values():
            reason = UNREADABLE
        elif not all(text.strip() for text in texts.values()):
            reason = EMPTY
        elif len({text.strip() for text in texts.values()}) < len(columns):
            reason = EQUAL
        if reason is not None:
            self.leave_out(reason)
            return None
        return {**row, **texts, "rewritten": changed or any(texts[name] != row[name] for name in columns)}
