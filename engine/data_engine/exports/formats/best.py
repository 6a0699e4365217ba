"""The best answer of each question ("best of n"), which the formats for SFT are made of."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from operator import itemgetter

from data_engine.exports.cleaned import Cleaned, Fits, always
from data_engine.exports.shuffle import Key
from data_engine.preferences.answers import ALONE
from data_engine.questions.dataset import Question
from data_engine.schemas import IMPLICIT_ONLY

PLACE = "_rank"


def best_of_each(cleaned: Cleaned, fits: Fits = always) -> Iterator[tuple[Key, Question, str]]:
    """The key of its row, the question and the best answer, of each question that has an answer which can be ranked.

    `fits` tells whether the format has a place for a question.
    """
    source = cleaned.source
    best = _good_enough(cleaned, best_answers(source.answers))
    for group in cleaned.cleaned(source.with_questions(best), ("answer",), fits):
        [row] = group.rows
        yield (row["idx"], row["sample_index"]), group.question, row["answer"]


def _good_enough(cleaned: Cleaned, best: Iterable[Mapping]) -> Iterator[Mapping]:
    """The best answers whose reward is at least min_reward, such as right ones by a rule; the others are counted."""
    least, name = cleaned.source.min_reward, cleaned.source.rank_by[0]
    reward = IMPLICIT_ONLY.get(name, name)
    for row in best:
        if least is None or row[reward] >= least:
            yield row
        else:
            cleaned.leave_out(f"the best answer has less than {least:g} of the reward {reward}")


def best_answers(answers: Iterable[Mapping]) -> Iterator[Mapping]:
    """The best answer to each question, from rows of schemas.scored: its places in all rankings have the smallest sum.

    Of answers with an equal sum, the place in the first ranking decides, then sample_index. An answer that has no other
    to be ranked with is the best.
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
