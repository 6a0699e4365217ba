"""Files of one dataset that differ in the spelling of their types alone, and columns that could be meant twice."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from question_files import refusal, table, write

from data_engine.questions.dataset import load_questions
from data_engine.questions.sources.column_types import as_type, columns_of, unified
from data_engine.schemas import IMAGE

PLAIN = [{"bytes": b"one", "path": "1.jpg"}, {"bytes": None, "path": "2.jpg"}, None]


def rows_of(folder) -> list[tuple]:
    questions = load_questions(str(folder))
    rows = list(questions.rows(range(len(questions))))
    return [(row.idx, row.question, row.image, row.image_path, row.extra) for row in rows]


@pytest.mark.parametrize(
    ("image", "cells"),
    [
        (pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())]), PLAIN),
        (pa.struct([("path", pa.string()), ("bytes", pa.binary())]), PLAIN),
        (pa.struct([("bytes", pa.binary_view()), ("path", pa.string_view())]), PLAIN),
        (pa.struct([pa.field("bytes", pa.binary(), False), pa.field("path", pa.string(), False)]), PLAIN[:1] * 3),
        (pa.struct([("size", pa.int8()), ("path", pa.string()), ("bytes", pa.binary())]), PLAIN),
    ],
    ids=["large", "order", "view", "not null", "another field"],
)
@pytest.mark.parametrize("names", ["ab", "ba"])
def test_an_image_may_be_spelled_in_another_way_in_each_file(tmp_path, image, cells, names):
    write(tmp_path / f"{names[0]}.parquet", [1, 2, 3], image=pa.array(PLAIN, IMAGE))
    write(tmp_path / f"{names[1]}.parquet", [4, 5, 6], image=pa.array(cells, image))
    found = {row[0]: row[2:4] for row in rows_of(tmp_path)}
    plain = {i: (None, None) if cell is None else (cell["bytes"], cell["path"]) for i, cell in enumerate(PLAIN, 1)}
    other = {i: (None, None) if cell is None else (cell["bytes"], cell["path"]) for i, cell in enumerate(cells, 4)}
    assert found == plain | other


@pytest.mark.parametrize("names", ["ab", "ba"])
@pytest.mark.parametrize(
    ("image", "cell", "expected"),
    [
        (pa.struct([("bytes", pa.binary()), ("path", pa.null())]), {"bytes": b"x", "path": None}, (b"x", None)),
        (pa.struct([("bytes", pa.binary())]), {"bytes": b"x"}, (b"x", None)),
        (pa.struct([("bytes", pa.null()), ("path", pa.string())]), {"bytes": None, "path": "x.jpg"}, (None, "x.jpg")),
        (pa.null(), None, (None, None)),
    ],
    ids=["null path", "no path", "null bytes", "null image"],
)
def test_what_is_null_in_all_of_a_file_has_the_type_of_the_others(tmp_path, names, image, cell, expected):
    write(tmp_path / f"{names[0]}.parquet", [1], image=pa.array([{"bytes": b"y", "path": "y.jpg"}], IMAGE))
    write(tmp_path / f"{names[1]}.parquet", [2], image=pa.array([cell], image))
    assert {row[0]: row[2:4] for row in rows_of(tmp_path)} == {1: (b"y", "y.jpg"), 2: expected}


@pytest.mark.parametrize("names", ["ab", "ba"])
@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())], ids=["large", "view", "dict"]
)
def test_text_may_be_spelled_in_another_way_in_each_file(tmp_path, kind, names):
    for name, ids, type in zip(names, (["é", "b"], ["犬", "d"]), (pa.string(), kind), strict=True):
        texts = pa.array([f"what is {id}?" for id in ids], type)
        ds_name = pa.array([None, f"of {ids[1]}"], type)
        write(tmp_path / f"{name}.parquet", ids, type, question=texts, ds_name=ds_name)
    questions = load_questions(str(tmp_path))
    assert questions.idx_type == pa.string()
    found = {row[0]: (row[1], row[4]["ds_name"]) for row in rows_of(tmp_path)}
    assert found == {id: (f"what is {id}?", f"of {id}" if id in "bd" else None) for id in ("é", "b", "犬", "d")}


def test_optional_columns_that_are_null_or_of_other_widths_in_a_file_are_one(tmp_path):
    write(tmp_path / "a.parquet", [1], ds_name=pa.nulls(1), origin_dataset=pa.array([5], pa.int8()))
    write(tmp_path / "b.parquet", [2], ds_name=pa.array(["d"]), origin_dataset=pa.array([1 << 40]))
    assert [row[4] for row in rows_of(tmp_path)] == [
        {"ds_name": None, "origin_dataset": "5"},
        {"ds_name": "d", "origin_dataset": str(1 << 40)},
    ]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (("int64", -(2**63)), ("int32", 2**31 - 1), pa.int64()),
        (("int8", -128), ("int16", 32767), pa.int16()),
        (("uint8", 255), ("uint64", 2**64 - 1), pa.uint64()),
        (("uint8", 255), ("int8", -128), pa.int16()),
        (("int16", -32768), ("uint16", 65535), pa.int32()),
        (("uint32", 2**32 - 1), ("int8", -128), pa.int64()),
        (("int64", -1), ("uint32", 2**32 - 1), pa.int64()),
    ],
)
def test_idx_has_the_narrowest_type_that_holds_those_of_all_files(tmp_path, one, other, expected):
    for name, (kind, value) in (("a", one), ("b", other)):
        write(tmp_path / f"{name}.parquet", [value, 7 if name == "a" else 8], getattr(pa, kind)())
    questions = load_questions(str(tmp_path))
    assert (questions.idx_type, questions.idx) == (expected, [one[1], 7, other[1], 8])


@pytest.mark.parametrize(
    ("one", "other"),
    [(pa.int64(), pa.uint64()), (pa.uint64(), pa.int8()), (pa.int64(), pa.string()), (pa.string(), pa.int32())],
)
def test_ids_that_no_type_holds_are_refused_by_both_types(tmp_path, one, other):
    write(tmp_path / "a.parquet", [1] if pa.types.is_integer(one) else ["1"], one)
    path = write(tmp_path / "b.parquet", [2] if pa.types.is_integer(other) else ["2"], other)
    assert refusal(str(tmp_path)) == (
        f'dataset file "{path}" has another schema than "a.parquet": column "idx" is of type {other}, '
        f"in the files before it of type {one}; write all files of --dataset_path with the same columns"
    )


def test_a_path_and_bytes_are_no_two_spellings(tmp_path):
    write(tmp_path / "a.parquet", [1], image=pa.array(["x.jpg"]))
    write(tmp_path / "b.parquet", [2], image=pa.array([b"x"]))
    assert 'column "image" is of type binary, in the files before it of type string' in refusal(str(tmp_path))
    write(tmp_path / "b.parquet", [2])
    assert 'column "image" is of type struct<' in refusal(str(tmp_path))


@pytest.mark.parametrize("kind", [pa.dictionary(pa.int8(), pa.binary()), pa.binary_view()])
def test_a_single_file_may_have_each_spelling(tmp_path, kind):
    cells = pa.array([b"x", None], pa.binary())
    cells = cells.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else cells.cast(kind)
    assert as_type(cells, columns_of(pa.schema([("a", kind)]), "")["a"]).to_pylist() == [b"x", None]
    image = pa.StructArray.from_arrays([pa.array(["1.jpg", None]).dictionary_encode(), cells], names=["path", "bytes"])
    write(tmp_path / "q.parquet", [1, 2], image=image)
    assert [row[2:4] for row in rows_of(tmp_path)] == [(b"x", "1.jpg"), (None, None)]


def test_a_part_of_an_array_keeps_its_place_when_fields_change_theirs():
    cells = pa.array([{"p": i, "b": str(i)} if i % 3 else None for i in range(9)])
    target = pa.struct([("b", pa.large_string()), ("p", pa.int64()), ("n", pa.int8())])
    expected = [{"b": str(i), "p": i, "n": None} if i % 3 else None for i in range(2, 8)]
    assert as_type(cells[2:8], target).to_pylist() == expected


@pytest.mark.parametrize("lists", [pa.list_, pa.large_list, lambda kind: pa.list_(kind, 2)])
def test_a_part_of_an_array_of_lists_keeps_its_place_when_the_items_change(lists):
    rows = [[{"p": i, "b": str(i)}, {"p": -i, "b": None}] if i % 3 else None for i in range(9)]
    cells = pa.array(rows, lists(pa.struct([("p", pa.int32()), ("b", pa.string())])))
    target = pa.large_list(pa.struct([("b", pa.large_string()), ("p", pa.int64())]))
    found = as_type(cells[2:8], target)
    found.validate(full=True)
    assert found.type == target
    assert found.to_pylist() == rows[2:8]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (pa.float32(), pa.float64(), pa.float64()),
        (pa.list_(pa.int8()), pa.large_list(pa.int32()), pa.large_list(pa.int32())),
        (pa.int64(), pa.float64(), None),
        (pa.string(), pa.binary(), None),
        (pa.bool_(), pa.int8(), None),
        (pa.list_(IMAGE), pa.large_list(IMAGE), pa.large_list(IMAGE)),
        (pa.struct([("a", pa.string())]), pa.struct([("a", pa.int8())]), None),
        (pa.null(), pa.null(), pa.null()),
    ],
)
def test_types_are_one_or_not_in_either_order(one, other, expected):
    assert (unified(one, other), unified(other, one)) == (expected, expected)


# Two of one name


def renamed(names: list[str], **columns) -> pa.Table:
    return table([1, 2], **columns).rename_columns(names)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["idx", "question", "image", "question"], 'has more than one column "question"; keep one'),
        (["idx", "question", "image", "image"], 'has more than one column "image"; keep one'),
        (["idx", "question", "image", "idx"], 'has more than one column "idx"; keep one'),
        (["idx", "question", "image", "ds_name", "ds_name"], 'has more than one column "ds_name"; keep one'),
    ],
)
def test_two_columns_of_one_name_are_refused(tmp_path, names, says):
    others = {f"other_{i}": pa.array(["x", "y"]) for i in range(len(names) - 3)}
    pq.write_table(renamed(names, **others), tmp_path / "q.parquet")
    assert says in refusal(str(tmp_path / "q.parquet"))
    assert refusal(str(tmp_path)).startswith(f'dataset file "{tmp_path}/q.parquet" has more than one column')


def test_two_columns_of_one_name_in_the_second_file_are_refused(tmp_path):
    write(tmp_path / "a.parquet", [7])
    pq.write_table(renamed(["idx", "question", "image", "question"], more=pa.array(["x", "y"])), tmp_path / "b.parquet")
    assert refusal(str(tmp_path)).startswith(f'dataset file "{tmp_path}/b.parquet" has more than one column "question"')


def test_columns_that_are_not_read_may_be_there_twice(tmp_path):
    more = {"x": pa.array(["x", "y"]), "z": pa.array(["z", "z"])}
    pq.write_table(renamed(["idx", "question", "image", "note", "note"], **more), tmp_path / "q.parquet")
    assert [row[:3] for row in rows_of(tmp_path)] == [(1, "question 0", b"image 0"), (2, "question 1", b"image 1")]


def test_a_field_of_the_image_that_is_there_twice_is_refused(tmp_path):
    image = pa.StructArray.from_arrays(
        [pa.array([b"1"]), pa.array(["p"]), pa.array([b"2"])], ["bytes", "path", "bytes"]
    )
    path = write(tmp_path / "q.parquet", [1], image=image)
    assert refusal(path) == f'dataset file "{path}": the struct of "image" has more than one field "bytes"; keep one'


def test_columns_are_read_by_name_whatever_their_order_and_their_neighbours(tmp_path):
    columns = table([1], **{"question.source": pa.array(["?"]), "image.bytes": pa.array([b"?"])})
    names = ["image.bytes", "image", "question.source", "question", "idx"]
    pq.write_table(columns.select(names), tmp_path / "q.parquet")
    assert [row[:4] for row in rows_of(tmp_path)] == [(1, "question 0", b"image 0", "0.jpg")]
