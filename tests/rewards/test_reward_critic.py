"""The reward `critic`: its template, the number that is read, units of a judge whose texts are made up, and a run."""

import itertools
import json
import re
import threading
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
from run_files import noise, png, read

from data_engine import schemas
from data_engine.errors import BadRow, UserError
from data_engine.pipeline.critic import Critic, asked_in
from data_engine.pipeline.runner import StageContext, UnitWork
from data_engine.questions import thoughts
from data_engine.questions.conversation import Conversation, Message
from data_engine.questions.dataset import Question
from data_engine.questions.images import decode
from data_engine.questions.thoughts import ReadAnswer
from data_engine.rewards import RewardSettings, StageColumns
from data_engine.rewards.critic import DEFAULT, rewards, template_in
from data_engine.sampling.requests import BROKEN, TOO_LARGE, Completion

PROMPT = "prompt: 'Q {question} A {answer}'\n"
GOLDENS = Path(__file__).parents[1] / "goldens" / "pairing" / "llava_critic_be9ac29.json"


def test_the_default_template_is_the_one_that_llava_critic_was_trained_on():
    shown = template_in(DEFAULT, "default").filled("What is it?", "A {question}.")
    assert shown.endswith(
        "Your task is provided as follows:\nQuestion: [What is it?]\nThe LMM response: [A {question}.]\nASSISTANT:"
    )


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("Score: 85\nThe response is right.", 85), ("**Score:** 85/100", 85), ("Score: [85]", 85),
        ("The score is 7.5.", 7.5),
        ("I give a score of 60 out of 100", 60), ("Score: 20, no: final score: 30", 30), ("SCORE - 5", 5),
        ("score\n\n5", 5),
        # The scale before the number.
        ("Score (0-100): 85", 85), ("**Score (0–100):** 85", 85), ("**Score (1-10)**: 8", 8),
        ("Score (out of 100): 85", 85),
        ("Score out of 100: 85", 85), ("My score out of 100 is 85.", 85), ("Score: 85 out of 100: good", 85),
        ("Score: 80-85", 80), ("Score: 80-85\n\n3 reasons", 80), ("Score (85): good", 85),
        ("85", None), ("Score: high", None), ("", None), ("Underscored 5", None),
        ("1. The dog. Score the response.", None),
    ],
)  # fmt: skip
def test_the_number_of_a_text_by_the_default_template(text, number):
    found, reason = template_in(DEFAULT, "default").read(text)
    assert found == number
    assert reason == (None if number is not None else "the critic's text does not match the template's expression")


@pytest.mark.parametrize(
    ("number", "text", "score", "reason"),
    [
        (r"(\S+)", "1 2 x3", None, 'the critic\'s text has "x3" in the place of the number'),
        (r"(\S+)", "1 nan", None, "the critic's number is nan, not a finite one"),
        (r"(\S+)", "1 1e999", None, "the critic's number is inf, not a finite one"),
        (r"(\S+)", "x -2.5e1", -25, None),
        (r"(?:a(\d))?", "a3 b", 3, None),
        (r"^(\d)$", "1\n2", None, "the critic's text does not match the template's expression"),
        (r"(?m)^(\d)$", "1\n2", 2, None),
        (r"(?P<n>[٠-٩])", "٣", 3, None),
    ],
)
def test_the_number_of_a_text_by_other_expressions(number, text, score, reason):
    template = template_in(json.dumps({"prompt": "{question} {answer}", "number": number}), "t")
    assert template.read(text) == (score, reason)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("just text", "has no prompt and number; expected the keys prompt, a text with {question} and {answer}, and"),
        ("", "has no prompt and number"), ("[1, 2]", "has no prompt and number"),
        ("prompt: x", "has no prompt and num"),
        ("a: [", r"is not YAML, line 1; expected the keys"), ("a: \x00", "is not YAML"),
        (PROMPT + "number: '(a)'\nnumbr: 1", "has the unknown key numbr; known: prompt, number, system, max"),
        (PROMPT + "number: 5", "number must be text; in YAML, put it in quotes"),
        (PROMPT + "number: ' '", "number must be text"), ("prompt: 3\nnumber: '(a)'", "prompt must be text"),
        (PROMPT + "number: '(a)'\nsystem: 1", "system must be text"),
        ("prompt: '{answer}'\nnumber: '(a)'", r"its prompt has no \{question\}; it must say where question"),
        ("prompt: '{question} {Answer}'\nnumber: '(a)'", r"its prompt has no \{answer\}"),
        (PROMPT + "number: 'a'", "number must have exactly one group, which is the number, got 0; groups of"),
        (PROMPT + "number: '(a)(b)'", "number must have exactly one group, which is the number, got 2"),
        (PROMPT + "number: '(a'", "number is no regular expression: missing ), unterminated subpattern at position 0"),
        (PROMPT + "number: '(a)'\nmax_new_tokens: 0", "max_new_tokens must be a whole number, at least 1, got 0"),
        (PROMPT + "number: '(a)'\nmax_new_tokens: true", "max_new_tokens must be a whole number"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_be_meant_is_refused(text, told):
    with pytest.raises(UserError, match=f'^critic_template "t.yaml":? {told.replace("(", "[(]").replace(")", "[)]")}'):
        template_in(text, 'critic_template "t.yaml"')


def test_a_conversation_of_several_turns_is_told_whole():
    turns = Conversation(
        (Message("system", ("Be short.",)), Message("user", (0, "What is it?")), Message("assistant", ("A dog.",)),
         Message("user", ("How many?",)))
    )  # fmt: skip
    assert asked_in(turns) == "user: What is it?\nassistant: A dog.\nuser: How many?"
    assert asked_in(Conversation.of("What is it?", 2, "Be short.")) == "What is it?"


class Judge:
    """A judge and its back end in one: it writes what `texts` has for an answer. A prompt is a conversation."""

    why_plain, is_settled, max_positions, halvings, wants_more = None, True, 1000, 0, True

    def __init__(self, texts: dict[str, str]) -> None:
        self.texts, self.asked, self.number, self.waiting, self.made_by = texts, [], 0, None, []

    def prompts(self, conversations, pictures, crop, max_megapixels):
        self.made_by.append((threading.current_thread(), len(conversations)))
        return [self.prompt(one, pictures, crop) for one in conversations]

    def prompt(self, conversation, pictures, crop):
        assert not crop
        if "control token" in conversation.question:
            raise BadRow("the question contains a control token")
        if "far too long" in conversation.question:
            return SimpleNamespace(length=990, conversation=conversation)
        return SimpleNamespace(length=10, conversation=conversation, pictures=pictures)

    def text(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))

    def read_answer(self, conversation: Conversation, ids: list[int]) -> ReadAnswer:
        return thoughts.read(ids, self.text, self.text)

    def submit(self, requests) -> None:
        self.waiting = iter(requests)

    def poll(self) -> list[Completion]:
        """The completions of two requests, the second first."""
        found = [self.written(request) for request in itertools.islice(self.waiting, 2)]
        return found[::-1]

    def written(self, request) -> Completion:
        number, self.number = self.number, self.number + 1
        assert request.keys == [0]
        self.asked.append(request.prompt)
        answer = request.prompt.conversation.question.rpartition(" A ")[2]
        if self.texts[answer] in (BROKEN, TOO_LARGE):
            return Completion(number, 0, [], self.texts[answer])
        return Completion(number, 0, list(map(ord, self.texts[answer])), "stop")


def critic(judge: Judge, work_dir: Path) -> Critic:
    """One at work."""
    template = template_in(PROMPT + "number: 'Score: ([0-9]+)'\nsystem: Judge.\nmax_new_tokens: 20", "t")
    config = SimpleNamespace(max_megapixels=64, work_dir=str(work_dir))
    context = StageContext(judge, config, {}, pa.string(), False, False, decode)
    return Critic(context, template, judge)


def unit(questions: list[Question], answers: dict[str, list[str]]) -> UnitWork:
    """Answers to these questions, as they were sampled."""
    rows = [{"idx": idx, "sample_index": index, "answer": text} for idx, texts in answers.items()
            for index, text in enumerate(texts)]  # fmt: skip
    table = pa.Table.from_pylist(rows, schemas.sampled_answer(pa.string()))
    return UnitWork(0, questions, {"sampled_answer": SimpleNamespace(table=table)})


def test_each_answer_has_its_own_text_and_number_or_a_reason(tmp_path):
    texts = {"one": "Score: 1", "two": "no number", "three": "Score: 30", "bad": BROKEN, "large": TOO_LARGE}
    judge = Judge(texts)
    picture = png(noise((20, 20), 80))
    questions = [
        Question("a", "What?", picture, None), Question("broken", "What?", b"no picture", None),
        Question("gone", None, None, None, problem="no such file", missing=True), Question("b", "Why?", picture, None),
        Question("c", "Who?", picture, None),
    ]  # fmt: skip
    answers = {"a": ["one", "two", "one", "three"], "broken": ["one"], "gone": ["one"],
               "b": ["bad", "large", "far too long", "one"]}  # fmt: skip
    result = critic(judge, tmp_path).unit(unit(questions, answers))
    rows = [tuple(row.values()) for row in result.table.to_pylist()]
    none = "the critic's text does not match the template's expression"
    assert rows == [
        ("a", 0, 1.0, "Score: 1", "stop", None), ("a", 1, None, "no number", "stop", none),
        ("a", 2, 1.0, "Score: 1", "stop", None), ("a", 3, 30.0, "Score: 30", "stop", None),
        ("b", 0, None, None, BROKEN, "the critic's logits are not finite (NaN or infinite)"),
        ("b", 1, None, None, TOO_LARGE, "out of memory, even with one answer at a time"),
        ("b", 2, None, None, None, "too long for the critic: prompt of 990 tokens, 20 to generate, room for 1000"),
        ("b", 3, 1.0, "Score: 1", "stop", None),
    ]  # fmt: skip
    [(idx, reason)] = result.quarantined
    assert (idx, "image" in reason) == ("broken", True)
    assert result.missing == [("gone", "no such file")]
    # Equal answers to a question are judged once; a picture and the template's system text go with each.
    assert [prompt.conversation.question for prompt in judge.asked] == [
        "Q What? A one", "Q What? A two", "Q What? A three", "Q Why? A bad", "Q Why? A large", "Q Why? A one"
    ]  # fmt: skip
    assert {(prompt.conversation.system, len(prompt.pictures)) for prompt in judge.asked} == {("Judge.", 1)}


def test_prompts_are_made_in_another_thread_a_question_at_a_time_and_one_that_fails_alone_is_left_out(tmp_path):
    judge = Judge({"one": "Score: 1", "two": "Score: 2", "three": "Score: 3"})
    questions = [Question("a", "What?", None, None), Question("b", "Why?", None, None)]
    answers = {"a": ["one", "two", "one", "three"], "b": ["one", "a control token", "two"]}
    result = critic(judge, tmp_path).unit(unit(questions, answers))
    assert [(row["score"], row["reason"]) for row in result.table.to_pylist()] == [
        (1, None), (2, None), (1, None), (3, None),
        (1, None), (None, "the question contains a control token"), (2, None),
    ]  # fmt: skip
    # All of the second question, and each of its three.
    assert sorted(number for _, number in judge.made_by) == [1, 1, 1, 3, 3]
    assert threading.main_thread() not in {thread for thread, _ in judge.made_by}


def test_a_second_unit_of_the_same_judge_gets_its_own_texts(tmp_path):
    judge = critic(Judge({"one": "Score: 1", "two": "Score: 2", "three": "Score: 3"}), tmp_path)
    question = Question("a", "What?", png(noise((20, 20), 80)), None)
    for texts, scores in ((["one", "two"], [1, 2]), (["three", "one"], [3, 1])):
        assert judge.unit(unit([question], {"a": texts})).table["score"].to_pylist() == scores


def test_a_judge_whose_first_texts_have_no_number_is_refused(tmp_path):
    question = Question("a", "What?", png(noise((20, 20), 80)), None)
    judge = critic(Judge({"one": "Nice.", "two": "Bad."}), tmp_path)
    with pytest.raises(
        UserError, match=r'none of the first 2 texts of the critic has a number.*The first text is "Nice."'
    ):
        judge.unit(unit([question], {"a": ["one", "two"]}))
    # Once a unit is there, the template fits, and the rest is recorded.
    (tmp_path / "critic").mkdir()
    (tmp_path / "critic/unit-00001.parquet").write_bytes(b"")
    assert judge.unit(unit([question], {"a": ["one", "two"]})).table["score"].to_pylist() == [None, None]


@pytest.mark.parametrize("case", json.loads(GOLDENS.read_text())["cases"], ids=lambda case: f"k {case['sample_k']}")
def test_the_references_scores_choose_the_references_pairs(case, tmp_path):
    """Its scores come from comparing answers two by two; here the judge's texts have them. A tie is any order."""
    least = min(case["scores"])
    texts = {
        row["chosen"]: f"Score: {score - least}" for row, score in zip(case["sampled"], case["scores"], strict=True)
    }
    answers: dict[str, list[str]] = {}
    for row in case["sampled"]:
        answers.setdefault(str(row["idx"]), []).append(row["chosen"])
    picture = png(noise((20, 20), 80))
    questions = [Question(idx, "What?", picture, None) for idx in answers]
    table = critic(Judge(texts), tmp_path).unit(unit(questions, answers)).table
    found = rewards({"critic": StageColumns(table)}, RewardSettings(0.1, True))["critic"]
    assert found.tolist() == [score - least for score in case["scores"]]
    score_of = dict(zip([row["chosen"] for row in case["sampled"]], found.tolist(), strict=True))
    # Where a question has fewer answers than twice the rank, the reference fails.
    for pair in case.get("pairs_before_filters", []):
        ranked = sorted((score_of[text] for text in answers[str(pair["idx"])]), reverse=True)
        assert score_of[pair["chosen"]] >= ranked[case["rank"] - 1]
        assert score_of[pair["rejected"]] <= ranked[-case["rank"]]


def test_a_critic_is_added_to_a_finished_run_and_bound_by_its_template(run):
    template = run.folder / "template.yaml"
    template.write_text(PROMPT + "number: '([0-9])'\nmax_new_tokens: 40")
    flags = {"critic_model_path": str(run.folder / "reward"), "rewards": "implicit,critic"}
    flags |= {"critic_template": str(template)}
    assert run.computed_again(**flags) == set()
    answers = [(row["idx"], row["sample_index"]) for row in run.answers()]
    rows = read(run.work / "critic")
    assert [(row["idx"], row["sample_index"]) for row in rows] == answers
    # A random model writes a digit now and then.
    assert {row["score"] is None for row in rows} == {True, False}
    template.write_text(template.read_text().replace("Q {", "Question {"))
    told = r"critic_template was [0-9a-f]{12}, now [0-9a-f]{12}; units of critic were"
    assert re.search(told, run.refusal(**flags))
    gone = run.refusal(**flags | {"critic_template": "gone.yaml"})
    assert (
        gone
        == 'critic_template "gone.yaml" cannot be read: No such file or directory; name a file with a template in YAML'
    )
