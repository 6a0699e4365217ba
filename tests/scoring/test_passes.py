"""The loop of a stage that computes numbers of answers, with stand-ins for the models: halves, room, the self-check."""

from collections.abc import Container
from types import SimpleNamespace

import pyarrow as pa
import pytest
import torch

from data_engine.errors import NO_ROOM, OUT_OF_MEMORY, BadRow, UserError
from data_engine.pipeline import judge, score
from data_engine.pipeline.judge import JudgeScores
from data_engine.pipeline.passes import AnswerRunner, compute_unit
from data_engine.pipeline.runner import UnitWork
from data_engine.pipeline.works import Behind, Whole
from data_engine.questions.dataset import Question
from data_engine.questions.thoughts import ReadAnswer
from data_engine.scoring.logprobs import Scored
from data_engine.store.sealed import Sealed

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
        shared_prompt=lambda asked, pictures, most: (PROMPT, [[7] * 5 for _ in asked]),
    )  # fmt: skip
    judged = JudgeScores(model, {"score": SimpleNamespace(conversation=lambda asked, answer: answer)}, 64)
    if fits:
        assert judged.prepare(QUESTION, [ROW]).scored.answers == [[7] * 5]
    else:
        with pytest.raises(BadRow, match="prompt of 10 tokens, answer of 5, room for 14"):
            judged.prepare(QUESTION, [ROW])


@pytest.mark.parametrize("whole", [False, True])
def test_a_judge_leaves_out_what_is_too_long_alone(whole):
    """The texts are as long as their rows of ids, or as their prompts."""
    model = SimpleNamespace(
        why_plain=None, reads_ahead=whole, max_positions=15 if whole else 25,
        shared_prompt=lambda asked, pictures, most: (PROMPT, [[7] * len(text) for text in asked]),
        prompts=lambda asked, pictures, crop, most: [SimpleNamespace(length=len(text)) for text in asked],
    )  # fmt: skip
    judged = JudgeScores(model, {"score": SimpleNamespace(conversation=lambda asked, answer: answer)}, 64)
    rows = [ROW | {"answer": "x" * length} for length in (5, 16, 15, 16)]
    work = judged.prepare(QUESTION, rows)
    kept = [one.length for one in work.prompts] if whole else list(map(len, work.scored.answers))
    assert kept == [5, 15]
    assert work.left_out.keys() == {1, 3}
    assert set(work.left_out.values()) == {
        "too long to score: prompt of 16 tokens, answer of 0, room for 15" if whole else
        "too long to score: prompt of 10 tokens, answer of 16, room for 25"
    }  # fmt: skip


def test_an_answer_of_which_one_aspect_is_too_long_is_left_out_and_halves_keep_aspects_together():
    model = SimpleNamespace(
        why_plain=None, reads_ahead=False, max_positions=25,
        shared_prompt=lambda asked, pictures, most: (PROMPT, [[7] * len(text) for text in asked]),
    )  # fmt: skip
    readings = {f"score_{n}": SimpleNamespace(conversation=lambda asked, answer, n=n: answer * n) for n in (1, 2, 3)}
    work = JudgeScores(model, readings, 64).prepare(
        QUESTION, [ROW | {"answer": "x" * length} for length in (5, 6, 4, 2)]
    )
    assert [list(map(len, one.scored.answers)) for one in (work, *work.halves())] == [
        [5, 10, 15, 4, 8, 12, 2, 4, 6], [5, 10, 15], [4, 8, 12, 2, 4, 6]
    ]  # fmt: skip
    assert work.left_out == {1: "too long to score: prompt of 10 tokens, answer of 18, room for 25"}
    assert work.halves()[0].halves() is None
    whole = Whole([*map(str, range(6))], each=3)
    assert [one.prompts for one in whole.halves()] == [["0", "1", "2"], ["3", "4", "5"]]
    assert whole.halves()[1].halves() is None


@pytest.mark.parametrize(("ids", "told"), [([9], None), ([10], "has the id 10; the model has 10 ids")])
def test_an_answer_of_an_id_that_the_model_has_not_is_left_out(ids, told):
    model = SimpleNamespace(num_ids=10, banned_token_ids=[])
    row = ROW | {"token_ids": ids, "thought_tokens": None}
    if told is None:
        assert score._answer_ids(model, QUESTION.conversation, row, False) == (ids, 0)
    else:
        with pytest.raises(BadRow, match=told):
            score._answer_ids(model, QUESTION.conversation, row, False)


@pytest.mark.parametrize(("last", "told"), [(9, None), (10, "an answer has the id 10 of its tokenizer; the model")])
def test_a_text_that_its_tokenizer_writes_by_an_id_that_the_model_has_not_is_left_out(last, told):
    model = SimpleNamespace(
        num_ids=10, encode_answer=lambda asked, text: [4, last],
        read_answer=lambda asked, ids: ReadAnswer("A cat."),
    )  # fmt: skip
    row = ROW | {"token_ids": None, "finish_reason": "given"}
    if told is None:
        assert score._answer_ids(model, QUESTION.conversation, row, False) == ([4, 9], 0)
    else:
        with pytest.raises(BadRow, match=told):
            score._answer_ids(model, QUESTION.conversation, row, False)


def test_prompts_that_equal_answers_share_count_once_in_a_pass():
    one, other = SimpleNamespace(length=7), SimpleNamespace(length=5)
    assert Whole([one, other, one, one]).tokens == 12


class TooLarge:
    """A scorer of a model whose memory holds no answer."""

    model, what = SimpleNamespace(device=torch.device("cpu"), why_plain=None, is_split=False), "numbers"

    def __init__(self, fits: Container[str] = ()) -> None:
        """But those to the questions of `fits`."""
        self.fits = fits

    def prepare(self, question, rows):
        prompt = SimpleNamespace(length=10, fits=question.idx in self.fits)
        return Behind(Scored(prompt, [row["token_ids"] for row in rows]), 11)

    def compute(self, works):
        if not all(work.scored.prompt.fits for work in works):
            raise torch.OutOfMemoryError
        return [[torch.zeros(1)] for _ in works]

    def check(self, work, found):
        """As if it held."""


def test_a_later_unit_of_questions_that_memory_does_not_hold_is_left_out_and_a_first_one_refused():
    sampled = pa.Table.from_pylist([ROW])
    assert compute_unit(TooLarge(), [QUESTION], sampled, 0).quarantined == [("q", OUT_OF_MEMORY)]
    with pytest.raises(UserError) as refused:
        compute_unit(TooLarge(), [QUESTION], sampled, 0, check=True)
    assert str(refused.value) == NO_ROOM


def works(*names: str) -> UnitWork:
    """A unit of questions with an answer each."""
    sampled = pa.Table.from_pylist([ROW | {"idx": name} for name in names])
    questions = [Question(name, "What is it?", None, None) for name in names]
    return UnitWork(0, questions, {"sampled_answer": Sealed(sampled)})


def test_units_may_be_refused_until_one_has_numbers():
    """Memory held none of what came before; after that, questions are left out."""
    made = AnswerRunner(TooLarge(fits="b"), 0, lambda work, found: found)
    made.submit(works("b", "c"))
    [(_, found)] = made.poll()
    assert (len(found.scored), found.quarantined) == (1, [("c", OUT_OF_MEMORY)])
    for name in "de":
        made.submit(works(name))
        assert made.poll()[0][1].quarantined == [(name, OUT_OF_MEMORY)]
    made = AnswerRunner(TooLarge(), 0, lambda work, found: found)
    made.submit(works("b", "c"))
    with pytest.raises(UserError, match=NO_ROOM[:20]):
        made.poll()


class Unread(TooLarge):
    """Of which some questions cannot be read, and the second number of others is none."""

    def __init__(self) -> None:
        super().__init__(fits="abcd")

    def prepare(self, question, rows):
        if question.problem:
            raise BadRow(question.problem)
        return super().prepare(question, rows)

    def compute(self, works):
        return [[torch.tensor([-1.0, float("nan" if work.scored.answers == [[6]] else "-2")])] for work in works]


def test_a_row_that_could_not_be_read_is_missing_and_one_with_a_number_that_is_none_left_out():
    sampled = pa.Table.from_pylist([ROW | {"idx": name, "token_ids": [6 if name == "c" else 5]} for name in "abcd"])
    questions = [
        Question("a", "What?", None, None, problem="its file is not there", missing=True),
        Question("b", "What?", None, None, problem="it is cut"),
        Question("c", "What?", None, None), Question("d", "What?", None, None),
    ]  # fmt: skip
    found = compute_unit(Unread(), questions, sampled, 0)
    assert found.missing == [("a", "its file is not there")]
    told = "the model's numbers are not finite (NaN or infinite): answer 0, counted from 0"
    assert sorted(found.quarantined) == [("b", "it is cut"), ("c", told)]
    assert [row["idx"] for row, _ in found.scored] == ["d"]


class Checked(TooLarge):
    """Of which the plain path exceeds the memory, but for some questions."""

    def __init__(self, checked: Container[str], error: Exception) -> None:
        super().__init__(fits="abcdefgh")
        self.asked, self._checked, self._error = [], checked, error

    def prepare(self, question, rows):
        return Behind(Scored(SimpleNamespace(length=10, fits=True, idx=question.idx), [[5]]), 11)

    def check(self, work, found):
        self.asked.append(work.scored.prompt.idx)
        if self.asked[-1] not in self._checked:
            raise self._error


# As torch has it, and as libraries do; see models/memory_errors.py.
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no room"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")])
def test_a_question_whose_plain_path_exceeds_the_memory_is_passed_over(caplog, error):
    scorer = Checked("cd", error)
    made = AnswerRunner(scorer, 0, lambda work, found: found)
    for names in ("ab", "cde"):
        made.submit(works(*names))
        [(_, found)] = made.poll()
        assert len(found.scored) == len(names)
    assert scorer.asked == ["a", "b", "c"]
    assert caplog.messages == [
        f"out of memory: the numbers of row {name!r} are not held against the plain path; those of another one are"
        for name in "ab"
    ]


def test_four_questions_whose_plain_path_exceeds_the_memory_are_tried(caplog):
    scorer = Checked("", torch.OutOfMemoryError("no room"))
    made = AnswerRunner(scorer, 0, lambda work, found: found)
    made.submit(works(*"abcdef"))
    assert len(made.poll()[0][1].scored) == 6
    assert scorer.asked == list("abcd")
    assert caplog.messages[-1].endswith("row 'd' are not held against the plain path, nor are any others")


def test_numbers_that_differ_from_the_plain_path_end_the_run():
    made = AnswerRunner(Checked("", RuntimeError("differ by 3 nat")), 0, lambda work, found: found)
    made.submit(works("a"))
    with pytest.raises(RuntimeError, match="differ by 3 nat"):
        made.poll()


@pytest.mark.parametrize("stage", ["score", "blind", "judge"])
def test_units_are_checked_against_the_plain_path_until_one_has_numbers(monkeypatch, stage):
    """Of a question without a picture there are log-probs with its image alone: nulls are no numbers."""
    checked = []

    def prepare(scorer, question, rows):
        if question.idx == "broken":
            raise BadRow("no picture")
        return None if question.idx == "null" else Behind(Scored(SimpleNamespace(idx=question.idx), [[5]]), 11)

    for kind in (score.LogProbs, JudgeScores):
        monkeypatch.setattr(kind, "prepare", prepare)
        monkeypatch.setattr(kind, "compute", lambda scorer, works: [[torch.ones(1)] for _ in works])
        monkeypatch.setattr(kind, "check", lambda scorer, work, found: checked.append(work.scored.prompt.idx))
    context = SimpleNamespace(
        model=SimpleNamespace(
            why_plain=None, reads_ahead=False, value_head=None, device=torch.device("cpu"), is_split=False
        ),
        budgets={"score_tokens": 0}, answers_as_text=False, scores_own=False, decode=None, split=False,
        config=SimpleNamespace(max_megapixels=64),
    )  # fmt: skip
    makers = {"score": score.runner, "blind": score.blind_runner, "judge": judge.scalar_runner}
    runner = makers[stage](context)
    # What is no number of a judge is a row of none.
    nothing = "broken" if stage == "judge" else "null"
    for names in ((nothing,), ("first", "second"), ("third",)):
        runner.submit(works(*names))
        runner.poll()
    assert checked == ["first"]
