"""The schema of every file on disk, in one place.

Everything a stage hands to the next is one of these tables; no other module spells a column's type.
"""

from collections.abc import Iterable

import pyarrow as pa

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
# Columns of the input: a dataset has question or messages, and may have image or images.
INPUT_COLUMNS = ("idx", "question", "image", "images", "messages", "system")
OPTIONAL_COLUMNS = ("ds_name", "origin_dataset", "image_path")
# What is known to be right of a question, by the names under which built-in rules look for it.
REFERENCE_COLUMNS = ("answer", "objects")


def sampled_answer(idx: pa.DataType) -> pa.Schema:
    """Stage 0: one row an answer. `token_ids` ends with EOS where the model ended ("stop"), not at "length".

    An answer from a file has finish_reason "given"; its `token_ids` are the file's, null where it has text alone.
    `answer` is null where a thought before it is not finished.
    """
    return pa.schema(
        [
            ("idx", idx),
            ("sample_index", pa.int32()),
            ("answer", pa.string()),
            ("token_ids", pa.list_(pa.int32())),
            ("finish_reason", pa.string()),
        ]
    )


# Of a unit in which an answer has a thought: its text up to the last mark and the space behind that, or all of an
# unfinished one, and how many of `token_ids` stand up to the mark; null where it has none.
THOUGHTS = (pa.field("thought", pa.string()), pa.field("thought_tokens", pa.int32()))


def sampled_answers(rows: list[dict], idx: pa.DataType) -> pa.Table:
    """A unit of stage 0, with the columns THOUGHTS where a row needs them."""
    has_thoughts = any(row["thought"] is not None for row in rows)
    return pa.Table.from_pylist(rows, pa.schema([*sampled_answer(idx), *(THOUGHTS if has_thoughts else ())]))


def logps(idx: pa.DataType) -> pa.Schema:
    """Stage 1: one row an answer; `token_logps` in nats, one a counted token (EOS included where it is there).

    Tokens of a thought are not counted, though what follows is scored behind them. An answer of which no token is
    counted has no row; one without pictures, of a question that has none, is null.
    """
    return pa.schema(
        [
            ("idx", idx),
            ("sample_index", pa.int32()),
            ("token_logps", pa.list_(pa.float32())),
            ("sum", pa.float64()),
            ("mean", pa.float64()),
        ]
    )


def scores(idx: pa.DataType, columns: Iterable[str] = ("score",)) -> pa.Schema:
    """A source of reward that gives each answer one number, or one in each of `columns`; null where it has none."""
    return pa.schema([("idx", idx), ("sample_index", pa.int32()), *((name, pa.float64()) for name in columns)])


def score_name(aspect: str) -> str:
    """The column of a judge's scores of an aspect of answers; those of a judge that is asked one thing are of none."""
    return f"score_{aspect}" if aspect else "score"


def ruled(idx: pa.DataType, columns: Iterable[str] = ("score",)) -> pa.Schema:
    """What a rule made of each answer, or several of them, in a column each: a null score has a reason, unless the rule
    itself gave the answer none.
    """
    return scores(idx, columns).append(pa.field("reason", pa.string()))


def criticised(idx: pa.DataType) -> pa.Schema:
    """What a critic wrote about each answer, why its text ended, and the number in it, or why there is none."""
    written = [("score", pa.float64()), ("critique", pa.string()), ("finish_reason", pa.string())]
    return pa.schema([("idx", idx), ("sample_index", pa.int32()), *written, ("reason", pa.string())])


def reward_name(column: str) -> str:
    """What a reward column of a source, such as contrast.avg, is called in tables: contrast_avg.

    Those that were there before any other source keep the names that they had.
    """
    return {"implicit.sum": "sum", "implicit.avg": "avg"}.get(column, column.replace(".", "_"))


# Rewards of the default source besides those that every file of pairs has a column of, under their reward_name.
IMPLICIT_ONLY = {"implicit_min": "min", "implicit_last": "last"}


def pairs(idx: pa.DataType, rewards: Iterable[str] = tuple(IMPLICIT_ONLY)) -> pa.Schema:
    """Stage 2: every candidate pair, without images; `status` is "kept" or the name of the filter that dropped it.

    `margin` is by the first reward that ranks. `rewards` are the reward_names of a run's rewards; sum and avg are null
    in a run without the source implicit.
    """
    further = [name for name in rewards if name not in ("sum", "avg")]
    return pa.schema(
        [
            ("idx", idx),
            ("chosen_index", pa.int32()),
            ("rejected_index", pa.int32()),
            ("chosen", pa.string()),
            ("rejected", pa.string()),
            ("chosen_sum", pa.float64()),
            ("rejected_sum", pa.float64()),
            ("chosen_avg", pa.float64()),
            ("rejected_avg", pa.float64()),
            ("chosen_words", pa.int32()),
            ("rejected_words", pa.int32()),
            ("status", pa.string()),
            ("margin", pa.float64()),
            *((f"{side}_{name}", pa.float64()) for name in further for side in ("chosen", "rejected")),
        ]
    )


def scored(idx: pa.DataType, rewards: Iterable[str] = (), rank_by: Iterable[str] = ("sum", "avg")) -> pa.Schema:
    """Every answer of a run with its rewards, its places in the rankings (from 1), and why it has none.

    `rewards` and `rank_by` are reward_names of the run's.
    """
    known = ("sum", "avg", "min", "last")
    further = [name for name in rewards if name not in ("sum", "avg", *IMPLICIT_ONLY)]
    answer = [("answer", pa.string()), ("token_ids", pa.list_(pa.int32())), ("finish_reason", pa.string())]
    numbers = [(name, pa.float64()) for name in (*known, *further)]
    places = [(f"{IMPLICIT_ONLY.get(name, name)}_rank", pa.int32()) for name in rank_by]
    return pa.schema(
        [("idx", idx), ("sample_index", pa.int32()), *answer, *numbers, *places, ("not_ranked", pa.string())]
    )


def dpo_dataset(idx: pa.DataType, optional: tuple[str, ...] = ()) -> pa.Schema:
    """The result: what the RLAIF-V trainer reads. `optional` names those of OPTIONAL_COLUMNS that the input had."""
    columns = [("idx", idx), ("question", pa.string()), ("chosen", pa.string()), ("rejected", pa.string())]
    columns += [("image", IMAGE), *((name, pa.string()) for name in optional)]
    return pa.schema(columns)


def without_image_marker(question: str) -> str:
    """The question without any literal `<image>`: the prompt and the trainer add their own, and must add the same."""
    while "<image>" in question:
        question = question.replace("<image>", "")
    return question
