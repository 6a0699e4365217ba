"""Rows of several images, or of none: how a list spells them, which are refused, and what is made of their pixels."""

import base64
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conversation_rows import USER, asked, message, row_of, said
from PIL import Image
from question_files import table, write_jsonl
from turned_pictures import UPRIGHT, exif_of, stored, with_exif

from data_engine.errors import BadRow
from data_engine.questions.conversation import Conversation
from data_engine.questions.dataset import Question, load_questions, read_images
from data_engine.questions.images import BadImage
from data_engine.schemas import IMAGE


def test_the_images_of_a_list_stand_before_the_question_in_their_order(tmp_path):
    row = row_of(tmp_path, question="Which is larger?", images=["b", "a"])
    assert row.images == (b"b", b"a")
    assert row.conversation == Conversation((said(USER, 0, 1, "Which is larger?"),))
    assert (row.question, row.image, row.image_path, row.problem) == ("Which is larger?", None, None, None)


LISTS = {
    "structs": pa.array([[{"bytes": b"x", "path": "p"}, {"bytes": b"y", "path": None}]], pa.list_(IMAGE)),
    "fields in another order": pa.array(
        [[{"path": "p", "more": 1, "bytes": b"x"}, {"path": None, "more": 2, "bytes": b"y"}]],
        pa.large_list(pa.struct([("path", pa.large_string()), ("more", pa.int8()), ("bytes", pa.large_binary())])),
    ),
    "bytes": pa.array([[b"x", b"y"]], pa.list_(pa.binary())),
    "two a row": pa.array([[b"x", b"y"]], pa.list_(pa.binary(), 2)),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_images_may_be_spelled_in_each_way(tmp_path, name):
    columns = table([1], images=LISTS[name]).drop_columns(["image"])
    pq.write_table(columns, tmp_path / "q.parquet")
    assert asked(tmp_path / "q.parquet")[0].images == (b"x", b"y")


def test_files_that_spell_lists_of_images_and_messages_differently_are_one_dataset(tmp_path):
    contents = [pa.string(), pa.large_string()]
    for number, name in enumerate(["structs", "fields in another order"]):
        kind = pa.struct([("role", pa.string()), ("content", contents[number])])
        if number:
            kind = pa.struct([("content", contents[number]), ("role", pa.string())])
        messages = pa.array([[message(USER, f"{number}?")], None], pa.list_(kind))
        images = pa.concat_arrays([LISTS[name], pa.nulls(1, LISTS[name].type)])
        columns = {"images": images, "messages": messages, "question": ["", "What?"]}
        columns = table([2 * number, 2 * number + 1], **columns)
        pq.write_table(columns.drop_columns(["image"]), tmp_path / f"{number}.parquet")
    first, null, second, _ = asked(tmp_path)
    assert first.images == second.images == (b"x", b"y")
    assert [row.question for row in (first, null, second)] == ["0?", "What?", "1?"]
    assert null.problem == "row has no images: the cell is null; an empty list is a row without images"


def test_a_part_of_a_column_of_lists_keeps_its_images(tmp_path):
    """Rows from the middle of a row group, with nulls and empty lists before them."""
    lists = [None, [], [b"0"], [b"1", b"2"], None, [b"3", b"4", b"5"], [], [b"6"]]
    columns = table(list(range(8)), images=pa.array(lists, pa.list_(pa.binary()))).drop_columns(["image"])
    pq.write_table(columns, tmp_path / "q.parquet")
    questions = load_questions(str(tmp_path / "q.parquet"))
    for start in range(8):
        rows = list(questions.rows(range(start, 8)))
        assert [row.images for row in rows] == [tuple(images or ()) for images in lists[start:]]
        assert [row.problem is None for row in rows] == [images is not None for images in lists[start:]]


def test_a_list_of_one_image_is_a_row_of_one_image(tmp_path):
    one = row_of(tmp_path, question="What?", images=["a"])
    plain = row_of(tmp_path, question="What?", image="a")
    assert (one.image, one.image_path, one.images, one.digest) == (b"a", "a", (b"a",), plain.digest)
    assert one.conversation == plain.conversation == Conversation.of("What?")


def test_images_of_a_list_may_be_base64_and_objects(tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (4, 3)).save(file, "PNG")
    coded = base64.b64encode(file.getvalue()).decode()
    images = [coded, f"data:image/png;base64,{coded}", {"bytes": coded, "path": "x"}, {"path": "a"}]
    png = file.getvalue()
    assert row_of(tmp_path, question="What?", images=images).images == (png, png, png, b"a")


@pytest.mark.parametrize("cell", ["a", {"path": "a"}, '["a"]', "data:image/png;base64,YQ=="])
def test_one_image_in_the_place_of_a_list_is_that_image(tmp_path, cell):
    row = row_of(tmp_path, question="What?", images=cell)
    assert (row.images, row.conversation, row.problem) == ((b"a",), Conversation.of("What?"), None)


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a", None]),
        pa.array([b"a", None]),
        pa.array([{"more": 1, "bytes": b"a"}, None], pa.struct([("more", pa.int8()), ("bytes", pa.binary())])),
    ],
    ids=["text", "bytes", "struct"],
)
def test_a_column_of_images_may_have_one_in_each_row(tmp_path, column):
    (tmp_path / "a").write_bytes(b"a")
    pq.write_table(pa.table({"idx": [1, 2], "question": ["What?"] * 2, "images": column}), tmp_path / "q.parquet")
    one, null = asked(tmp_path / "q.parquet", tmp_path)
    assert (one.images, one.conversation, one.problem) == ((b"a",), Conversation.of("What?"), None)
    assert null.problem == "row has no images: the cell is null; an empty list is a row without images"


def test_a_column_of_text_may_have_lists_of_images_in_json(tmp_path):
    """As a table has them that was a CSV file; what is no JSON is told as it stands there."""
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode())
    cells = ['["b", {"path": "a"}]', "[]", " ", "['a']", "a"]
    columns = {"idx": [0, 1, 2, 3, 4], "question": ["What?"] * 5, "images": cells}
    pq.write_table(pa.table(columns), tmp_path / "q.parquet")
    found = asked(tmp_path / "q.parquet", tmp_path)
    assert [row.images for row in found] == [(b"b", b"a"), (), (), (), (b"a",)]
    assert [row.problem for row in found] == [
        None, None, "row has no images: the cell is null; an empty list is a row without images",
        'image path "[\'a\']" is not a readable file under image_root', None,
    ]  # fmt: skip


def test_an_empty_list_is_a_row_without_images_and_so_is_every_row_of_a_dataset_without_the_columns(tmp_path):
    empty, without = row_of(tmp_path, question="What?", images=[]), row_of(tmp_path, question="What?")
    assert empty == without
    assert without.conversation == Conversation((said(USER, "What?"),))
    assert (without.image, without.images, without.problem, without.digest) == (None, (), None, empty.digest)


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        ({"image": None}, "row has no image: neither bytes nor a path"),
        ({"images": None}, "row has no images: the cell is null; an empty list is a row without images"),
        ({"image": None, "images": None}, "row has no image: neither bytes nor a path"),
        ({"image": "a", "images": ["b"]}, "row has both an image and images; leave one of the two null, or unread by"),
        ({"images": ["a", None]}, "image 2 of 2: row has no image: neither bytes nor a path"),
        ({"images": ["a", 5, "b"]}, "image 2 of 3: image is a number; expected a path, base64 text, or an object"),
        ({"images": [["a"]]}, "image is a list; expected a path, base64 text, or an object"),
        ({"images": {"bytes": ""}}, "row has no image: neither bytes nor a path"),
        # As Python writes a list.
        ({"images": "['a', 'b']"}, 'images is text, but not JSON; expected a list of images, as ["a.jpg", "b.jpg"]'),
        ({"images": 5}, "images is a number; expected a list of images"),
        ({"images": "[5]"}, "image is a number; expected a path"),
        ({"images": ["a", "none"]}, 'image 2 of 2: image path "none" is not a readable file under image_root'),
        ({"images": ["../x", "a"]}, 'image 1 of 2: image path "../x" leads outside image_root'),
    ],
)
def test_images_that_cannot_be_taken_are_named(tmp_path, cells, says):
    row = row_of(tmp_path, question="What?", **cells)
    assert row.problem.startswith(says)
    assert (row.image, row.images, row.conversation, row.digest) == (None, (), None, None)


def test_one_image_that_is_missing_makes_the_row_missing_until_it_is_there(tmp_path):
    row = row_of(tmp_path, question="What?", images=["a", "later", "b"])
    assert row.missing
    assert row.problem == 'image 2 of 3: image path "later" is not a readable file under image_root'
    (tmp_path / "later").write_bytes(b"later")
    row = row_of(tmp_path, question="What?", images=["a", "later", "b"])
    assert (row.images, row.missing) == ((b"a", b"later", b"b"), False)


def test_rows_with_either_column_of_images_stand_in_one_dataset(tmp_path):
    rows = [{"image": "a"}, {"images": ["a", "b"]}, {"image": "b", "images": []}, {"images": []}]
    rows = [{"idx": number, "question": "?"} | row for number, row in enumerate(rows)]
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode())
    found = asked(write_jsonl(tmp_path / "q.jsonl", *rows), tmp_path)
    assert [row.images for row in found] == [(b"a",), (b"a", b"b"), (b"b",), ()]


def png(size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size).save(file, "PNG")
    return file.getvalue()


def pictured(*images: bytes) -> Question:
    return Question("q", "What?", None, None, conversation=Conversation.of("What?", len(images)), images=images)


def test_each_image_of_a_row_is_turned_upright_and_held_to_the_limit():
    turned = with_exif(stored(6), "JPEG", exif_of(6))
    first, second = read_images(pictured(png((5, 4)), turned), 1)
    assert first.size == (5, 4)
    assert second.size == UPRIGHT.shape[1::-1]
    says = r"image 2 of 2: source image 2000 x 1000 has 2.0 megapixels, max_megapixels is 1$"
    with pytest.raises(BadImage, match=says):
        read_images(pictured(png((5, 4)), png((2000, 1000))), 1)
    with pytest.raises(BadImage, match="image 1 of 2: not an image in a known format"):
        read_images(pictured(b"x", b"y"), 1)
    with pytest.raises(BadImage, match=r"^not an image in a known format"):
        read_images(pictured(b"x"), 1)
    with pytest.raises(BadRow, match="gone"):
        read_images(Question("q", "What?", None, None, problem="gone"), 1)
    assert read_images(pictured(), 1) == []
