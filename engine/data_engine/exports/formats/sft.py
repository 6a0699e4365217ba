"""What TRL's SFTTrainer reads: the best answer of each question ("best of n")."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from operator import itemgetter
from pathlib import Path

from data_engine.exports.cleaned import Cleaned
from data_engine.exports.formats.trl import MESSAGES, asked, said, schema_of
from data_engine.exports.parquet_files import write_files
from data_engine.exports.shuffle import Key, shuffled
from data_engine.preferences.answers import ALONE
from data_engine.schemas import IMPLICIT_ONLY

PLACE = "_rank"


def write(cleaned: Cleaned, folder: Path, scratch: Path) -> int:
    """Write folder/train*.parquet, a row a question that has an answer which can be ranked, shuffled by the seed."""
    schema = schema_of(cleaned.source, [("completion", MESSAGES)])
    rows = shuffled(_rows(cleaned), schema, cleaned.source, scratch)
    write_files(folder, "train", rows, schema)
    return len(rows)


def _rows(cleaned: Cleaned) -> Iterator[tuple[Key, dict]]:
    source = cleaned.source
    best = _good_enough(cleaned, best_answers(source.answers))
    for group in cleaned.cleaned(source.with_questions(best), ("answer",)):
        [row] = group.rows
        yield (row["idx"], row["sample_index"]), {**asked(group.question), "completion": said(row["answer"])}


def _good_enough(cleaned: Cleaned, best: Iterable[Mapping]) -> Iterator[Mapping]:
    """Those of at least the least reward that is asked for, such as right ones by a rule; the others are counted."""
    least, name = cleaned.source.min_reward, cleaned.source.rank_by[0]
    reward = IMPLICIT_ONLY.get(name, name)
    for row in best:
        if least is None or row[reward] >= least:
            yield row
        else:
            cleaned.leave_out(f"the best answer has less than {least:g} of the reward {reward}")


def best_answers(answers: Iterable[Mapping]) -> Iterator[Mapping]:
    """Of rows of schemas.scored the best one of each question, whose places in all rankings have the smallest sum.

    Equal ones go by their place in the first ranking, then by sample_index. One that has none to rank against is it.
    """
    for _, group in itertools.groupby(answers, key=itemgetter("idx")):
        rows = list(group)
        if ranked := [row for row in rows if row["not_ranked"] is None]:
            yield min(ranked, key=_order)
        else:
            yield from (row for row in rows if row["not_ranked"] == ALONE)


def _order(row: Mapping) -> tuple[int, int, int]:
    places = [place for name, place in row.items() if name.endswith(PLACE)]
    return sum(places), places[0], row["sample_index"]
