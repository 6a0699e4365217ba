"""Rows that are whole conversations: messages, a system text, and the digest of all that a model sees of a row."""

import csv
import hashlib
import json
import re
import struct

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conversation_rows import ASSISTANT, PLACE, SYSTEM, USER, asked, message, row_of, said, text
from PIL import Image
from question_files import write_jsonl

from data_engine.errors import UserError
from data_engine.pipeline import public_arguments as public
from data_engine.questions.conversation import Conversation
from data_engine.questions.dataset import Question, Questions
from data_engine.questions.images import BadImage
from data_engine.questions.sources.hub import DatasetsSource

# Messages


def test_a_row_may_be_a_whole_conversation(tmp_path):
    messages = [
        message(SYSTEM, "Be brief."),
        message(USER, [PLACE, text("What is this?")]),
        message(ASSISTANT, "A bus."),
        message(USER, [text("And "), PLACE, text("this?")]),
    ]
    row = row_of(tmp_path, messages=messages, images=["a", "b"])
    assert row.conversation.messages == (
        said(SYSTEM, "Be brief."), said(USER, 0, "What is this?"), said(ASSISTANT, "A bus."),
        said(USER, "And ", 1, "this?"),
    )  # fmt: skip
    assert (row.question, row.images, row.image) == ("And this?", (b"a", b"b"), None)


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_a_question_about_one_image_is_asked_without_its_marker(tmp_path, system):
    """By every family; the row's digest is of the text as it stands, as it always was."""
    before = [said(SYSTEM, system)] if system else []
    row = row_of(tmp_path, question="<image>\nWhat?", images=["a"], system=system)
    assert row.conversation.messages == (*before, said(USER, 0, "\nWhat?"))
    assert row.question == "<image>\nWhat?"
    plain = row_of(tmp_path, question="<image>\nWhat?", image="a")
    assert plain.digest == Question(plain.idx, "<image>\nWhat?", b"a", None).digest


@pytest.mark.parametrize("marks", range(4))
@pytest.mark.parametrize("images", ["", "a", "ab", "abc"])
@pytest.mark.parametrize("is_chat", [False, True])
def test_markers_that_are_not_as_many_as_the_images_leave_the_row_out(tmp_path, is_chat, images, marks):
    """A picture that is lost, or one that the text does not mean, would be asked about without a word."""
    text = "See <image>" * marks + "What?"
    cells = {"messages": [message(USER, text)]} if is_chat else {"question": text}
    row, count = row_of(tmp_path, images=list(images), **cells), len(images)
    if marks not in (0, count):
        assert row.problem == (
            f"the number of <image> in the texts is {marks}, of images {count}; write it once for each "
            "image, or not at all"
        )
        return
    placed = [part for number in range(count) for part in ("See ", number)]
    if marks == 1 and not is_chat:
        # What a trainer of one picture does with it.
        assert row.conversation.messages == (said(USER, 0, "See What?"),)
    else:
        before = placed if marks else range(count)
        assert row.conversation.messages == (said(USER, *before, "What?"),)


@pytest.mark.parametrize("text", ["<image>\nWhat?", "From <image> to <image>?", "What?"])
@pytest.mark.parametrize("count", range(3))
def test_the_public_functions_ask_what_a_run_asks(tmp_path, text, count):
    row = row_of(tmp_path, question=text, images=["a", "b"][:count])
    pictures = [Image.new("RGB", (4, 3))] * count
    if row.problem:
        with pytest.raises(BadImage, match=re.escape(row.problem)):
            public.read_question(pictures, text, 1, "apply")
    else:
        assert public.read_question(pictures, text, 1, "apply")[0] == row.conversation


@pytest.mark.parametrize(
    ("messages", "images", "expected"),
    [
        ([message(USER, "What?")], ["a"], [said(USER, 0, "What?")]),
        ([message(SYSTEM, "S"), message(USER, "What?")], ["a"], [said(SYSTEM, "S"), said(USER, 0, "What?")]),
        (
            [message(USER, "Hi"), message(ASSISTANT, "Hi"), message(USER, "What?")],
            ["a", "b"],
            [said(USER, 0, 1, "Hi"), said(ASSISTANT, "Hi"), said(USER, "What?")],
        ),
        ([message(USER, [text("a"), text("b")])], ["a"], [said(USER, 0, "a", "b")]),
        # Where texts name the places of images.
        ([message(USER, "<image>\nWhat?")], ["a"], [said(USER, 0, "\nWhat?")]),
        ([message(USER, "From <image> to <image>?")], ["a", "b"], [said(USER, "From ", 0, " to ", 1, "?")]),
        (
            [message(USER, "<image>"), message(ASSISTANT, "<image>"), message(USER, "And <image>")],
            ["a", "b"],
            [said(USER, 0), said(ASSISTANT, "<image>"), said(USER, "And ", 1)],
        ),
        # Where parts do as well.
        ([message(USER, [PLACE, text("<image>\nWhat?")])], ["a"], [said(USER, 0, "\nWhat?")]),
        (
            [
                message(SYSTEM, "<image>"),
                message(USER, [PLACE, text("<image>")]),
                message(ASSISTANT, "<image>"),
                message(USER, [text("<image>And"), PLACE]),
            ],
            ["a", "b"],
            [said(SYSTEM, "<image>"), said(USER, 0, ""), said(ASSISTANT, "<image>"), said(USER, "And", 1)],
        ),
    ],
)
def test_images_stand_at_their_places_or_before_the_first_text_of_the_user(tmp_path, messages, images, expected):
    row = row_of(tmp_path, messages=messages, images=images)
    assert row.problem is None
    assert row.conversation.messages == tuple(expected)


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        (
            [message(USER, "a"), message(ASSISTANT, "b")],
            "the last message must be the user's, whose answer is wanted; it is one of the assistant: leave it out",
        ),
        ([message(SYSTEM, "a")], "the last message must be the user's"),
        ([message(USER, "a"), message(SYSTEM, "b"), message(USER, "c")], "a message of the system stands behind"),
        ([message(USER, [PLACE, PLACE, text("a")])], "the number of image parts in the messages is 2, of images 1"),
        (
            [message(USER, "<image><image>")],
            "the number of <image> in the texts is 2, of images 1; write it once for each image, or not at all",
        ),
        (
            [message(USER, [PLACE, text("<image> or <image>?")])],
            "the number of <image> in the texts is 2, of images 1",
        ),
        ([message("tool", "a")], 'message 1 has the role "tool"; expected system, user, assistant'),
        ([message(["user"], "a")], 'message 1 has the role ["user"]; expected system, user, assistant'),
        ([{"from": "human", "value": "a"}], 'message 1 is not an object with "role" and "content"'),
        ([message(USER, "a"), 5], 'message 2 is not an object with "role" and "content"'),
        ([message(USER, None)], "message 1 has no content; expected a text, or a list of parts of the types"),
        ([message(USER, [])], "message 1 has no content"),
        ([message(USER, 5)], "message 1 has no content"),
        ([message(USER, ["a"])], "message 1 has a part that is neither"),
        ([message(USER, [{"type": "video"}])], "message 1 has a part that is neither"),
        (
            [message(USER, [{"type": "input_audio", "input_audio": {}}])],
            'message 1 has a part that is neither {"type": "text", "text": ...} nor {"type": "image"}, but one of the '
            'type "input_audio"',
        ),
        ([message(USER, [{"type": "text"}])], "message 1 has a part that is neither"),
        # As of OpenAI's messages.
        (
            [message(USER, [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}])],
            'message 1 has an image of its own, in "image_url"; images stand in the column "images"',
        ),
        (
            [message(USER, [{"type": "image", "image": "a"}, text("a")])],
            'message 1 has an image of its own, in "image"; images stand in the column "images"',
        ),
        ([message(USER, [{"type": "image", "index": 1}])], "image part 1 has the index 1, expected 0"),
        ([message(USER, "\ud800")], "messages is not valid UTF-8"),
        ([message(USER, "a" * (1 << 20) + "b")], "messages has 1048577 bytes of text, more than 1048576"),
        ([], "messages is an empty list; expected a list of"),
        ({"role": "user"}, 'messages is {"role": "user"}; expected a list of'),
        (5, "messages is 5; expected a list of"),
        ("What?", 'messages is text, but not JSON; expected a list of {"role": ..., "content": ...}'),
        ("[" * 99999, "messages is text, but not JSON"),
    ],
)
def test_messages_that_cannot_be_asked_are_named(tmp_path, messages, says):
    row = row_of(tmp_path, messages=messages, images=["a"])
    assert row.problem.startswith(says)
    assert (row.images, row.conversation) == ((), None)


def test_messages_are_the_same_in_each_kind_of_file(tmp_path):
    messages = [message(USER, "Hi é"), message(ASSISTANT, "Hi"), message(USER, "What?")]
    expected = Conversation((said(USER, 0, 1, "Hi é"), said(ASSISTANT, "Hi"), said(USER, "What?")))
    rows = [{"idx": 1, "messages": messages, "images": ["a", "b"]}]
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode())
    as_text = [{name: cell if name == "idx" else json.dumps(cell) for name, cell in rows[0].items()}]
    paths = [write_jsonl(tmp_path / "q.jsonl", *rows), write_jsonl(tmp_path / "text.jsonl", *as_text)]
    (tmp_path / "q.json").write_text(json.dumps(rows))
    with open(tmp_path / "q.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(as_text[0]))
        writer.writeheader()
        writer.writerows(as_text)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "q.parquet")
    pq.write_table(pa.table({"idx": [1], "messages": [json.dumps(messages)], "images": [["a", "b"]]}), tmp_path / "t")
    for path in [*paths, tmp_path / "q.json", tmp_path / "q.csv", tmp_path / "q.parquet", tmp_path / "t"]:
        (row,) = asked(path, tmp_path)
        assert (row.conversation, row.images, row.problem) == (expected, (b"a", b"b"), None), path


def test_messages_of_datasets_have_parts_whose_other_fields_are_null(tmp_path):
    """As in HuggingFaceH4/llava-instruct-mix-vsft: an index for images, none for texts."""
    parts = [{"index": None, "text": "What?", "type": "text"}, {"index": 0, "text": None, "type": "image"}]
    row = {"idx": "r", "messages": [message(USER, parts)], "images": [{"bytes": b"x", "path": None}]}
    dataset = datasets.Dataset.from_list([row, row | {"idx": "s"}])
    dataset = dataset.cast_column("images", datasets.Sequence(datasets.Image()))
    dataset.save_to_disk(tmp_path / "saved")
    for found in asked(tmp_path / "saved"):
        assert (found.conversation, found.images) == (Conversation((said(USER, "What?", 0),)), (b"x",))


@pytest.mark.parametrize(
    ("whole", "broken"),
    [
        # Of the texts in the messages, and of the messages of the rows.
        ((0, 10, 20, 30), (0, 10, 1 << 30, 30)),
        ((0, 1, 2, 3, 4, 5, 6), (0, 1, 1 << 30, 3, 4, 5, 6)),
    ],
)
def test_an_offset_inside_of_lists_that_points_out_of_the_file_is_no_segmentation_fault(tmp_path, whole, broken):
    rows = [{"idx": f"{number}-{number}", "messages": [message("user", f"question {number}")]} for number in range(6)]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.arrow")
    whole, broken = (struct.pack(f"<{len(offsets)}i", *offsets) for offsets in (whole, broken))
    data = file.read_bytes()
    assert data.count(whole) == 1
    file.write_bytes(data.replace(whole, broken))
    with pytest.raises(UserError, match=f'^dataset "{tmp_path}/saved" is broken: '):
        asked(tmp_path / "saved")


def test_text_of_messages_that_is_not_unicode_is_the_problem_of_its_row(tmp_path):
    broken = pa.array([b"caf\xe9", b"fine"], pa.binary()).view(pa.string())
    message = pa.StructArray.from_arrays([pa.array(["user", "user"]), broken], names=["role", "content"])
    messages = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), message)
    columns = pa.table({"idx": [1, 2], "messages": messages})
    pq.write_table(columns, tmp_path / "q.parquet")
    first, second = asked(tmp_path / "q.parquet")
    assert (first.problem, second.question) == ("messages is not valid UTF-8", "fine")
    source = DatasetsSource(datasets.Dataset(columns))
    assert [row.problem for row in Questions(source, "dataset").rows(range(2))] == [first.problem, None]


def test_a_cell_of_messages_is_not_made_into_objects_where_it_is_too_large(tmp_path):
    messages = pa.array([[message(USER, "a" * (9 << 20))], [message(USER, "b")]])
    pq.write_table(pa.table({"idx": [1, 2], "messages": messages}), tmp_path / "q.parquet")
    first, second = asked(tmp_path / "q.parquet")
    assert first.problem.startswith("messages has 94")
    assert first.problem.endswith("bytes, more than 8388608")
    assert second.question == "b"


def test_a_row_has_a_question_or_messages(tmp_path):
    messages = [message(USER, "Hi"), message(ASSISTANT, "Hi"), message(USER, "What?")]
    both = row_of(tmp_path, question="What?", messages=messages)
    assert len(both.conversation.messages) == 3
    # As an empty cell of a CSV file is.
    assert row_of(tmp_path, question="", messages=messages) == row_of(tmp_path, messages=messages) == both
    assert row_of(tmp_path, question="What?", messages=None).conversation == Conversation((said(USER, "What?"),))
    says = "row has a question, and messages that end with another one; leave one of the two null"
    assert row_of(tmp_path, question="Who?", messages=messages).problem == says
    assert row_of(tmp_path, question=None, messages=None).problem == "question is null"


# A system text


def test_a_system_text_is_the_rows_own_or_that_of_the_flag(tmp_path):
    own = message(SYSTEM, "In messages.")
    rows = [
        {"question": "?", "system": "In a column."},
        {"question": "?", "system": None},
        {"question": "?", "system": ""},
        {"question": "?", "system": " \n"},
        {"messages": [own, message(USER, "?")]},
        {"messages": [message(USER, "?")], "system": "In a column."},
        {"messages": [own, message(USER, "?")], "system": "In messages."},
        {"messages": [own, message(USER, "?")], "system": "In a column."},
    ]
    path = write_jsonl(tmp_path / "q.jsonl", *({"idx": number} | row for number, row in enumerate(rows)))
    found = asked(path, system="By the flag.")
    systems = [row.conversation and row.conversation.system for row in found]
    assert systems == [
        "In a column.", *["By the flag."] * 3, "In messages.", "In a column.", "In messages.", None
    ]  # fmt: skip
    assert found[7].problem == "row has a system text, and another one in its messages; leave one of the two out"
    assert asked(path)[1].conversation.messages == (said(USER, "?"),)


# What is bound


def test_the_digest_of_one_image_and_one_question_is_what_it_always_was(tmp_path):
    """Units of earlier runs name it: sha256 of the question, behind its length in 8 bytes, and of the image."""
    content = (5).to_bytes(8, "little") + b"What?" + b"a"
    expected = hashlib.sha256(content).hexdigest()[:32]
    assert row_of(tmp_path, question="What?", image="a").digest == expected
    assert Question("q", "What?", b"a", None).digest == expected
    assert row_of(tmp_path, messages=[message(USER, [PLACE, text("What?")])], images=["a"]).digest == expected


def test_a_digest_names_everything_that_a_model_sees(tmp_path):
    turns = [message(USER, "Hi"), message(ASSISTANT, "Hi"), message(USER, "What?")]
    rows = [
        {"question": "What?", "images": ["a"]},
        {"question": "What?", "images": []},
        {"question": "What?", "images": ["a", "b"]},
        {"question": "What?", "images": ["b", "a"]},
        {"question": "What?", "images": ["a", "b", "c"]},
        {"question": "Who?", "images": ["a", "b"]},
        {"question": "What?", "images": ["a"], "system": "S"},
        {"question": "What?", "images": ["a"], "system": "T"},
        {"messages": turns, "images": ["a"]},
        {"messages": [turns[0], message(ASSISTANT, "Ho"), turns[2]], "images": ["a"]},
        {"messages": [turns[0], message(USER, "Hi"), turns[2]], "images": ["a"]},
        {"messages": [message(USER, [text("What?"), PLACE])], "images": ["a"]},
        {"messages": [message(USER, [PLACE, text("Wha"), text("t?")])], "images": ["a"]},
    ]
    digests = [row_of(tmp_path, **row).digest for row in rows]
    assert None not in digests
    assert len(set(digests)) == len(rows)
    # Where one image ends and the next begins counts, too.
    for name, data in {"a": b"xy", "b": b"z", "c": b"x", "d": b"yz"}.items():
        (tmp_path / name).write_bytes(data)
    rows = [
        {"idx": number, "question": "?", "images": images} for number, images in enumerate((["a", "b"], ["c", "d"]))
    ]
    one, other = asked(write_jsonl(tmp_path / "r.jsonl", *rows), tmp_path)
    assert b"".join(one.images) == b"".join(other.images)
    assert one.digest != other.digest
