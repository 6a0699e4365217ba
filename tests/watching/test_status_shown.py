"""What a look at a run is shown as: JSON for programs, frames of any size for screens, text that steers no terminal."""

import io
import json
import re
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from rich.console import Console
from watched_run import FAR, GONE, ME, NOW, Looks, busy_run, claim, finish, log, make_run, started, unit_line, warn

from data_engine.commands import status
from data_engine.store import logs
from data_engine.watching import as_json, frame
from data_engine.watching.inert import inert
from data_engine.watching.reader import Reader

# JSON.


def test_json_has_every_key_with_numbers_as_numbers_and_null_for_what_is_unknown(tmp_path):
    make_run(tmp_path, 40, {"sampled_answer": 40, "instruct_logps": 10})
    log(tmp_path, FAR, 3, started(NOW - 900, FAR, 3, (1, 4)), unit_line(NOW - 20, "instruct_logps"))
    log(tmp_path, FAR, 3, {"time": NOW - 30, "level": "warning", "message": "a\n\x1b[2Jb"})
    claim(tmp_path, FAR, 3, "instruct_logps", 10, NOW - 5)
    text = as_json.as_json(Looks(tmp_path).at())
    assert text.isascii()
    assert text.isprintable()
    done = {"answers_per_s": None, "seconds_left": 0.0, "ranks": 0}
    assert json.loads(text) == {
        "work_dir": str(tmp_path),
        "time": "2023-11-14T22:13:20+00:00",
        "questions": 320,
        "unit_size": 8,
        "units": 40,
        "stages": [
            {"name": "sampled_answer", "done": 40, "total": 40} | done,
            # 80 answers in 10 s; 30 units.
            {"name": "instruct_logps", "done": 10, "total": 40, "answers_per_s": 8.0, "seconds_left": 300.0}
            | {"ranks": 1},
            {"name": "reward_logps", "done": 0, "total": 40} | done | {"seconds_left": None},
        ],
        "seconds_left": None,
        "seconds_left_at_least": 300.0,
        "ranks": [
            {
                "rank": 3, "host": "node7", "pid": 4242, "shard": {"index": 1, "of": 4}, "state": "working",
                "stage": "instruct_logps", "units": [10], "seconds_since_sign": 5.0, "exit_code": None,
                "error": None, "log": f"{tmp_path}/logs/{logs.log_name(FAR, 3)}",
            }
        ],
        "warnings": [
            {"time": "2023-11-14T22:12:50+00:00", "rank": 3, "level": "warning", "message": "a\n\x1b[2Jb"}
        ],
        "num_warnings": 1,
        "pairs": {"state": "waiting", "written": False},
        "done": False,
    }  # fmt: skip


def test_json_is_one_line_a_look_until_the_run_is_done(tmp_path):
    work_dir = make_run(tmp_path, 2, {"sampled_answer": 1})
    command = [sys.executable, "-m", "data_engine", "status", "--json", str(work_dir), "--watch", "0.05"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert json.loads(process.stdout.readline())["stages"][0]["done"] == 1
        finish(work_dir)
        *_, last = map(json.loads, process.stdout)
        assert (last["done"], last["seconds_left"], last["pairs"]) == (True, 0.0, {"state": "written", "written": True})
        assert process.wait(timeout=60) == 0


def test_json_once_is_one_object(tmp_path, capsys):
    assert status.main(["--json", str(busy_run(tmp_path))]) == 0
    assert json.loads(capsys.readouterr().out)["units"] == 40


def test_a_watch_ends_when_nobody_reads_it_any_more(tmp_path):
    work_dir = make_run(tmp_path, 2, {"sampled_answer": 1})
    command = [sys.executable, "-m", "data_engine", "status", "--json", str(work_dir), "--watch", "0.05"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=60) == 0


def test_status_starts_without_libraries_that_take_time():
    code = "import sys, data_engine.commands.status; print(*{'rich', 'torch', 'matplotlib'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "\n"


# The plain table.


def troubles(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("rank ")]


def test_the_plain_table_names_each_rank_that_needs_a_look_with_its_last_error_and_its_log(tmp_path, capsys):
    make_run(tmp_path, 40, {"sampled_answer": 40, "instruct_logps": 10})
    now = time.time()
    for rank, process in enumerate((ME, GONE, FAR)):
        log(tmp_path, process, rank, started(now - 900, process, rank), unit_line(now - 300, "instruct_logps"))
    claim(tmp_path, ME, 0, "instruct_logps", 10, now)
    for level, message in (("error", "first"), ("error", "out of\nmemory \x1b[2J"), ("warning", "a row is bad")):
        path = log(tmp_path, GONE, 1, {"time": now - 290, "level": level, "message": message})
    assert status.main([str(tmp_path)]) == 0
    assert troubles(capsys.readouterr().out) == [
        f"rank 1 on {GONE.host}: dead, last sign 5 min ago; last error: out of memory \\x1b[2J; log: {path}",
        "rank 2 on node7: silent, last sign 5 min ago; no error is logged; "
        f"log: {tmp_path}/logs/{logs.log_name(FAR, 2)}",
    ]


def test_the_plain_table_names_a_rank_that_works_on_after_an_error_and_one_that_an_error_ended(tmp_path, capsys):
    make_run(tmp_path, 4, {"sampled_answer": 1})
    now = time.time()
    for rank, process in enumerate((ME, FAR)):
        log(tmp_path, process, rank, started(now - 9, process, rank, (1, 4)))
        log(tmp_path, process, rank, {"time": now - 5, "level": "error", "message": f"error of {rank}"})
    claim(tmp_path, ME, 0, "sampled_answer", 1, now)
    log(tmp_path, FAR, 1, {"time": now - 5, "exit_code": 1})
    assert status.main([str(tmp_path)]) == 0
    first, second = troubles(capsys.readouterr().out)
    assert first.startswith("rank 1:1 on node7: failed, last sign 5 s ago; last error: error of 1; log: ")
    assert second.startswith(f"rank 1:0 on {ME.host}: working, last sign 0 s ago; last error: error of 0; log: ")
    ranks = json.loads(as_json.as_json(Looks(tmp_path).at(clock=now)))["ranks"]
    assert [rank["error"] for rank in ranks] == ["error of 1", "error of 0"]


def test_the_plain_table_names_20_ranks_and_counts_the_others(tmp_path, capsys):
    make_run(tmp_path, 4, {"sampled_answer": 1})
    now = time.time()
    for rank in range(23):
        log(tmp_path, GONE, rank, started(now - 9, GONE, rank))
    assert status.main([str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert len(troubles(told)) == 20
    assert told.endswith("\n3 more ranks in trouble: --json has all of them\n")


def test_the_plain_table_of_a_run_that_goes_well_names_no_rank(tmp_path, capsys):
    make_run(tmp_path, 4, {"sampled_answer": 1})
    log(tmp_path, ME, 0, started(time.time() - 9, ME, 0), {"time": time.time(), "level": "warning", "message": "a"})
    assert status.main([str(tmp_path)]) == 0
    assert not troubles(capsys.readouterr().out)


def test_an_error_of_an_earlier_process_of_the_same_number_is_not_the_later_one_s(tmp_path, capsys):
    make_run(tmp_path, 4, {"sampled_answer": 1})
    now = time.time()
    log(tmp_path, GONE, 0, started(now - 90, GONE, 0), {"time": now - 80, "level": "error", "message": "of old"})
    log(tmp_path, GONE, 0, started(now - 9, GONE, 0))
    assert status.main([str(tmp_path)]) == 0
    assert "no error is logged" in troubles(capsys.readouterr().out)[0]


# Frames.


def shown(progress, width: int, height: int, encoding: str = "utf-8") -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    lines = frame.frame(progress, console, frame.Paper(width, encoding), height, hint="q leaves")
    return ["".join(segment.text for segment in line) for line in lines]


def test_on_a_narrow_screen_names_are_cut_and_numbers_are_whole_or_not_there(tmp_path):
    run_file = json.loads((busy_run(tmp_path) / "run.json").read_text())
    lines = [line for line in shown(Reader(tmp_path).look(run_file, time.time(), 0.0), 20, 24) if line.strip()]
    assert lines[1].rstrip() == "41 % done, > 5 min"
    assert [line.split() for line in lines[2:6]] == [
        ["stage", "done"], ["sampled_answe", "100", "%"], ["instruct_logp", "25", "%"], ["reward_logps", "0", "%"],
    ]  # fmt: skip
    ranks = [line.split() for line in lines if line.startswith("  ")]
    assert ranks == [["1", "dead"], ["2", "stalled"], ["0", "working"]]


def test_the_second_line_says_how_far_the_run_is_and_what_it_waits_for(tmp_path):
    make_run(tmp_path, 100, {"sampled_answer": 100, "instruct_logps": 100, "reward_logps": 4})
    path = log(tmp_path, ME, 0, started(NOW - 100, ME, 0), unit_line(NOW - 20, "reward_logps"))
    # 96 units of 10 s on one rank.
    assert summary(tmp_path) == "68 % done, 16 min left"
    path.unlink()
    log(tmp_path, GONE, 0, started(NOW - 7200, GONE, 0), unit_line(NOW - 3600, "reward_logps"))
    lines = shown(Looks(tmp_path).at(), 80, 24)
    assert lines[1].startswith("68 % done, nobody at work ")
    assert [line.rstrip().endswith("stands still") for line in lines if line.startswith("reward_logps")] == [True]


def test_the_second_line_says_whether_somebody_makes_the_pairs(tmp_path):
    make_run(tmp_path, 1, {"sampled_answer": 1, "instruct_logps": 1, "reward_logps": 1})
    assert summary(tmp_path) == "all units done; pairs not written"
    log(tmp_path, ME, 0, started(NOW - 100, ME, 0), unit_line(NOW - 50))
    assert summary(tmp_path) == "all units done; pairs are being made"
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset/dpo_dataset.parquet").touch()
    log(tmp_path, ME, 0, {"time": NOW - 40, "exit_code": 0})
    assert summary(tmp_path) == "finished: the pairs are written"


def summary(work_dir) -> str:
    """What the second line begins with."""
    return shown(Looks(work_dir).at(), 80, 24)[1].partition("   ")[0]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("height", [1, 2, 3, 5, 10, 24, 60])
@pytest.mark.parametrize("width", [20, 40, 57, 80, 120, 250])
def test_a_frame_never_exceeds_the_screen_and_fills_its_lines(tmp_path, width, height, encoding):
    busy_run(tmp_path / ("very long name" * 10))
    work_dir = tmp_path / ("very long name" * 10)
    for text in ("画像が壊れています" * 20, "\x1b[2J" * 50, "e\u0301\u0301\u0301\u0301" * 30, "", "-"):
        warn(work_dir, text)
    progress = Reader(work_dir).look(json.loads((work_dir / "run.json").read_text()), time.time(), 0.0)
    lines = shown(progress, width, height, encoding)
    assert 0 < len(lines) <= height
    assert {Console(width=width).measure(line).maximum if line.strip() else width for line in lines} == {width}
    assert all(line.isprintable() and (encoding == "utf-8" or line.isascii()) for line in lines)
    assert any("41 % done" in line for line in lines)


def test_of_many_ranks_those_that_need_a_look_are_shown(tmp_path):
    make_run(tmp_path, 400, {"sampled_answer": 12})
    for rank in range(64):
        process = replace(GONE, pid=GONE.pid + rank) if rank == 63 else ME
        log(tmp_path, process, rank, started(NOW - 50, process, rank))
        if rank < 63:
            claim(tmp_path, process, rank, "sampled_answer", 12 + rank, NOW - 1)
    lines = shown(Looks(tmp_path).at(), 80, 12)
    assert "ranks: 1 dead, 63 working" in [line.rstrip() for line in lines]
    assert any(re.match(r"  63  dead", line) for line in lines)


def test_of_many_warnings_the_last_ones_are_shown_newest_first(tmp_path):
    make_run(tmp_path, 40, {"sampled_answer": 12})
    for number in range(frame.NUM_WARNINGS + 2):
        log(tmp_path, ME, 0, {"time": NOW + number, "level": "warning", "message": f"warning {number}"})
    told = "\n".join(shown(Looks(tmp_path).at(), 80, 40))
    assert re.findall(r"rank 0: warning (\d)", told) == ["9", "8", "7", "6", "5", "4", "3", "2"]


def test_text_of_others_cannot_steer_a_terminal():
    assert inert("a\r\n b\x1b[31m\x7f\x9b") == r"a b\x1b[31m\x7f\x9b"
    assert inert("\u202ee\u200d\U000e0041\ud800") == r"\u202ee\u200d\U000e0041\ud800"
    assert inert("e" + "\u0301" * 40) == "e\u0301\u0301"
    assert inert("ä 画", "ascii") == r"\xe4 \u753b"
