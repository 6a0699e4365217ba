"""The datasets that ms-swift reads, for DPO, KTO, reward models and SFT: messages, with the pictures inside the file.

Its templates put what a model needs around a picture themselves, so `<image>` stands alone. A picture has no path: a
path that exists where one trains, or that begins with http, would be opened in place of the bytes.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from data_engine.exports.cleaned import Cleaned
from data_engine.exports.formats.turns import best_in_turns, groups_in_turns, labelled_answers, marked
from data_engine.exports.parquet_files import write_files
from data_engine.exports.shuffle import Key, pair_key, shuffled
from data_engine.questions.dataset import Question
from data_engine.schemas import IMAGE

# Nothing is declared to `datasets`: of a list that is declared as pictures, ms-swift reads the pixels and encodes them
# again, which changes those of a JPEG.
MESSAGES = ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])))
IMAGES = ("images", pa.list_(IMAGE))
PAIRS = pa.schema([MESSAGES, ("rejected_response", pa.string()), IMAGES])
PAIRS_WITH_MARGIN = pa.schema([MESSAGES, ("rejected_response", pa.string()), IMAGES, ("margin", pa.float64())])
ANSWERS = pa.schema([MESSAGES, ("label", pa.bool_()), IMAGES])
BEST = pa.schema([MESSAGES, IMAGES])


def write(cleaned: Cleaned, folder: Path, scratch: Path) -> int:
    """Write a row a pair, for DPO and what resembles it."""
    rows = shuffled(_pair_rows(cleaned), PAIRS, cleaned.source, scratch)
    write_files(folder, "train", rows, PAIRS)
    return len(rows)


def write_rm(cleaned: Cleaned, folder: Path, scratch: Path) -> int:
    """Write a row a pair with its margin, for reward models.

    The loss is -log sigmoid(score of chosen - score of rejected - margin). The margin is the difference of the summed
    rewards, or 0 where that is negative, as it may be in a pair that was made by another reward: a negative margin
    would let the model prefer the rejected answer.
    """
    rows = shuffled(_pair_rows(cleaned), PAIRS_WITH_MARGIN, cleaned.source, scratch)
    write_files(folder, "train", rows, PAIRS_WITH_MARGIN)
    return len(rows)


def write_kto(cleaned: Cleaned, folder: Path, scratch: Path) -> int:
    """Write a row an answer, chosen or rejected; two of one question never follow each other."""
    rows = shuffled(_answer_rows(cleaned), ANSWERS, cleaned.source, scratch, keep_apart=True)
    write_files(folder, "train", rows, ANSWERS)
    return len(rows)


def write_sft(cleaned: Cleaned, folder: Path, scratch: Path) -> int:
    """Write a row a question that has an answer which can be ranked: the best one."""
    rows = shuffled(_best_rows(cleaned), BEST, cleaned.source, scratch)
    write_files(folder, "train", rows, BEST)
    return len(rows)


def _pair_rows(cleaned: Cleaned) -> Iterator[tuple[Key, dict]]:
    """Rows of PAIRS_WITH_MARGIN; PAIRS leaves the margin out."""
    for group in groups_in_turns(cleaned):
        prompt, images = _messages(group.question), _images(group.question)
        for pair in group.rows:
            yield (
                pair_key(pair),
                {
                    "messages": [*prompt, _message("assistant", pair["chosen"])],
                    "rejected_response": pair["rejected"],
                    "images": images,
                    "margin": max(0.0, pair["margin"]),
                },
            )


def _answer_rows(cleaned: Cleaned) -> Iterator[tuple[Key, dict]]:
    """Rows of ANSWERS."""
    for group in groups_in_turns(cleaned):
        prompt, images = _messages(group.question), _images(group.question)
        for key, text, label in labelled_answers(cleaned, group):
            yield key, {"messages": [*prompt, _message("assistant", text)], "label": label, "images": images}


def _best_rows(cleaned: Cleaned) -> Iterator[tuple[Key, dict]]:
    """Rows of BEST."""
    for key, question, text in best_in_turns(cleaned):
        messages = [*_messages(question), _message("assistant", text)]
        yield key, {"messages": messages, "images": _images(question)}


def _messages(question: Question) -> list[dict[str, str]]:
    return [_message(message.role, marked(message)) for message in question.conversation.messages]


def _message(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def _images(question: Question) -> list[dict]:
    return [{"bytes": image, "path": None} for image in question.images]
