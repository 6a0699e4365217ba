"""Rows whose images are lists and whose questions are messages: how a test spells them, and what is read of them."""

from pathlib import Path

from question_files import write_jsonl

from data_engine.questions.conversation import Message
from data_engine.questions.dataset import Question, load_questions

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"
# A part of a message, in the place of the next image.
PLACE = {"type": "image"}


def said(role: str, *content: str | int) -> Message:
    return Message(role, content)


def message(role: str, content: object) -> dict:
    return {"role": role, "content": content}


def text(text: str) -> dict:
    return {"type": "text", "text": text}


def asked(folder: Path, root: Path | None = None, **options) -> list[Question]:
    questions = load_questions(str(folder), image_root=str(root) if root else None, **options)
    return list(questions.rows(range(len(questions))))


def row_of(tmp_path: Path, **cells: object) -> Question:
    """The only row of a jsonl file; images are files of tmp_path whose content is their name."""
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode())
    return asked(write_jsonl(tmp_path / "q.jsonl", {"idx": 1} | cells), tmp_path)[0]
