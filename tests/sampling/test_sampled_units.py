"""What a unit of answers comes to, made of completions by hand: what is left out and why, and sums of log-probs."""

import pyarrow as pa

from data_engine.pipeline.given import NO_ANSWER, given_unit
from data_engine.pipeline.sample import _Unit
from data_engine.questions.conversation import Conversation
from data_engine.questions.dataset import Question
from data_engine.questions.images import decode
from data_engine.questions.thoughts import ReadAnswer
from data_engine.sampling.requests import BROKEN, Completion

ASKED = [("a", Conversation.of("What is it?")), ("b", Conversation.of("Where is it?"))]


class Thinks:
    """A model whose first token is a thought where it is 9."""

    def read_answer(self, conversation, ids):
        return ReadAnswer("text", "hm", 1) if ids[0] == 9 else ReadAnswer("text")


def test_log_probs_of_another_engine_are_summed_without_those_of_the_thought():
    found = [Completion(4, 1, [5, 6], "stop", [-1.0, -2.0]), Completion(4, 0, [9, 6, 7], "stop", [-64.0, -4.0, -8.0])]
    unit = _Unit(0, first=4, taken=True, asked=ASKED[:1], found=found)
    assert unit.result(Thinks(), pa.string(), 0, {"by": "vllm"}).drawn == {"by": "vllm", "logps": [-12.0, -3.0]}


def test_a_question_is_left_out_for_the_first_of_its_answers_that_broke():
    found = [Completion(1, 2, [5], BROKEN), Completion(1, 1, [5, 6], BROKEN), Completion(1, 0, [5], "stop"),
             Completion(0, 0, [5], "stop")]  # fmt: skip
    result = _Unit(0, first=0, taken=True, asked=ASKED, found=found).result(Thinks(), pa.string(), 0, None)
    assert result.table["idx"].to_pylist() == ["a"]
    [(idx, reason)] = result.quarantined
    assert idx == "b"
    assert reason.endswith("answer 1, token 2, both counted from 0")


def test_a_question_without_an_answer_is_no_missing_work_though_its_picture_is_missing():
    gone = Question("a", "What is it?", None, "a.png", problem="it is gone", missing=True)
    result = given_unit([(gone, [])], None, pa.string(), 64, decode)
    assert (result.quarantined, result.missing) == ([("a", NO_ANSWER)], [])
