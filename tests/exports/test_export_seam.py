"""An export is one file and one line: the one of docs/adding.md writes a small world's pairs."""

import importlib
import json
import shutil

import contributing
import pyarrow.parquet as pq
import pytest
from export_world import QUESTIONS, expected_answers, expected_best, expected_pairs, in_order, write_export
from stage2_world import digest, make_world, pairs_rows, picture

from data_engine import exports, stages
from data_engine.errors import TakenOverError
from data_engine.exports.base import ExportSource
from data_engine.store.folders import scratch_folder
from data_engine.store.units import read_unit
from data_engine.tables import load


@pytest.fixture
def lines(tmp_path, monkeypatch) -> str:
    (tmp_path / "added").mkdir()
    return contributing.add("An export", "data_engine.exports", "EXPORTS", monkeypatch, tmp_path / "added")


@pytest.fixture
def world(tmp_path):
    return make_world(tmp_path / "world", num_questions=20)


def export(world, work_dir, pairs, name):
    kept = ExportSource(pairs, world.questions(), world.units(), work_dir, seed=0)
    with scratch_folder(work_dir, "test") as scratch:
        return exports.export(name, kept, work_dir / "exports" / name, scratch)


def test_an_export_is_one_file_and_one_line(lines, world, tmp_path):
    work_dir = tmp_path / "work"
    world.publish(work_dir)
    world.pair(work_dir)
    kept = [pair for pair in pairs_rows(work_dir) if pair["status"] == "kept"]
    assert len({pair["idx"] for pair in kept}) > 8
    written = export(world, work_dir, kept, lines)
    assert (written.rows, written.without_source) == (len(kept), frozenset())
    folder = work_dir / "exports" / lines
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    ids = {
        (row["idx"], row["sample_index"]): row["token_ids"]
        for unit in range(len(world.units()))
        for row in read_unit(work_dir, stages.SAMPLING.name, unit).table.to_pylist()
    }
    for row, pair in zip(rows, kept, strict=True):
        number = int(pair["idx"][1:])
        assert (row["idx"], row["question"]) == (pair["idx"], f"What is in picture {number}?")
        for side in ("chosen", "rejected"):
            assert row[side] == [pair[side], ids[pair["idx"], pair[f"{side}_index"]]]
        assert row["margin"] == pair["chosen_sum"] - pair["rejected_sum"]
        assert (folder / row["image"]).read_bytes() == picture(number)


def test_an_export_that_fails_leaves_the_one_before_as_it_was(lines, world, tmp_path, monkeypatch):
    work_dir = tmp_path / "work"
    world.publish(work_dir)
    world.pair(work_dir)
    kept = [pair for pair in pairs_rows(work_dir) if pair["status"] == "kept"]
    export(world, work_dir, kept, lines)
    before = (work_dir / "exports" / lines / "pairs.jsonl").read_bytes()
    unknown = {**kept[0], "idx": "elsewhere"}
    with pytest.raises(RuntimeError, match="idx 'elsewhere'"):
        export(world, work_dir, [*kept[:3], unknown], lines)
    assert (work_dir / "exports" / lines / "pairs.jsonl").read_bytes() == before
    assert [path.name for path in (work_dir / "exports").iterdir()] == [lines]


@pytest.mark.parametrize("name", exports.EXPORTS)
def test_every_export_of_the_table_exists_and_says_what_it_writes(name):
    function = load(exports.EXPORTS[name])
    assert function.__doc__
    assert importlib.import_module(function.__module__).__doc__
    assert exports.DEFAULT in exports.EXPORTS


@pytest.mark.parametrize("name", ["rlaif-v", "trl", "trl-kto", "llama-factory", "llama-factory-kto", "ms-swift"])
def test_parquet_files_have_a_page_index_by_which_the_hubs_viewer_reads_parts_of_them(name, tmp_path):
    [path] = write_export(tmp_path, name)[0].glob("*.parquet")
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    columns = [group.column(at) for group in groups for at in range(group.num_columns)]
    # Of long texts there is no index of values, but that of places.
    assert columns
    assert all(column.has_offset_index for column in columns)


# Without the one that needs a tokenizer: it writes as the first one does.
@pytest.mark.parametrize("name", [name for name in exports.EXPORTS if name != "rlaif-v-logps"])
def test_an_export_whose_scratch_folder_was_taken_away_is_not_published(name, tmp_path, monkeypatch):
    """By another start, while this process was stopped: what it writes afterwards may not create the folder anew."""
    with_questions = ExportSource.with_questions

    def taken_away(source, rows):
        for number, group in enumerate(with_questions(source, rows)):
            if number == 1:
                [folder] = tmp_path.glob(".test.*")
                shutil.rmtree(folder)
            yield group

    monkeypatch.setattr(ExportSource, "with_questions", taken_away)
    with pytest.raises(TakenOverError, match="another start of"):
        write_export(tmp_path, name)
    assert not (tmp_path / name).exists()
    assert not list(tmp_path.glob(".test.*"))


@pytest.mark.parametrize(
    ("kind", "expected", "each"), [("", expected_pairs, 3), ("-kto", expected_answers, 4), ("-sft", expected_best, 1)]
)
@pytest.mark.parametrize("trainer", ["llama-factory", "ms-swift"])
def test_every_conversation_is_there_with_its_answers_and_pictures(trainer, kind, expected, each, tmp_path):
    """By a reader that shares no code with the engine."""
    folder, written = write_export(tmp_path, trainer + kind)
    reader = importlib.import_module(f"export_readers.{f'{trainer}{kind}'.replace('-', '_')}")
    assert in_order(reader.read(folder)) == in_order(expected())
    assert (written.rows, written.left_out) == (each * len(QUESTIONS), {})


# rlaif-v-logps and scored need what a run has computed.
@pytest.mark.parametrize("name", [name for name in exports.EXPORTS if name not in ("rlaif-v-logps", "scored")])
def test_the_same_run_gives_the_same_bytes_whatever_the_units(name, tmp_path):
    digests = {
        digest(write_export(tmp_path / str(number), name, unit_size=unit_size)[0])
        for number, unit_size in enumerate([2, 2, 1, 9])
    }
    assert len(digests) == 1
