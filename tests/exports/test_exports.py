"""The dataset folder: what is in it, in which order, and what trainers make of it."""

import hashlib
import os
import random
from collections import Counter
from types import SimpleNamespace

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stage2_world import dataset_rows, digest, make_world, picture, publish

from data_engine import exports, schemas
from data_engine.exports import parquet_files, shuffle
from data_engine.exports.base import ExportSource, Reached, Written
from data_engine.questions.dataset import Questions, load_questions
from data_engine.schemas import without_image_marker
from data_engine.seeds import seed_for
from data_engine.store import units
from data_engine.store.folders import scratch_folder
from data_engine.store.units import UnitResult, split_units


def kept_pairs(idxs, each=3):
    """Rows of schemas.pairs, as far as an export reads them."""
    return [
        {
            "idx": idx,
            "chosen_index": number,
            "rejected_index": 9,
            "chosen": f"good {number} of {idx}",
            "rejected": f"bad of {idx}",
        }
        for idx in idxs
        for number in range(each)
    ]


def export(world, work_dir, pairs, seed=0):
    with scratch_folder(work_dir, "test") as scratch:
        return write_dataset(work_dir, scratch, pairs, world.questions(), world.units(), seed)


def write_dataset(work_dir, scratch, pairs, questions, unit_ranges, seed) -> Written:
    for unit, span in enumerate(unit_ranges):
        # Of another export to the same folder, in other units.
        units.unit_path(work_dir, "sampled_answer", unit).unlink(missing_ok=True)
        # Not counted where a test counts what is read.
        digests = [question.digest for question in Questions.rows(questions, span)]
        sampled = schemas.sampled_answer(questions.idx_type).empty_table()
        publish(work_dir, "sampled_answer", unit, UnitResult(sampled, [], rows=digests))
    kept = ExportSource(pairs, questions, unit_ranges, work_dir, seed)
    return exports.export(exports.DEFAULT, kept, work_dir / "dataset", scratch)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"), num_questions=80, num_answers=1)


@pytest.fixture(scope="module")
def pairs(world):
    return kept_pairs([f"q{number:03d}" for number in range(80) if number % 5])


def test_every_kept_pair_is_written_once_with_its_own_question_and_image(world, pairs, tmp_path):
    assert export(world, tmp_path, pairs).rows == len(pairs) == 64 * 3
    rows = dataset_rows(tmp_path)
    assert sorted((row["idx"], row["chosen"]) for row in rows) == [(pair["idx"], pair["chosen"]) for pair in pairs]
    for row in rows:
        number = int(row["idx"][1:])
        assert row["question"] == f"What is in picture {number}?"
        assert row["image"] == {"bytes": picture(number), "path": f"{number}.png"}
        assert row["rejected"] == f"bad of {row['idx']}"


def test_the_folder_holds_the_parquet_file_and_nothing_else(world, pairs, tmp_path):
    export(world, tmp_path, pairs)
    assert os.listdir(tmp_path / "dataset") == ["dpo_dataset.parquet"]
    assert sorted(os.listdir(tmp_path)) == ["dataset", "sampled_answer"]


def test_the_order_is_shuffled_by_the_seed(world, pairs, tmp_path):
    orders = []
    for seed in (0, 0, 1):
        export(world, tmp_path, pairs, seed)
        orders.append([row["chosen"] for row in dataset_rows(tmp_path)])
    given = [pair["chosen"] for pair in pairs]
    assert orders[0] == orders[1]
    assert orders[0] not in (given, orders[2])
    # Of 192 rows in random order, 1 is expected to stay where it was, and 3 next to their neighbours.
    assert sum(one == other for one, other in zip(orders[0], given, strict=True)) < 8


def test_every_place_is_equally_likely_for_a_pair(world, tmp_path):
    pairs = kept_pairs(["q001", "q002"], each=2)
    firsts = Counter()
    for seed in range(400):
        places = [seed_for(seed, "place", *shuffle.pair_key(pair)) for pair in pairs]
        firsts[places.index(min(places))] += 1
    # 100 each; the standard deviation is 8.7.
    assert all(65 < firsts[at] < 135 for at in range(4))


def test_the_order_is_that_of_a_hash_of_seed_question_chosen_and_rejected(world, tmp_path):
    """Each pair's place, by hashlib alone: blake2b of 8 bytes, read from the low end."""
    pairs = [
        pair | {"rejected_index": number, "rejected": f"bad {number}"}
        for pair in kept_pairs(["q003", "q004"], each=2)
        for number in (7, 8, 9)
    ]
    export(world, tmp_path, pairs, seed=5)

    def place(pair: dict) -> int:
        key = f"(5, 'place', {pair['idx']!r}, {pair['chosen_index']}, {pair['rejected_index']})"
        return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") >> 1

    expected = [(pair["idx"], pair["chosen"], pair["rejected"]) for pair in sorted(pairs, key=place)]
    assert [(row["idx"], row["chosen"], row["rejected"]) for row in dataset_rows(tmp_path)] == expected


@pytest.mark.parametrize("bucket_pairs", [1, 7, 60])
def test_the_number_of_buckets_does_not_show_in_the_result(world, pairs, tmp_path, monkeypatch, bucket_pairs):
    export(world, tmp_path / "one", pairs)
    monkeypatch.setattr(shuffle, "BUCKET_ROWS", bucket_pairs)
    export(world, tmp_path / "many", pairs)
    assert digest(tmp_path / "many") == digest(tmp_path / "one")


def test_buckets_are_deleted_as_they_are_read(tmp_path):
    schema = pa.schema([("number", pa.int64())])
    source = SimpleNamespace(pairs=range(1000), questions=range(1000), seed=0, reached=Reached())
    rows = shuffle.shuffled((((number,), {"number": number}) for number in range(1000)), schema, source, tmp_path)
    sizes = [path.stat().st_size for path in rows.paths]
    left = [sum(path.exists() for path in rows.paths) for _ in rows]
    first = [bucket for bucket, _ in rows.order].count(0)
    # With the rows of the next memory maps, since the disk keeps it as long as a row of it is held.
    gone = -(-first // shuffle.ROWS_A_MAP) * shuffle.ROWS_A_MAP
    assert left == [2] * gone + [1] * (1000 - gone)
    assert source.reached.needed_bytes == sum(sizes) * 3 // 2


def test_the_number_of_open_files_is_bounded(world, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(shuffle, "BUCKET_ROWS", 1)
    monkeypatch.setattr(shuffle, "MAX_BUCKETS", 5)
    opened = []
    real = pa.ipc.new_file
    monkeypatch.setattr(shuffle.pa.ipc, "new_file", lambda *args: opened.append(1) or real(*args))
    export(world, tmp_path, pairs)
    assert len(opened) == 5


def test_row_groups_have_about_a_hundred_rows(world, pairs, tmp_path):
    export(world, tmp_path, pairs)
    metadata = pq.read_metadata(tmp_path / "dataset/dpo_dataset.parquet")
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [100, 92]


def test_heavy_images_make_smaller_row_groups(world, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_files, "ROW_GROUP_BYTES", 4000)
    export(world, tmp_path, pairs)
    file = pq.ParquetFile(tmp_path / "dataset/dpo_dataset.parquet")
    sizes = [file.read_row_group(group).nbytes for group in range(file.num_row_groups)]
    assert len(sizes) > 3
    assert max(sizes) <= 4000


def test_row_groups_and_files_are_filled_before_the_next_begins(tmp_path, monkeypatch):
    """A row has 8 bytes. 3 rows fit a group of 24 bytes, and two such groups a file of 50."""
    schema = pa.schema([("number", pa.int64())])
    rows = [pa.RecordBatch.from_pydict({"number": [number]}, schema) for number in range(13)]
    monkeypatch.setattr(parquet_files, "ROW_GROUP_BYTES", 24)
    monkeypatch.setattr(parquet_files, "FILE_BYTES", 50)
    parquet_files.write_files(tmp_path, "data", rows, schema)
    footers = [pq.read_metadata(path) for path in sorted(tmp_path.iterdir())]
    groups = [[footer.row_group(at).num_rows for at in range(footer.num_row_groups)] for footer in footers]
    assert groups == [[3, 3], [3, 3], [1]]


def test_a_large_dataset_is_split_into_numbered_files_with_the_same_rows_in_the_same_order(
    world, pairs, tmp_path, monkeypatch
):
    export(world, tmp_path / "whole", pairs)
    monkeypatch.setattr(parquet_files, "ROW_GROUP_ROWS", 20)
    monkeypatch.setattr(parquet_files, "FILE_BYTES", 15_000)
    export(world, tmp_path / "split", pairs)
    names = sorted(os.listdir(tmp_path / "split/dataset"))
    assert len(names) > 2
    assert names == [f"dpo_dataset-{number:05d}-of-{len(names):05d}.parquet" for number in range(len(names))]
    assert dataset_rows(tmp_path / "split") == dataset_rows(tmp_path / "whole")
    assert all(pq.read_metadata(tmp_path / "split/dataset" / name).num_rows for name in names)


def test_a_smaller_dataset_leaves_no_file_of_a_larger_one(world, pairs, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(parquet_files, "ROW_GROUP_ROWS", 20)
        patch.setattr(parquet_files, "FILE_BYTES", 15_000)
        export(world, tmp_path, pairs)
    assert len(os.listdir(tmp_path / "dataset")) > 2
    export(world, tmp_path, pairs[:1])
    assert os.listdir(tmp_path / "dataset") == ["dpo_dataset.parquet"]


def test_the_datasets_library_loads_the_file_and_the_folder(world, pairs, tmp_path):
    export(world, tmp_path, pairs)
    cache = str(tmp_path / "cache")
    file = str(tmp_path / "dataset/dpo_dataset.parquet")
    by_file = datasets.load_dataset("parquet", data_files=file, split="train", cache_dir=cache)
    by_folder = datasets.load_dataset(str(tmp_path / "dataset"), split="train", cache_dir=cache)
    assert by_file.column_names == ["idx", "question", "chosen", "rejected", "image"]
    assert by_file[:] == by_folder[:]
    assert by_file.num_rows == len(pairs)
    image = by_file.cast_column("image", datasets.Image())[0]["image"]
    assert image.size == (6, 4)


def test_defect_5_columns_hold_the_values_of_the_input_and_origin_split_is_never_among_them(tmp_path):
    columns = {name: [f"{name} {number}" for number in range(4)] for name in ("ds_name", "origin_split", "image_path")}
    world = make_world(tmp_path / "world", num_questions=4, num_answers=1, **columns)
    export(world, tmp_path / "work", kept_pairs(["q001", "q003"], each=1))
    table = pq.read_table(tmp_path / "work/dataset/dpo_dataset.parquet")
    assert table.column_names == ["idx", "question", "chosen", "rejected", "image", "ds_name", "image_path"]
    for row in table.to_pylist():
        assert row["ds_name"] == f"ds_name {int(row['idx'][1:])}"
        assert row["image_path"] == f"image_path {int(row['idx'][1:])}"


def test_no_column_or_file_name_can_break_the_trainer():
    schema = schemas.dpo_dataset(pa.string(), schemas.OPTIONAL_COLUMNS)
    assert not {"origin_split", "logps"} & set(schema.names)
    assert schema.field("image").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What is this?", "What is this?"),
        ("<image>\nWhat is this? ", "\nWhat is this? "),
        ("a <image>b", "a b"),
        # Taking one marker out must not leave another behind.
        ("<ima<image>ge>a", "a"),
        ("<image>", ""),
        ("<Image> <imag>", "<Image> <imag>"),
    ],
)
def test_defect_8_questions_are_written_without_a_literal_image_marker(question, expected, tmp_path):
    assert without_image_marker(question) == expected
    world = make_world(tmp_path / "world", num_questions=2, num_answers=1, question=[question, "other"])
    export(world, tmp_path / "work", kept_pairs(["q000"], each=1))
    assert dataset_rows(tmp_path / "work")[0]["question"] == expected


def test_an_integer_idx_stays_an_integer(tmp_path):
    world = make_world(tmp_path / "world", num_questions=3, num_answers=1, idx=pa.array([7, 8, 9], pa.int32()))
    export(world, tmp_path / "work", kept_pairs([8], each=1))
    table = pq.read_table(tmp_path / "work/dataset/dpo_dataset.parquet")
    assert table.schema.field("idx").type == pa.int32()
    assert table["idx"].to_pylist() == [8]


def test_images_that_the_input_names_by_path_are_written_with_their_bytes(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(3):
        (tmp_path / f"images/{number}.png").write_bytes(picture(number))
    images = [{"bytes": None, "path": f"{number}.png"} for number in range(3)]
    world = make_world(tmp_path / "world", num_questions=3, num_answers=1, image=images)
    questions = load_questions(str(world.dataset_path), image_root=str(tmp_path / "images"))
    (tmp_path / "images/1.png").unlink()
    with scratch_folder(tmp_path / "work", "test") as scratch:
        pairs = kept_pairs(["q000", "q001", "q002"], each=1)
        written = write_dataset(tmp_path / "work", scratch, pairs, questions, split_units(3, 2), 0)
    # A row whose image has gone since is left out and reported.
    assert (written.rows, written.without_source) == (2, {"q001"})
    assert exports.told("rlaif-v", written).splitlines()[1:] == [
        "  1 left out: the question or its picture can no longer be read",
        """    of idx 'q001': image path "1.png" is not a readable file under image_root""",
    ]
    rows = {row["idx"]: row["image"] for row in dataset_rows(tmp_path / "work")}
    assert rows == {f"q00{n}": {"bytes": picture(n), "path": f"{n}.png"} for n in (0, 2)}


def test_units_without_a_kept_pair_are_not_read(world, tmp_path):
    questions = world.questions()
    read = []
    rows = questions.rows
    questions.rows = lambda unit: read.append(unit) or rows(unit)
    with scratch_folder(tmp_path, "test") as scratch:
        write_dataset(tmp_path, scratch, kept_pairs(["q017", "q018", "q070"]), questions, world.units(), 0)
    assert read == [range(16, 24), range(64, 72)]


def test_pairs_of_an_unknown_idx_are_an_error(world, tmp_path):
    with pytest.raises(RuntimeError, match="idx 'elsewhere'"):
        export(world, tmp_path, kept_pairs(["q001", "elsewhere"]))
    assert not (tmp_path / "dataset").exists()


def test_an_empty_result_is_an_empty_file_and_a_warning(world, tmp_path, caplog):
    assert export(world, tmp_path, []).rows == 0
    table = pq.read_table(tmp_path / "dataset/dpo_dataset.parquet")
    assert (table.num_rows, table.column_names) == (0, ["idx", "question", "chosen", "rejected", "image"])
    assert "loaders refuse" in caplog.text


def test_exports_are_on_the_disk_before_they_have_their_names(tmp_path, monkeypatch):
    folder, output = tmp_path / "scratch/trl", tmp_path / "output"
    for new in (folder, output):
        new.mkdir(parents=True)
    (folder / "train.parquet").write_bytes(b"rows")
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    exports.move_all({"trl": folder}, output)
    assert synced == [str(path) for path in (folder / "train.parquet", folder, output)]


def test_a_long_random_export_is_the_same_whatever_the_units(tmp_path):
    draw = random.Random(1)
    images = [{"bytes": draw.randbytes(draw.randrange(1, 3000)), "path": None} for _ in range(150)]
    world = make_world(tmp_path / "world", num_questions=150, num_answers=1, image=images)
    pairs = [pair for pair in kept_pairs(world.questions().idx) if draw.random() < 0.6]
    digests = set()
    for unit_size in (1, 13, 500):
        world.unit_size = unit_size
        export(world, tmp_path / "work", pairs)
        digests.add(digest(tmp_path / "work/dataset"))
    assert len(digests) == 1
