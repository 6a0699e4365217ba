"""Packed scoring against the plain path, which tests/models holds against the reference."""

from collections import Counter

import pyarrow as pa
import pytest
import torch
from PIL import Image
from prompts import EmbeddedPrompt, packed_token_logps, plain_token_logps, prefix
from run_files import png, wide_picture

from data_engine import schemas
from data_engine.pipeline import score
from data_engine.pipeline.score import self_check
from data_engine.pipeline.works import Behind, halving
from data_engine.questions.conversation import Conversation
from data_engine.questions.dataset import Question
from data_engine.scoring import logprobs
from data_engine.scoring.logprobs import Scored, last_hidden, pass_tokens, score_pass
from data_engine_kernels import reference


@pytest.fixture(scope="module")
def shared(instruct, golden_images):
    return prefix(instruct, instruct.pixels(golden_images[0], True, 64), "What is in the picture?")


def random_answers(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(3, 1000, (length,), generator=generator).tolist() for length in lengths]


@pytest.mark.parametrize("lengths", [[5], [1], [1, 1, 1], [1, 40, 7], [300, 2, 1, 90], [17] * 10])
def test_packed_equals_plain(instruct, shared, lengths):
    answers = random_answers(lengths)
    for answer, got in zip(answers, packed_token_logps(instruct, shared, answers), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, plain_token_logps(instruct, shared, answer), rtol=0, atol=1e-4)


def test_answers_do_not_see_each_other(instruct, shared):
    one, other, third = random_answers([30, 20, 25])
    first = packed_token_logps(instruct, shared, [one, other])[0]
    torch.testing.assert_close(packed_token_logps(instruct, shared, [one, third])[0], first, rtol=0, atol=1e-5)


def test_equal_answers_get_equal_log_probs(instruct, shared):
    one, other = random_answers([9, 4])
    logps = packed_token_logps(instruct, shared, [one, other, one])
    assert torch.equal(logps[0], logps[2])


def several(instruct, golden_rows, golden_images, lengths: list[list[int]]) -> list[Scored]:
    """Questions with prefixes of different length, and answers of the lengths given."""
    found = []
    for number, own in enumerate(lengths):
        pixels = instruct.pixels(golden_images[number], True, 64)
        shared = prefix(instruct, pixels, golden_rows[4 * number]["question"])
        found.append(Scored(EmbeddedPrompt(shared), random_answers(own)))
    return found


def prepared(instruct, golden_rows, golden_images, lengths: list[list[int]]) -> list[Behind]:
    """The same questions, as the stage has them before a pass."""
    found = []
    for number, own in enumerate(lengths):
        text = golden_rows[4 * number]["question"]
        prompt = instruct.prompt(Conversation.of(text), [golden_images[number]], True, 64)
        ids = random_answers(own)
        found.append(Behind(Scored(prompt, ids), pass_tokens(prompt.length, ids)))
    return found


def scorer(model) -> score.LogProbs:
    return score.LogProbs(model, score.ScoreSettings(False, 64))


def test_several_questions_in_a_pass_equal_each_alone(instruct, golden_rows, golden_images):
    """One of them has answers of one token alone, which feed nothing."""
    asked = several(instruct, golden_rows, golden_images, [[5, 30, 5], [1, 1], [12], [1, 40]])
    for question, got in zip(asked, score_pass(instruct, asked), strict=True):
        for answer, token_logps in zip(question.answers, got, strict=True):
            wanted = plain_token_logps(instruct, question.prompt.embeds_PD, answer)
            torch.testing.assert_close(token_logps, wanted, rtol=0, atol=1e-4)


def test_the_tokens_of_a_pass_are_those_that_are_fed(instruct, shared, monkeypatch):
    """The prompt in a pass of its own, then all answers without their last tokens; equal answers once."""
    fed = []
    original = instruct.decoder.forward
    monkeypatch.setattr(
        instruct.decoder, "forward", lambda **a: fed.append(a["inputs_embeds"].shape[:2]) or original(**a)
    )
    answers = random_answers([9, 4])
    packed_token_logps(instruct, shared, [*answers, answers[0]])
    assert fed == [(1, len(shared)), (1, 8 + 3)]
    assert pass_tokens(len(shared), [*answers, answers[0]]) == len(shared) + 8 + 3


def test_no_tensor_grows_with_answers_times_vocabulary(instruct, shared, monkeypatch):
    """The largest tensor with an entry for each word of the vocabulary has CHUNK rows, whatever the tokens are."""
    largest = []
    original = reference.logits_fp32
    monkeypatch.setattr(reference, "CHUNK", 64)
    monkeypatch.setattr(
        reference, "logits_fp32", lambda hidden, weight: largest.append(len(hidden)) or original(hidden, weight)
    )
    got = packed_token_logps(instruct, shared, random_answers([90] * 10))
    assert max(largest) == 64
    assert sum(largest) == sum(map(len, got)) == 900


@pytest.mark.parametrize(
    ("lengths", "most_answers", "halvings"),
    [
        # 3 questions -> 1 and 2 -> 1 and 1
        ([[6, 7], [8], [9, 3]], 2, 2),
        # 4 answers -> 2 and 2
        ([[5, 6, 7, 8]], 2, 1),
        # and all of it, down to single answers: 2 -> 1 and 1; 3 -> 1 and 2 -> 1 and 1
        ([[5, 6], [7, 8, 9]], 1, 4),
    ],
)
def test_out_of_memory_scores_in_halves(
    instruct, golden_rows, golden_images, monkeypatch, lengths, most_answers, halvings
):
    """Passes of more than one question, or more than `most_answers` of one, do not fit."""
    asked = prepared(instruct, golden_rows, golden_images, lengths)
    expected = [score_pass(instruct, [one]) for one in several(instruct, golden_rows, golden_images, lengths)]

    def small(model, questions):
        if len(questions) > 1 or len(questions[0].answers) > most_answers:
            raise torch.OutOfMemoryError("no room")
        return score_pass(model, questions)

    monkeypatch.setattr(score, "score_pass", small)
    got, halved = halving(scorer(instruct), asked)
    assert halved == halvings
    for one, [other] in zip(got, expected, strict=True):
        torch.testing.assert_close(torch.cat(one), torch.cat(other), rtol=0, atol=1e-5)


def test_a_question_of_which_one_answer_exceeds_the_memory_costs_the_others_nothing(
    instruct, golden_rows, golden_images, monkeypatch
):
    """The second question has an answer of 50 tokens; more than 20 never fit."""
    lengths = [[6, 7], [8, 50], [9, 3]]
    asked = prepared(instruct, golden_rows, golden_images, lengths)
    expected = [score_pass(instruct, [one])[0] for one in several(instruct, golden_rows, golden_images, lengths)]

    def small(model, questions):
        if any(len(ids) > 20 for question in questions for ids in question.answers):
            raise torch.OutOfMemoryError("no room")
        return score_pass(model, questions)

    monkeypatch.setattr(score, "score_pass", small)
    [first, second, third], halved = halving(scorer(instruct), asked)
    assert second is None
    # 3 questions -> 1 and 2 -> 1 and 1; its 2 answers -> 1 and 1, and that one.
    assert halved == 4
    for found, wanted in ((first, expected[0]), (third, expected[2])):
        torch.testing.assert_close(torch.cat(found), torch.cat(wanted), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("most", "groups"), [(1000, 1), (60, 2), (40, 3), (1, 5)])
def test_many_tokens_of_one_question_run_in_several_calls_behind_one_prompt(
    instruct, golden_rows, golden_images, monkeypatch, most, groups
):
    """However long its prompt is; questions together are as many as a pass has room for."""
    lengths = [31, 2, 30, 11, 12]
    [question] = several(instruct, golden_rows, golden_images, [lengths])
    assert question.prompt.length > 60
    ends, other = [score_pass(instruct, [question])[0], last_hidden(instruct, [question])[0]], Counter()

    def counting(name):
        function = getattr(logprobs, name)
        monkeypatch.setattr(logprobs, name, lambda *given: other.update([name]) or function(*given))

    for name in ("_run_packed", "run_prefix"):
        counting(name)
    monkeypatch.setattr(logprobs, "MOST_AT_ONCE", most)
    for compute, expected in zip((score_pass, last_hidden), ends, strict=True):
        other.clear()
        [found] = compute(instruct, [question])
        assert other == {"_run_packed": groups, "run_prefix": 1}
        for one, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(one, wanted, rtol=0, atol=1e-5)
    other.clear()
    score_pass(instruct, several(instruct, golden_rows, golden_images, [lengths, [9, 3]]))
    assert other == {"_run_packed": 1, "run_prefix": 2}


def sampled(answers: list[list[int]]) -> pa.Table:
    rows = [
        {"idx": "q", "sample_index": number, "answer": "", "token_ids": ids, "finish_reason": "stop"}
        for number, ids in enumerate(answers)
    ]
    return pa.Table.from_pylist(rows, schemas.sampled_answer(pa.string()))


def test_a_unit_is_scored_on_the_crop_of_a_wide_picture(instruct):
    """Against the public function, on the picture and on its middle; padding would show all of it, and bars."""
    wide, middle = wide_picture()
    answers = random_answers([9, 4])
    question = Question("q", "What is it?", png(wide), None)
    unit = score.score_unit(instruct, [question], sampled(answers), score.ScoreSettings(False, 64))
    found = [torch.tensor(logps) for logps in unit.table["token_logps"].to_pylist()]
    for picture in (wide, middle):
        for token_logps, wanted in zip(
            found, score.score_answers(instruct, picture, "What is it?", answers), strict=True
        ):
            torch.testing.assert_close(token_logps, wanted, rtol=0, atol=1e-4)


def test_an_answer_that_was_cut_off_has_no_end_token_as_text_either(instruct, golden_images):
    """As under the model that drew it, whose ids have none."""
    table = [{"idx": "q", "sample_index": place, "answer": text, "token_ids": [5], "finish_reason": why}
             for place, (text, why) in enumerate([("A dog", "stop"), ("A dog", "length"), ("", "length")])]  # fmt: skip
    cut = pa.Table.from_pylist(table, schemas.sampled_answer(pa.string()))
    question = Question("q", "What is it?", png(golden_images[0]), None)
    unit = score.score_unit(instruct, [question], cut, score.ScoreSettings(True, 64))
    [ended, end] = score.score_answers(instruct, golden_images[0], "What is it?", ["A dog", ""])
    expected = [ended, ended[:-1], end]
    assert [len(one) for one in unit.table["token_logps"].to_pylist()] == [len(one) for one in expected]
    for found, wanted in zip(unit.table["token_logps"].to_pylist(), expected, strict=True):
        assert found == pytest.approx(wanted.tolist(), abs=1e-4)


@pytest.mark.parametrize(("more", "problem"), [(0, None), (1, "too long to score: prompt of {} tokens, answer of {}")])
def test_an_answer_may_fill_the_models_positions_and_no_more(instruct, shared, more, problem):
    question = Question("q", "What is in the picture?", png(Image.new("RGB", (9, 9))), None)
    size = len(shared)
    longest = instruct.max_positions - size + more
    told = problem and f"{problem.format(size, longest)}, room for {instruct.max_positions}"
    alone = score.score_unit(instruct, [question], sampled([[5] * longest]), score.ScoreSettings(False, 64))
    assert (len(alone.table), alone.quarantined) == ((0, [("q", told)]) if problem else (1, []))
    assert alone.answers_left_out == []
    # It costs the others nothing.
    unit = score.score_unit(instruct, [question], sampled([[5], [5] * longest, [7]]), score.ScoreSettings(False, 64))
    assert unit.table["sample_index"].to_pylist() == ([0, 2] if problem else [0, 1, 2])
    assert (unit.quarantined, unit.answers_left_out) == ([], [("q", 1, told)] if problem else [])


def test_an_answer_without_tokens_is_refused(instruct, shared):
    with pytest.raises(ValueError, match="without tokens"):
        packed_token_logps(instruct, shared, [[5], []])


def test_the_self_check_sees_a_wrong_path(instruct, shared):
    answers = random_answers([12, 7])
    right = packed_token_logps(instruct, shared, answers)
    prompt = EmbeddedPrompt(shared)
    assert self_check(instruct, prompt, answers, right) < 1e-5
    with pytest.raises(RuntimeError, match="differ from the plain path"):
        self_check(instruct, prompt, answers, [logps + 0.01 for logps in right])
