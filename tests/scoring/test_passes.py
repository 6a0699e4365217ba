"""The loop of a stage that computes numbers of answers, with stand-ins for the models: halves, room, the self-check."""

from types import SimpleNamespace

import pyarrow as pa
import pytest
import torch

from data_engine import schemas
from data_engine.errors import NO_ROOM, OUT_OF_MEMORY, BadRow, UserError
from data_engine.pipeline import judge, score
from data_engine.pipeline.judge import Judged
from data_engine.pipeline.passes import Behind, compute_unit
from data_engine.pipeline.runner import UnitWork
from data_engine.questions.dataset import Question
from data_engine.scoring.logprobs import Scored
from data_engine.store.units import UnitResult

PROMPT = SimpleNamespace(length=10)
QUESTION = Question("q", "What is it?", None, None)
ROW = {"idx": "q", "sample_index": 0, "answer": "A cat.", "token_ids": [5]}


def test_half_of_the_answers_keep_their_own_thoughts():
    whole = Behind(Scored(PROMPT, [[1], [2, 2, 2], [3, 3]]), 16, uncounted=(0, 2, 1))
    one, other = whole.halves()
    assert (one.scored.answers, one.uncounted) == ([[1]], (0,))
    assert (other.scored.answers, other.uncounted) == ([[2, 2, 2], [3, 3]], (2, 1))
    # Two tokens of the first are its thought; the second is nothing else.
    counted = other.counted([torch.tensor([-1.0, -2.0, -4.0]), torch.tensor([-8.0])])
    assert counted[0].tolist() == [-4.0]
    assert counted[1] is None
    assert one.halves() is None


@pytest.mark.parametrize(("positions", "fits"), [(15, True), (14, False)])
def test_a_judge_has_room_for_the_prompt_and_the_answer_behind_it(positions, fits):
    model = SimpleNamespace(
        why_plain=None, reads_ahead=False, max_positions=positions,
        shared_prompt=lambda asked, pictures, crop, most: (PROMPT, [[7] * 5 for _ in asked]),
    )  # fmt: skip
    judged = Judged(model, SimpleNamespace(conversation=lambda asked, answer: answer), 64)
    if fits:
        assert judged.prepare(QUESTION, [ROW]).scored.answers == [[7] * 5]
    else:
        with pytest.raises(BadRow, match="prompt of 10 tokens, answer of 5, room for 14"):
            judged.prepare(QUESTION, [ROW])


@pytest.mark.parametrize(("ids", "told"), [([9], None), ([10], "has the id 10; the model has 10 ids")])
def test_an_answer_of_an_id_that_the_model_has_not_is_left_out(ids, told):
    model = SimpleNamespace(num_ids=10, banned_token_ids=[])
    row = ROW | {"token_ids": ids, "thought_tokens": None}
    if told is None:
        assert score._answer_ids(model, QUESTION.conversation, row, False) == (ids, 0)
    else:
        with pytest.raises(BadRow, match=told):
            score._answer_ids(model, QUESTION.conversation, row, False)


class TooLarge:
    """A scorer of a model whose memory holds no answer."""

    model, what = SimpleNamespace(device=torch.device("cpu"), why_plain=None, is_split=False), "numbers"

    def prepare(self, question, rows):
        return Behind(Scored(PROMPT, [row["token_ids"] for row in rows]), 11)

    def compute(self, works):
        raise torch.OutOfMemoryError


def test_a_later_unit_of_questions_that_memory_does_not_hold_is_left_out_and_a_first_one_refused():
    sampled = pa.Table.from_pylist([ROW])
    assert compute_unit(TooLarge(), [QUESTION], sampled, 0).quarantined == [("q", OUT_OF_MEMORY)]
    with pytest.raises(UserError) as refused:
        compute_unit(TooLarge(), [QUESTION], sampled, 0, check=True)
    assert str(refused.value) == NO_ROOM


@pytest.mark.parametrize("stage", ["score", "blind", "judge"])
def test_units_are_checked_against_the_plain_path_until_one_has_numbers(monkeypatch, stage):
    """Of a question without a picture there are log-probs with its image alone: nulls are no numbers."""
    row = {"idx": "q", "sample_index": 0}
    logps, scores = schemas.logps(pa.string()), schemas.scores(pa.string())
    nothing, found = ([] if stage != "blind" else [row]), [row | {"sum": -1.0, "score": 1.0}]
    schema, checked = (scores if stage == "judge" else logps), []
    results = iter([pa.Table.from_pylist(rows, schema) for rows in (nothing, found, found)])

    def computed(*arguments):
        # The fifth argument of both.
        checked.append(arguments[4])
        return UnitResult(next(results), [])

    monkeypatch.setattr(score, "score_unit", computed)
    monkeypatch.setattr(judge, "judge_unit", computed)
    context = SimpleNamespace(
        model=SimpleNamespace(why_plain=None, reads_ahead=False, value_head=None), budgets={"score_tokens": 0},
        answers_as_text=False, scores_own=False, decode=None, config=SimpleNamespace(max_megapixels=64),
    )  # fmt: skip
    makers = {"score": score.runner, "blind": score.blind_runner, "judge": judge.scalar_runner}
    runner = makers[stage](context)
    for number in range(3):
        runner.submit(UnitWork(number, [], {"sampled_answer": SimpleNamespace(table=None)}))
        runner.poll()
    assert checked == [True, True, False]
