"""The step before every export: what is rewritten, what is left out, and what is counted."""

import dataclasses
import random
from types import SimpleNamespace

import pytest
from question_files import only, write_jsonl
from stage2_world import make_world, pairs_rows, picture

from data_engine.exports.apart import apart
from data_engine.exports.base import NO_SOURCE, ExportSource
from data_engine.exports.cleaned import EMPTY, EQUAL, UNREADABLE, Cleaned, Rewriting
from data_engine.exports.formats.turns import BOTH, labelled_answers
from data_engine.questions.conversation import Conversation, Message
from data_engine.questions.dataset import Question, load_questions

STUBBORN = tuple(f"a{' ' * number}b" for number in range(9))
REWRITING = Rewriting(("</s>", "<|im_end|>", "<|im_start|>", "[INST]", "\n", " ", "x", "\n\n", " <sep>"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nothing to do: < s>, <S>, im_end\n\n", "nothing to do: < s>, <S>, im_end\n\n"),
        ("a </s> b</s>", "a < /s> b< /s>"),
        ("<|im_start|>user<|im_end|>", "< |im_start|>user< |im_end|>"),
        ("[INST] <image><video> <audio>", "[ INST] < image>< video> < audio>"),
        # Whole tokens alone, whatever stands around them, and tokens within tokens.
        ("<<image>", "<< image>"),
        ("<im</s>age>", "<im< /s>age>"),
        ("a <sep>", "a < sep>"),
        ("", ""),
    ],
)
def test_a_control_token_gets_a_space_behind_its_first_character(text, expected):
    assert REWRITING.text(text) == expected


def test_what_cannot_be_rewritten_is_told():
    # Broken up, each of them is the next.
    assert Rewriting(STUBBORN).text("ab") is None


def test_every_message_of_a_question_is_rewritten_and_its_pictures_keep_their_places():
    conversation = Conversation((
        Message("system", ("Be </s> brief.",)),
        Message("user", (0, "<audio> one", 1, "two")),
        Message("assistant", ("<image> <video>",)),
        Message("user", ("three",)),
    ))  # fmt: skip
    question = Question(1, conversation.question, None, None, conversation=conversation, images=(b"a", b"b"))
    found, changed = REWRITING.question(question)
    assert changed
    assert [message.content for message in found.conversation.messages] == [
        ("Be < /s> brief.",), (0, "< audio> one", 1, "two"), ("< image> < video>",), ("three",)
    ]  # fmt: skip
    assert (found.question, found.images) == ("three", (b"a", b"b"))


def test_the_marker_that_no_model_is_asked_does_not_count_as_rewritten(tmp_path):
    (tmp_path / "a").write_bytes(b"a")
    row = {"idx": 1, "question": "<image>\nWhat?", "image": "a"}
    question = only(load_questions(str(write_jsonl(tmp_path / "q.jsonl", row)), image_root=str(tmp_path)))
    found, changed = REWRITING.question(question)
    assert (found.question, found.conversation.messages[-1].content, changed) == ("\nWhat?", (0, "\nWhat?"), False)


@pytest.fixture
def world(tmp_path):
    questions = ["What is </s>?" if number == 3 else "What?" for number in range(9)]
    world = make_world(tmp_path / "world", num_questions=9, num_answers=4, question=questions)
    world.publish(tmp_path / "work")
    return world


def pair(number, chosen, rejected):
    return {"idx": f"q{number:03d}", "chosen_index": 0, "rejected_index": 1, "chosen": chosen, "rejected": rejected}


def cleaned_of(world, work_dir, pairs, tokens=("</s>", *STUBBORN)):
    cleaned = Cleaned(ExportSource(pairs, world.questions(), world.units(), work_dir, 0, control_tokens=tokens))
    return cleaned, list(cleaned.pairs())


def test_pairs_that_teach_nothing_are_left_out_and_counted_by_reason(world, tmp_path):
    pairs = [
        pair(0, "good", "bad"),
        pair(1, " \n", "bad"),
        pair(1, "good", ""),
        pair(2, "same", "same"),
        pair(2, "same", " same\n"),
        # Equal once they are rewritten.
        pair(2, "</s>", "< /s>"),
        pair(3, "good", "bad"),
        pair(4, "ab", "bad"),
        pair(5, "good </s>", "bad"),
        pair(5, "good", "bad"),
    ]
    cleaned, groups = cleaned_of(world, tmp_path / "work", pairs)
    found = [(row["idx"], row["chosen"], row["rejected"]) for group in groups for row in group.rows]
    assert found == [
        ("q000", "good", "bad"), ("q003", "good", "bad"), ("q005", "good < /s>", "bad"), ("q005", "good", "bad")
    ]  # fmt: skip
    assert groups[1].question.question == "What is < /s>?"
    assert cleaned.left_out == {EMPTY: 2, EQUAL: 3, UNREADABLE: 1}
    # Both pairs of a rewritten question would count, and q003 has one; of q005 one answer was rewritten.
    assert cleaned.rewritten == 2
    assert cleaned.without_source == {}


def test_a_question_that_cannot_be_read_any_more_is_left_out_with_all_its_pairs(world, tmp_path):
    questions = world.questions()
    rows = questions.rows

    def gone(span):
        for question in rows(span):
            lost = {"problem": "gone", "images": (), "image": None, "conversation": None}
            yield dataclasses.replace(question, **lost) if question.idx == "q002" else question

    questions.rows = gone
    pairs = [pair(2, "good", "bad"), pair(2, "better", "bad"), pair(4, "good", "bad")]
    cleaned = Cleaned(ExportSource(pairs, questions, world.units(), tmp_path / "work", 0))
    [group] = list(cleaned.pairs())
    assert (group.question.idx, group.question.image) == ("q004", picture(4))
    assert cleaned.left_out == {NO_SOURCE: 2}
    assert cleaned.without_source == {"q002": "gone"}


def test_answers_of_another_sampling_than_the_pairs_are_refused(world, tmp_path):
    world.pair(tmp_path / "work")
    kept = [row for row in pairs_rows(tmp_path / "work") if row["status"] == "kept"]
    _, [group, *_] = cleaned_of(world, tmp_path / "work", kept)
    assert group.token_ids(group.rows[0]["chosen_index"]) == [5, 6, 2]
    _, [group, *_] = cleaned_of(world, tmp_path / "work", [{**row, "chosen": "of before"} for row in kept])
    with pytest.raises(ValueError, match=r"its answers are not those .* --continue_from_stage 2"):
        group.token_ids(group.rows[0]["chosen_index"])


def neighbours(owners, order) -> int:
    """Rows beside one of their own, the last and the first included."""
    return sum(owners[order[at]] == owners[order[at - 1]] for at in range(len(order)))


@pytest.mark.parametrize(
    ("owners", "moved"),
    [
        ([], 0),
        ([7], 0),
        ([1, 2, 1, 2], 0),
        # The second exchanges its place with the next of another owner.
        ([1, 1, 2, 3], 2),
        # The last stands beside the first: one of the two exchanges its place, however many rows there are.
        ([1, 2, 3, 1], 2),
        ([1, 2, 3, 4, 5, 6, 7, 1], 2),
    ],
)
def test_rows_are_kept_apart_with_few_of_them_moved(owners, moved):
    found = list(apart(owners))
    if len(owners) > 1:
        assert neighbours(owners, found) == 0
    assert sorted(found) == list(range(len(owners)))
    assert sum(row != place for place, row in enumerate(found)) == moved


def test_every_order_that_can_be_is_found():
    for number in range(3000):
        draw = random.Random(number)
        size = draw.randrange(2, 30)
        owners = [draw.randrange(max(1, size // 2)) for _ in range(size)]
        found = list(apart(owners))
        assert sorted(found) == list(range(size))
        if max(map(owners.count, owners)) <= size // 2:
            assert neighbours(owners, found) == 0
        else:
            # One owner has more than half: of its rows, no more than must stand beside each other.
            most = max(map(owners.count, owners))
            assert neighbours(owners, found) <= 2 * most - size


def test_an_answer_with_a_label_is_named_by_its_question_and_its_number():
    """By which its place is drawn; one that is chosen and rejected is left out."""
    sides = [("good", 4, "bad", 7), ("good", 4, "so so", 2), ("so so", 2, "bad", 7)]
    names, left_out = ("chosen", "chosen_index", "rejected", "rejected_index"), []
    rows = [dict(zip(names, pair, strict=True)) for pair in sides]
    group = SimpleNamespace(rows=rows, question=SimpleNamespace(idx="q"))
    found = list(labelled_answers(SimpleNamespace(leave_out=left_out.append), group))
    assert found == [(("q", 4), "good", True), (("q", 7), "bad", False)]
    assert left_out == [BOTH]
