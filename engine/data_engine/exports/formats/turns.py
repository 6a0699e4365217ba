"""Conversations as trainers write them: messages of a role and a text, with a marker where each picture stands."""

from collections.abc import Iterator

from data_engine.exports.base import QuestionRows
from data_engine.exports.cleaned import Cleaned
from data_engine.exports.formats.best import best_of_each
from data_engine.exports.shuffle import Key
from data_engine.questions.conversation import Conversation, Message
from data_engine.questions.dataset import Question

MARKER = "<image>"
BOTH = "an answer is chosen in one pair and rejected in another"


def marked(message: Message, behind: str = "") -> str:
    """The message's text with MARKER, and `behind` after it, at the place of each picture."""
    return "".join(part if isinstance(part, str) else MARKER + behind for part in message.content)


def pictures_in_order(conversation: Conversation) -> bool:
    """Whether the pictures stand in the messages in their order, and only in those of the user."""
    found = [part for message in conversation.messages for part in message.content if isinstance(part, int)]
    users = [part for message in conversation.messages if message.role == "user"
             for part in message.content if isinstance(part, int)]  # fmt: skip
    return found == users == list(range(len(found)))


def in_turns(conversation: Conversation) -> bool:
    """Whether it is what trainers take: perhaps a system text, then user and assistant in turns, the user at both ends.

    They take pictures by their order. Some put two turns of one role together, or leave such a row out unsaid.
    """
    roles = [message.role for message in conversation.messages]
    turns = roles[1:] if roles[0] == "system" else roles
    expected = ["user", "assistant"] * (len(turns) // 2) + ["user"]
    return turns == expected and not conversation.answer_start and pictures_in_order(conversation)


def groups_in_turns(cleaned: Cleaned) -> Iterator[QuestionRows]:
    """Each question whose conversation is in_turns, with its pairs; the others are counted as left out."""
    return cleaned.pairs(_fits)


def best_in_turns(cleaned: Cleaned) -> Iterator[tuple[Key, Question, str]]:
    """best_of_each of the questions whose conversation is in_turns; the others are counted as left out."""
    return best_of_each(cleaned, _fits)


def _fits(question: Question) -> bool:
    return in_turns(question.conversation)


def labelled_answers(cleaned: Cleaned, group: QuestionRows) -> Iterator[tuple[Key, str, bool]]:
    """Each answer of a question's pairs once: the key of its row, its text, and whether it is a good one.

    An answer that is chosen in one pair and rejected in another says nothing: it is counted as left out.
    """
    found: dict[str, tuple[int, set[bool]]] = {}
    for pair in group.rows:
        for side, label in (("chosen", True), ("rejected", False)):
            # By their texts: rewriting may have made two answers equal.
            _, labels = found.setdefault(pair[side], (pair[f"{side}_index"], set()))
            labels.add(label)
    for text, (sample_index, labels) in found.items():
        if len(labels) > 1:
            cleaned.leave_out(BOTH)
            continue
        yield (group.question.idx, sample_index), text, True in labels
