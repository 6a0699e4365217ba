"""The datasets that LLaMA-Factory reads, for DPO, KTO and SFT: dataset_info.json, data.parquet, and pictures as files.

Paths are relative to the folder of dataset_info.json. Rows are parquet, and not lines of JSON, since those carry no
types: `datasets` takes texts for times where all look like one, and fails where no row of the first ones has a picture.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_engine.exports.cleaned import Cleaned
from data_engine.exports.formats.turns import best_in_turns, groups_in_turns, labelled_answers, marked
from data_engine.exports.parquet_files import row_groups
from data_engine.exports.picture_files import PictureFiles
from data_engine.exports.shuffle import Key, Shuffled, pair_key, shuffled
from data_engine.questions.dataset import Question

FILE = "data.parquet"
TURN = pa.struct([("from", pa.string()), ("value", pa.string())])
PROMPT = [("conversations", pa.list_(TURN)), ("system", pa.string()), ("images", pa.list_(pa.string()))]
PAIRS = pa.schema([*PROMPT, ("chosen", TURN), ("rejected", TURN)])
ANSWERS = pa.schema([*PROMPT, ("kto_tag", pa.bool_())])
BEST = pa.schema(PROMPT)
# Its names of the columns, by its own names for what they hold.
COLUMNS = {"messages": "conversations", "system": "system", "images": "images"}
# A tag that is not named counts as none.
TAGS = {
    "role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt",
    "observation_tag": "observation", "function_tag": "function_call", "system_tag": "system",
}  # fmt: skip
ROLES = {"user": "human", "assistant": "gpt"}
# The prompts of these have a line break behind a picture, which LLaMA-Factory's templates for them do not put there.
LINE_BREAK_BEHIND_PICTURES = ("llava", "internvl")


def write(cleaned: Cleaned, folder: Path, scratch: Path) -> int:
    """Write a row a pair, as the dataset `data_engine_dpo`."""
    rows = shuffled(_pair_rows(cleaned, PictureFiles(folder)), PAIRS, cleaned.source, scratch)
    _write(folder, _ordered(rows, cleaned), PAIRS)
    columns = COLUMNS | {"chosen": "chosen", "rejected": "rejected"}
    _describe(folder, "data_engine_dpo", {"ranking": True, "columns": columns})
    return len(rows)


def write_kto(cleaned: Cleaned, folder: Path, scratch: Path) -> int:
    """Write a row an answer, chosen or rejected, as the dataset `data_engine_kto`.

    A row is held against the answer of the row before it, so two of one question never follow each other.
    """
    answers = _answer_rows(cleaned, PictureFiles(folder))
    rows = shuffled(answers, ANSWERS, cleaned.source, scratch, keep_apart=True)
    _write(folder, _ordered(rows, cleaned), ANSWERS)
    _describe(folder, "data_engine_kto", {"columns": COLUMNS | {"kto_tag": "kto_tag"}})
    return len(rows)


def write_sft(cleaned: Cleaned, folder: Path, scratch: Path) -> int:
    """Write a row a question that has an answer which can be ranked, the best one, as the dataset `data_engine_sft`."""
    rows = shuffled(_best_rows(cleaned, PictureFiles(folder)), BEST, cleaned.source, scratch)
    _write(folder, _ordered(rows, cleaned), BEST)
    _describe(folder, "data_engine_sft", {"columns": COLUMNS})
    return len(rows)


def _pair_rows(cleaned: Cleaned, pictures: PictureFiles) -> Iterator[tuple[Key, dict]]:
    for group in groups_in_turns(cleaned):
        prompt = _prompt(group.question, pictures, cleaned.source.model_type)
        for pair in group.rows:
            yield pair_key(pair), {**prompt, **{side: _turn("gpt", pair[side]) for side in ("chosen", "rejected")}}


def _answer_rows(cleaned: Cleaned, pictures: PictureFiles) -> Iterator[tuple[Key, dict]]:
    for group in groups_in_turns(cleaned):
        prompt = _prompt(group.question, pictures, cleaned.source.model_type)
        for key, text, label in labelled_answers(cleaned, group):
            yield key, {**_answered(prompt, text), "kto_tag": label}


def _best_rows(cleaned: Cleaned, pictures: PictureFiles) -> Iterator[tuple[Key, dict]]:
    for key, question, text in best_in_turns(cleaned):
        yield key, _answered(_prompt(question, pictures, cleaned.source.model_type), text)


def _prompt(question: Question, pictures: PictureFiles, model_type: str | None) -> dict:
    """The columns of PROMPT. Without a system text, that of LLaMA-Factory's template stands."""
    behind = "\n" if (model_type or "").startswith(LINE_BREAK_BEHIND_PICTURES) else ""
    asked = [message for message in question.conversation.messages if message.role != "system"]
    return {
        "conversations": [_turn(ROLES[message.role], marked(message, behind)) for message in asked],
        "system": question.conversation.system or "",
        "images": [pictures.path_of(image) for image in question.images],
    }


def _answered(prompt: Mapping, text: str) -> dict:
    """The columns of PROMPT, with an answer as the last turn."""
    return {**prompt, "conversations": [*prompt["conversations"], _turn("gpt", text)]}


def _turn(role: str, text: str) -> dict[str, str]:
    return {"from": role, "value": text}


def _ordered(rows: Shuffled, cleaned: Cleaned) -> Shuffled:
    """The rows in the same circle, begun at one with a picture, if there is any.

    LLaMA-Factory learns the types of the columns from the first 1,000 rows, and takes no pictures behind rows without.
    """
    if not cleaned.source.questions.has_images:
        return rows
    for place in range(len(rows)):
        bucket, number = rows.order[place].tolist()
        with pa.memory_map(str(rows.paths[bucket])) as file:
            [images] = pa.ipc.open_file(file).get_batch(number).column("images").to_pylist()
        if images:
            return dataclasses.replace(rows, order=np.roll(rows.order, -place, axis=0))
    return rows


def _write(folder: Path, rows: Iterable[pa.RecordBatch], schema: pa.Schema) -> None:
    """Write one file, however large: several are read in the order in which a folder happens to list them."""
    with pq.ParquetWriter(folder / FILE, schema, use_dictionary=False, write_page_index=True) as writer:
        for group in row_groups(rows, schema):
            writer.write_table(group)


def _describe(folder: Path, name: str, entry: Mapping) -> None:
    """Write dataset_info.json, in ASCII: it is read in the encoding of the locale."""
    entries = {name: {"file_name": FILE, "formatting": "sharegpt", **entry, "tags": TAGS}}
    (folder / "dataset_info.json").write_text(f"{json.dumps(entries, indent=2)}\n", encoding="ascii")
