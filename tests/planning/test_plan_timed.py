"""Which units a rank of a measurement computes, and what it tells of them, by stand-ins whose times are known."""

from types import SimpleNamespace

import pyarrow as pa
import pytest

from data_engine.errors import UserError
from data_engine.planning import timed
from data_engine.planning.timed import Spent, Timed
from data_engine.stages import SAMPLING, RunStages
from data_engine.store import units

SCORING = RunStages().by_name["instruct_logps"]


class Measured(Timed):
    """Two units of 8 questions, and one of 4; a unit of n questions takes `cost(n)` seconds."""

    def __init__(self, cost) -> None:
        self.size, self.whole, self.rows = 8, [range(8), range(8, 16), range(16, 20)], []
        self.cost, self.computed, self.held = cost, [], SimpleNamespace(role=None, runner=self.load)

    def load(self, stage, _coordination) -> None:
        self.held.role = stage.model or self.held.role

    def add(self, rows: range) -> int:
        self.rows.append(rows)
        return len(self.rows) - 1

    def compute(self, stage, unit, runner) -> Spent:
        self.computed.append(unit)
        seconds = self.cost(len(self.rows[unit]))
        return Spent(seconds, seconds)

    def _written(self, stage, count) -> dict:
        return {}


def sizes(found: dict) -> list[int]:
    return [count for count, _ in found["times"]]


def test_whole_units_are_timed_behind_one_question_that_warms_up_and_one_that_tells_their_time():
    rank = Measured(lambda number: float(number))
    # 19 s are left of 20: a unit takes 8 by the second question, and behind two of them 3 s are left.
    found = rank.one_stage(SAMPLING, 20.0, {}, first=True)
    assert rank.rows == [range(1), range(1), range(8), range(8, 16)]
    assert sizes(found) == [1, 8, 8]


def test_where_a_whole_unit_would_take_too_long_two_parts_tell_how_long():
    rank = Measured(lambda number: 2.0 * number)
    # Of 10 s that are left a unit takes 16. A third of them is the time of one question.
    found = rank.one_stage(SAMPLING, 12.0, {}, first=True)
    assert rank.rows == [range(1), range(1), range(1), range(2)]
    assert sizes(found) == [1, 1, 2]


def test_parts_may_tell_that_whole_units_fit_the_time_all_the_same():
    """Answers beside each other cost nothing here: a question takes as long as 8."""
    rank = Measured(lambda number: 3.0)
    # Of 18 s that are left, 8 times one question's 3 would take 24; by a part of 4, a unit takes 6.
    found = rank.one_stage(SAMPLING, 21.0, {}, first=True)
    assert rank.rows == [range(1), range(1), range(2), range(4), range(8), range(8, 16), range(16, 20)]
    assert sizes(found) == [1, 2, 4, 8, 8, 4]


def test_a_later_stage_warms_up_too_times_a_whole_unit_at_least_and_loads_what_is_not_held():
    rank, loads = Measured(lambda number: float(number)), {}
    rank.one_stage(SAMPLING, 20.0, loads, first=True)
    first = dict(loads)
    rank.computed.clear()
    found = rank.one_stage(SCORING, 0.0, loads, first=False)
    # The time is over at once: the unit that warms up is not timed, and one of 8 questions is.
    assert rank.computed == [0, 1, 2]
    assert sizes(found) == [1, 8]
    assert first.keys() == {"instruct"}
    assert loads["instruct"] is first["instruct"], "the model was held"


def test_tokens_and_bytes_of_an_answer_are_those_of_the_units_that_were_timed(tmp_path, monkeypatch):
    # Of the unit that warms up, then of two that are timed: 2 answers of 3 tokens, and 4 of one.
    ids = [[[7] * 9], [[7] * 3] * 2, [[7]] * 4]
    monkeypatch.setattr(timed, "read_unit", lambda _folder, _stage, unit, _bound: SimpleNamespace(
        table=pa.table({"token_ids": pa.array(ids[unit], pa.list_(pa.int32()))})
    ))  # fmt: skip
    for unit in range(3):
        path = units.unit_path(tmp_path, "sampled_answer", unit)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 100 * (unit + 1))
    rank = Timed.__new__(Timed)
    rank.plan = SimpleNamespace(work_dir=tmp_path, bound={})
    told = rank._written(SAMPLING, 2)
    assert told == {"tokens_an_answer": (6 + 4) / 6, "bytes_an_answer": (200 + 300) / 6}


@pytest.mark.parametrize("split", [False, True])
def test_whole_units_come_first_and_split_models_are_refused(monkeypatch, split):
    rows = [range(8), range(8, 12), range(12, 20), range(20, 28)]
    plan = SimpleNamespace(placement=SimpleNamespace(split=split), unit_rows=rows)
    monkeypatch.setattr(timed.Plan, "of", lambda config, ranks: plan)
    monkeypatch.setattr(timed, "ImageWorkers", lambda: None)
    monkeypatch.setattr(timed, "ModelHolder", lambda plan, images: None)
    if split:
        with pytest.raises(UserError, match="a model that is split over ranks is not measured"):
            Timed(None, None, 1.0)
        return
    found = Timed(None, None, 1.0)
    assert found.size == 8
    assert {len(one) for one in found.whole[:3]} == {8}
    assert sorted(found.whole, key=lambda one: one.start) == rows
