"""Where the time of a run went, from its logs and its units alone."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from watched_run import write_log

from data_engine.job import last_step
from data_engine.reporting import quarantine
from data_engine.reporting.timings import Summary
from data_engine.store import logs, units
from data_engine.store.units import UnitResult


def line(stage: str, unit: int, seconds: float, answers: int, **more) -> dict:
    return {"time": 1.0, "stage": stage, "unit": unit, "seconds": seconds, "answers": answers, **more}


def leave_out(work_dir: Path, unit: int, stage: str, *rows: tuple) -> None:
    table = pa.table({"idx": pa.array([], pa.string())})
    units.publish_result(work_dir, stage, unit, UnitResult(table, list(rows)), {})


@pytest.fixture
def work_dir(tmp_path):
    write_log(
        tmp_path, 0,
        line("sampled_answer", 0, 90.0, 80, peak_gb=3.2), line("sampled_answer", 1, 30.0, 80, out_of_memory=2),
        line("instruct_logps", 0, 0.0, 0), '{"time": 1',
    )  # fmt: skip
    # Unit 1 was also computed by the other rank.
    write_log(tmp_path, 1, line("sampled_answer", 2, 60.0, 20, peak_gb=14.96), line("sampled_answer", 1, 20.0, 80))
    logs.note(tmp_path, 0, "loading instruct", 40.0)
    logs.note(tmp_path, 1, "loading instruct", 50.0)
    logs.note(tmp_path, 0, "pairing", 7000.0)
    return tmp_path


def test_times_are_summed_over_ranks_by_stage_and_event(work_dir):
    # 200 s and 260 answers of two ranks: 1.3 answers a second and rank.
    assert Summary.read(work_dir).times()[1:] == [
        ("sampled_answer", "3", "3 min", "260", "1.3", "15.0", "2", "1"),
        ("instruct_logps", "1", "0 s", "0", "", "", "0", "0"),
        ("loading instruct", "2", "2 min", "", "", "", "", ""),
        ("pairing", "1", "1 h 57 min", "", "", "", "", ""),
    ]


def test_the_table_of_a_run_without_trouble_fits_into_80_columns(tmp_path):
    """99,999,990 answers in a week."""
    write_log(tmp_path, 0, *(line(stage, 0, 6e5, 99_999_990, peak_gb=70.25) for stage in ("sampled_answer", "rule")))
    logs.note(tmp_path, 0, "loading instruct", 40.0)
    heading, stage, *_ = Summary.read(tmp_path).times()
    assert heading == ("", "done", "time, all ranks", "answers", "answers/s a rank", "peak GB")
    assert stage == ("sampled_answer", "1", "6 d 23 h", "99,999,990", "166.7", "70.2")
    assert max(map(len, Summary.read(tmp_path).table().splitlines())) <= 80


def test_quarantined_rows_are_counted_once_by_stage_and_kind_of_reason(work_dir):
    big = "source image {} x 7 has {}.5 megapixels"
    leave_out(work_dir, 0, "sampled_answer", ("a", big.format(9, 70)), ("b", big.format(8, 65)), ("c", "no\nimage"))
    leave_out(work_dir, 0, "instruct_logps", ("d", "not finite"))
    leave_out(work_dir, 0, "reward_logps", ("d", "not finite"), ("e", 'path "x.png" is gone'))
    # idx are unique over the dataset: another unit, another row.
    leave_out(work_dir, 3, "sampled_answer", ("f", "no image"))
    assert sorted(Summary.read(work_dir).left_out()[1:]) == sorted(
        [
            ("sampled_answer", "2", "a", "source image … x … has … megapixels"),
            ("sampled_answer", "2", "c", "no image"),
            ("instruct_logps", "1", "d", "not finite"),
            ("reward_logps", "1", "e", "path … is gone"),
        ]
    )


def test_the_most_frequent_reasons_come_first_and_the_rest_is_counted(work_dir):
    rows = [(f"{letter}{number}", letter * 3) for letter in "abcdefghijklmno" for number in range(ord(letter) - 96)]
    leave_out(work_dir, 0, "sampled_answer", *rows)
    shown = Summary.read(work_dir).left_out()
    assert shown[1] == ("sampled_answer", "15", "o0", "ooo")
    assert shown[12] == ("sampled_answer", "4", "d0", "ddd")
    assert shown[13] == ("", str(3 + 2 + 1), "", "other reasons")


def test_each_row_is_in_a_file_with_its_whole_reason_until_none_is_left_out(work_dir):
    assert quarantine.write(work_dir, quarantine.kinds(work_dir)) is None
    leave_out(work_dir, 0, "sampled_answer", ("a", f'path "{"x" * 300}.png" is gone'), (7, "große\nZeile 猫"))
    leave_out(work_dir, 0, "reward_logps", ("a", "not finite"), ("b", "not finite"))
    path = work_dir / "logs/quarantine.jsonl"
    assert quarantine.write(work_dir, quarantine.kinds(work_dir)) == path
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [
        {
            "idx": "a",
            "stage": "sampled_answer",
            "reason": f'path "{"x" * 300}.png" is gone',
            "missing": False,
            "unit": 0,
        },
        {"idx": 7, "stage": "sampled_answer", "reason": "große\nZeile 猫", "missing": False, "unit": 0},
        {"idx": "b", "stage": "reward_logps", "reason": "not finite", "missing": False, "unit": 0},
    ]
    # The times of a run are read from the other files of this folder.
    assert [row[0] for row in Summary.read(work_dir).times()[1:3]] == ["sampled_answer", "instruct_logps"]
    for stage in ("sampled_answer", "reward_logps"):
        (work_dir / stage / "unit-00000.parquet").unlink()
    assert quarantine.write(work_dir, quarantine.kinds(work_dir)) is None
    assert not path.exists()


def test_a_list_of_these_rows_that_cannot_be_written_is_no_failure(work_dir, caplog, capsys):
    leave_out(work_dir, 0, "sampled_answer", ("a", "no image"))
    (work_dir / "logs/quarantine.jsonl/in_its_place").mkdir(parents=True)
    last_step.summarise(work_dir)
    assert "no image" in capsys.readouterr().out
    assert f'"{work_dir}/logs/quarantine.jsonl" cannot be written: Is a directory' in caplog.text


def test_the_table_is_aligned_and_leaves_out_what_there_is_none_of(work_dir):
    lines = Summary.read(work_dir).table().splitlines()
    assert len(lines) == 5
    assert len({line.rindex("answers/s a rank") for line in lines[:1]}) == 1
    assert [line.index(text) for line, text in zip(lines[1:], ("sam", "ins", "load", "pair"), strict=True)] == [0] * 4
    leave_out(work_dir, 0, "sampled_answer", ("a", "x"))
    assert (
        Summary.read(work_dir)
        .table()
        .endswith("\n\nquarantined in  rows  first idx  reason\nsampled_answer     1          a  x")
    )


def test_a_run_without_logs_has_only_a_heading(tmp_path):
    assert len(Summary.read(tmp_path).table().splitlines()) == 1
