"""The dataset that InternVL's trainer for MPO reads: meta.json, data.jsonl, and pictures as files.

It joins no path to where meta.json lies: `root` and `annotation` are relative to the folder in which it is started. So
that an export can be moved, they are given as from its own folder.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from data_engine.exports.cleaned import Cleaned
from data_engine.exports.formats.turns import in_turns, marked
from data_engine.exports.line_files import SCHEMA, line, write_lines
from data_engine.exports.picture_files import PictureFiles
from data_engine.exports.shuffle import Key, pair_key, shuffled
from data_engine.questions.dataset import Question

# It refuses a name without this ending.
ANNOTATION = "data.jsonl"


def write(cleaned: Cleaned, folder: Path, scratch: Path) -> int:
    """Write a row a pair of each question that is pictures and a text, with nothing around them."""
    rows = shuffled(_rows(cleaned, PictureFiles(folder)), SCHEMA, cleaned.source, scratch)
    write_lines(folder / ANNOTATION, rows)
    entry = {"root": ".", "annotation": ANNOTATION, "data_augment": False, "repeat_time": 1, "length": len(rows)}
    (folder / "meta.json").write_text(f"{json.dumps({'data_engine': entry}, indent=2)}\n", encoding="ascii")
    return len(rows)


def _rows(cleaned: Cleaned, pictures: PictureFiles) -> Iterator[tuple[Key, dict]]:
    for group in cleaned.pairs(_fits):
        prompt = _prompt(group.question, [pictures.path_of(image) for image in group.question.images])
        for pair in group.rows:
            yield pair_key(pair), line({**prompt, "chosen": pair["chosen"], "rejected": pair["rejected"]})


def _fits(question: Question) -> bool:
    """Whether it is one turn, with a picture at least."""
    return in_turns(question.conversation) and len(question.conversation.messages) == 1 and bool(question.images)


def _prompt(question: Question, paths: list[str]) -> dict:
    """Before a question without `<image>`, the trainer puts `<image>` and a line break, for one picture alone.

    Where `<image>` stands in the question, it has a line break behind it, too, as InternVL's chat template does.
    """
    if question.is_single:
        return {"image": paths[0], "question": question.question}
    [asked] = question.conversation.messages
    return {"image": paths if len(paths) > 1 else paths[0], "question": marked(asked, "\n")}
