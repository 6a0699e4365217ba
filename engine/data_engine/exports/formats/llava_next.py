"""The dataset that LLaVA-NeXT's trainer for DPO reads, and Qwen-VL-Series-Finetune's: data.json, and pictures as files.

Both join each path to their `--image_folder`, and put the picture where `<image>` and a line break stand; LLaVA-NeXT
puts these first, and once, whatever the row says. Neither has a place for a system text or for earlier turns.
"""

from collections.abc import Iterator
from pathlib import Path

from data_engine.exports.cleaned import Cleaned
from data_engine.exports.formats.turns import MARKER
from data_engine.exports.line_files import SCHEMA, line, write_list
from data_engine.exports.picture_files import PictureFiles
from data_engine.exports.shuffle import Key, pair_key, shuffled
from data_engine.questions.dataset import Question

# LLaVA-NeXT takes a file whose path holds "jsonl" for lines, and any other for a list, as Qwen-VL-Series-Finetune does.
FILE = "data.json"


def write(cleaned: Cleaned, folder: Path, scratch: Path) -> int:
    """Write a row a pair of each question that is one picture and a text behind it, with nothing around them."""
    rows = shuffled(_rows(cleaned, PictureFiles(folder)), SCHEMA, cleaned.source, scratch)
    write_list(folder / FILE, rows)
    return len(rows)


def _rows(cleaned: Cleaned, pictures: PictureFiles) -> Iterator[tuple[Key, dict]]:
    for group in cleaned.pairs(lambda question: question.is_single):
        prompt = _prompt(group.question, pictures)
        for pair in group.rows:
            yield pair_key(pair), line({**prompt, "chosen": pair["chosen"], "rejected": pair["rejected"]})


def _prompt(question: Question, pictures: PictureFiles) -> dict:
    """`answer`: LLaVA-NeXT counts its words under `--group_by_modality_length`, as its scripts set it, and fails
    without it; nothing is trained on it."""
    [picture] = question.images
    return {
        "id": question.idx,
        "image": pictures.path_of(picture),
        "prompt": f"{MARKER}\n{question.question}",
        "answer": "",
    }
