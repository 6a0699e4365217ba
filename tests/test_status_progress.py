"""What is read of a run, look after look: units, pace, ranks, warnings; and the JSON that programs get of it."""

import io
import json
import logging
import os
import re
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from rich.console import Console
from watched_run import FAR, GONE, ME, STAGES, busy_run, claim, finish, log, make_run, started, unit_line, warn

from data_engine.commands import status
from data_engine.job import worker
from data_engine.job.warning_log import MOST_WARNINGS, logged_warnings
from data_engine.store import logs, units
from data_engine.store.units import published
from data_engine.watching import as_json, frame, log_lines
from data_engine.watching.inert import inert
from data_engine.watching.reader import Reader

NOW = 1_700_000_000.0


class Looks:
    """Looks at a work_dir, at times that the test says."""

    def __init__(self, work_dir):
        self.work_dir, self.reader = work_dir, Reader(work_dir)

    def at(self, seconds: float = 0.0, clock: float | None = None):
        """`seconds` after the first look, when the clock of this machine says so too, or `clock`."""
        run_file = json.loads((self.work_dir / "run.json").read_text())
        return self.reader.look(run_file, NOW + seconds if clock is None else clock, 1000.0 + seconds)


def states(progress) -> dict[int, str]:
    return {rank.rank: rank.state for rank in progress.ranks}


# Ranks.


def test_a_rank_is_told_by_its_claim_its_log_and_its_process(tmp_path):
    make_run(tmp_path, 40, {"sampled_answer": 12})
    processes = {0: ME, 1: GONE, 2: FAR, 3: FAR, 4: ME, 5: FAR, 6: ME, 7: ME, 8: ME}
    for rank, process in processes.items():
        log(tmp_path, process, rank, started(NOW - 500, process, rank))
    claim(tmp_path, ME, 0, "sampled_answer", 12, NOW - 2)
    claim(tmp_path, FAR, 2, "sampled_answer", 13, NOW - 3)
    claim(tmp_path, FAR, 3, "sampled_answer", 14, NOW - 61)
    log(tmp_path, ME, 4, unit_line(NOW - 100))
    for rank, code in ((6, 75), (7, 1), (8, 0)):
        log(tmp_path, ME, rank, {"time": NOW - 90, "rank": rank, "exit_code": code})
    found = Looks(tmp_path).at()
    assert states(found) == {
        0: "working", 1: "dead", 2: "working", 3: "stalled", 4: "waiting", 5: "silent", 6: "stopped", 7: "failed",
        8: "finished",
    }  # fmt: skip
    # Those that need a look come first.
    assert [rank.rank for rank in found.ranks][:4] == [7, 1, 3, 5]
    working = {rank.rank: rank for rank in found.ranks}[2]
    assert (working.host, working.stage, working.units, working.age_s) == ("node7", "sampled_answer", (13,), 3.0)


def test_a_rank_of_a_start_with_another_source_of_reward_is_told_with_its_stage(tmp_path):
    """run.json has the sources of the start that opened it last, here those of a run without a judge."""
    make_run(tmp_path, 40, dict.fromkeys(STAGES, 40))
    log(tmp_path, ME, 0, started(NOW - 500, ME, 0))
    touched = claim(tmp_path, ME, 0, "yesno", 3, NOW - 2)
    claim(tmp_path, ME, 0, "pairing", 0, NOW - 2)
    looks = Looks(tmp_path)
    found = looks.at()
    assert [(stage.name, stage.done) for stage in found.stages] == [*((name, 40) for name in STAGES), ("yesno", 0)]
    assert [(rank.state, rank.stage, rank.units) for rank in found.ranks] == [("working", "yesno", (3,))]
    assert found.pairs == "waiting"
    touched.unlink()
    assert [stage.name for stage in looks.at().stages] == list(STAGES)


def test_a_rank_of_which_a_touch_was_seen_lives_although_its_clock_is_far_behind(tmp_path):
    make_run(tmp_path, 40, {"sampled_answer": 12})
    log(tmp_path, FAR, 0, started(NOW - 9000, FAR, 0))
    path = claim(tmp_path, FAR, 0, "sampled_answer", 12, NOW - 3600)
    looks = Looks(tmp_path)
    assert states(looks.at(0)) == {0: "stalled"}
    os.utime(path, (NOW - 3595, NOW - 3595))
    assert states(looks.at(5)) == {0: "working"}
    # Its last touch was seen at second 5.
    assert states(looks.at(60)) == {0: "working"}
    assert states(looks.at(66)) == {0: "stalled"}


def test_a_clock_that_is_set_does_not_change_a_rank(tmp_path):
    make_run(tmp_path, 40, {"sampled_answer": 12})
    claim(tmp_path, FAR, 0, "sampled_answer", 12, NOW - 2)
    looks = Looks(tmp_path)
    assert states(looks.at(0)) == {0: "working"}
    assert states(looks.at(1, clock=NOW + 7200)) == {0: "working"}


def test_what_is_left_of_an_earlier_start_is_not_shown(tmp_path):
    make_run(tmp_path, 40, {"sampled_answer": 12})
    old, new = replace(GONE, pid=GONE.pid + 1), ME
    for rank in (0, 1):
        log(tmp_path, old, rank, started(NOW - 900, old, rank), unit_line(NOW - 800))
    log(tmp_path, new, 0, started(NOW - 100, new, 0), unit_line(NOW - 1))
    assert states(Looks(tmp_path).at()) == {0: "waiting"}


def test_a_rank_that_failed_before_the_first_line_of_another_is_shown(tmp_path):
    """Both begin at NOW - 110, after an earlier start; the other one takes 10 s to import its libraries."""
    make_run(tmp_path, 40, {"sampled_answer": 12})
    for rank, process in ((0, replace(GONE, pid=GONE.pid + 1)), (1, replace(GONE, pid=GONE.pid + 2))):
        log(tmp_path, process, rank, started(NOW - 900, process, rank, age_s=10), {"time": NOW - 300, "exit_code": 75})
    log(tmp_path, GONE, 0, started(NOW - 106, GONE, 0, age_s=4), {"time": NOW - 105, "exit_code": 1})
    log(tmp_path, ME, 1, started(NOW - 100, ME, 1, age_s=10), unit_line(NOW - 70))
    found = Looks(tmp_path).at()
    assert [(rank.rank, rank.pid, rank.state) for rank in found.ranks] == [
        (0, GONE.pid, "failed"),
        (1, ME.pid, "waiting"),
    ]
    # The next start has one rank.
    again = replace(ME, pid=ME.pid + 1)
    log(tmp_path, ME, 1, {"time": NOW - 60, "exit_code": 75})
    log(tmp_path, again, 0, started(NOW - 40, again, 0, age_s=10), {"time": NOW - 30, "exit_code": 0})
    assert [(rank.rank, rank.state) for rank in Looks(tmp_path).at().ranks] == [(0, "finished")]


def test_the_end_of_one_shard_is_shown_while_another_goes_on(tmp_path):
    make_run(tmp_path, 40, {"sampled_answer": 12})
    log(tmp_path, GONE, 0, started(NOW - 900, GONE, 0, (0, 2)), {"time": NOW - 800, "exit_code": 1})
    log(tmp_path, ME, 0, started(NOW - 100, ME, 0, (1, 2)), unit_line(NOW - 1))
    assert [(rank.shard, rank.state) for rank in Looks(tmp_path).at().ranks] == [
        ((0, 2), "failed"),
        ((1, 2), "waiting"),
    ]


def test_rank_0_pairs_once_all_units_are_there(tmp_path):
    make_run(tmp_path, 1, dict.fromkeys(STAGES, 1))
    log(tmp_path, ME, 0, started(NOW - 100, ME, 0), unit_line(NOW - 50))
    log(tmp_path, FAR, 1, started(NOW - 100, FAR, 1), unit_line(NOW - 50), {"time": NOW - 40, "exit_code": 0})
    found = Looks(tmp_path).at()
    assert states(found) == {0: "pairing", 1: "finished"}
    assert (found.pairs, found.is_done) == ("ready", False)


# Pace.


def test_a_rank_that_died_counts_no_longer_for_the_pace(tmp_path):
    make_run(tmp_path, 100, {"sampled_answer": 4})
    log(tmp_path, GONE, 0, started(NOW - 50, GONE, 0), unit_line(NOW - 15), unit_line(NOW - 5))
    log(tmp_path, ME, 1, started(NOW - 50, ME, 1), unit_line(NOW - 12), unit_line(NOW - 2))
    stage = Looks(tmp_path).at().stages[0]
    # 96 units of 10 s on one rank.
    assert (stage.num_ranks, stage.pace.seconds_left(stage.left)) == (1, 960.0)


def test_a_rank_within_a_long_unit_keeps_its_stage_from_standing_still(tmp_path):
    make_run(tmp_path, 100, {"sampled_answer": 4})
    log(tmp_path, ME, 0, started(NOW - 900, ME, 0), unit_line(NOW - 600))
    assert Looks(tmp_path).at().stages[0].num_ranks == 0
    claim(tmp_path, ME, 0, "sampled_answer", 4, NOW - 1)
    assert Looks(tmp_path).at().stages[0].num_ranks == 1


def test_the_whole_time_left_shares_what_is_left_among_all_ranks_at_work(tmp_path):
    make_run(tmp_path, 10, {"sampled_answer": 10, "instruct_logps": 4})
    log(tmp_path, ME, 0, started(NOW - 90, ME, 0), unit_line(NOW - 3, "instruct_logps", 2.0))
    log(tmp_path, FAR, 1, started(NOW - 90, FAR, 1), unit_line(NOW - 3, "instruct_logps", 2.0))
    looks = Looks(tmp_path)
    # 6 units of 2 s on two ranks, and 10 of a stage of which nothing is known.
    assert (looks.at().seconds_left, looks.at().seconds_left_at_least) == (None, 6.0)
    log(tmp_path, ME, 0, unit_line(NOW - 1, "reward_logps", 1.0))
    assert looks.at().seconds_left == 11.0


# Looking again.


def test_later_looks_read_on_and_find_what_a_first_look_finds(tmp_path):
    make_run(tmp_path, 1000, {"sampled_answer": 1})
    looks, path = Looks(tmp_path), log(tmp_path, ME, 0, started(NOW - 900, ME, 0))
    for second in range(0, 420, 7):
        for unit in range(7):
            log(tmp_path, ME, 0, unit_line(NOW + second + unit, seconds=1.0 + unit))
        (tmp_path / f"sampled_answer/unit-{second + 1:05d}.parquet").touch()
        with open(path, "a") as file:
            # Half a line is read once it is whole.
            file.write('{"time": 1700000000.0, "level": "warn')
        assert looks.at(second + 7).warnings[second // 7 :] == ()
        with open(path, "a") as file:
            file.write(f'ing", "message": "warning {second}"}}\n')
        later, first = looks.at(second + 7), Looks(tmp_path).at(second + 7)
        assert replace(later, ranks=(), warnings=()) == replace(first, ranks=(), warnings=())
        assert [one.message for one in later.warnings] == [one.message for one in first.warnings]
    assert later.stages[0].done == 61
    assert later.num_warnings == 60
    assert [one.message for one in later.warnings] == [f"warning {second}" for second in range(70, 420, 7)]


def test_only_what_has_changed_is_read_again(tmp_path, monkeypatch):
    listed, opened = [], []
    monkeypatch.setattr(units, "published", lambda _, stage: listed.append(stage) or published(tmp_path, stage))

    def opening(path, mode):
        opened.append(os.path.basename(path)[:6])
        return open(path, mode)

    monkeypatch.setattr(log_lines, "open", opening, raising=False)
    looks = Looks(busy_run(tmp_path))
    looks.at()
    assert (listed, opened) == (list(STAGES), ["rank-0", "rank-1", "rank-2"])
    looks.at(1)
    (tmp_path / "instruct_logps/unit-00010.parquet").touch()
    log(tmp_path, FAR, 2, unit_line(NOW))
    assert looks.at(2).stages[1].done == 11
    assert (listed[3:], opened[3:]) == (["instruct_logps"], ["rank-2"])
    # A date may lie: every folder is listed again now and then.
    looks.at(100)
    assert listed[4:] == list(STAGES)


@pytest.mark.parametrize(
    "line",
    [
        '{"time": NaN, "stage": "sampled_answer", "seconds": 1, "answers": 1}',
        '{"time": 1, "stage": "sampled_answer", "seconds": Infinity, "answers": 1}',
        '{"time": 1, "stage": "sampled_answer", "seconds": 1, "answers": NaN}',
        '{"time": 1e30, "level": "warning", "message": "late"}',
        '{"time": 1, "level": "warning", "message": ' + "[" * 99999,
        '{"time": 1, "process": {"pid": -1}}',
        '{"time": 1, "exit_code": Infinity}',
        '{"time": {}, "exit_code": 1}',
        "\x00\x1b[2J",
    ],
)
def test_a_line_that_is_none_changes_nothing(tmp_path, line):
    make_run(tmp_path, 10, {"sampled_answer": 4})
    path = log(tmp_path, ME, 0, started(NOW - 50, ME, 0), unit_line(NOW - 1))
    before = Looks(tmp_path).at()
    with open(path, "a") as file:
        file.write(f"{line}\n")
    assert Looks(tmp_path).at() == before


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


def test_text_of_others_cannot_steer_a_terminal():
    assert inert("a\r\n b\x1b[31m\x7f\x9b") == r"a b\x1b[31m\x7f\x9b"
    assert inert("\u202ee\u200d\U000e0041\ud800") == r"\u202ee\u200d\U000e0041\ud800"
    assert inert("e" + "\u0301" * 40) == "e\u0301\u0301"
    assert inert("ä 画", "ascii") == r"\xe4 \u753b"


# What ranks log.


def test_warnings_and_the_error_that_ends_a_rank_are_logged_and_bounded(tmp_path):
    program = logging.getLogger("data_engine")

    def work() -> None:
        program.info("no warning")
        for number in range(MOST_WARNINGS + 5):
            logging.getLogger("data_engine.job").warning("number %d %s", number, "x" * 1000)
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"), logged_warnings(tmp_path, 2):
        work()
    program.warning("after the end")
    make_run(tmp_path, 1, {})
    lines = [json.loads(line) for path in (tmp_path / "logs").iterdir() for line in path.read_text().splitlines()]
    told = [(line["level"], line["message"]) for line in lines]
    assert len(told) == MOST_WARNINGS + 1
    assert told[0] == ("warning", ("number 0 " + "x" * 1000)[: logs.MESSAGE_LENGTH])
    assert told[-2] == ("warning", "more warnings are on the standard error of the rank alone")
    assert told[-1] == ("error", "ValueError: a bug")


def test_a_run_logs_its_start_its_warnings_and_its_end(config, tmp_path, monkeypatch):
    """A run that is refused, after it has warned: no model is loaded."""
    monkeypatch.setattr(worker.Plan, "of", lambda *_: worker.log.warning("look out") or [][0])
    with pytest.raises(IndexError):
        worker.run(config(tmp_path / "none.parquet", num_shards=4, shard_index=1))
    make_run(tmp_path / "work", 1, {})
    progress = Reader(tmp_path / "work").look(
        {"units": dict.fromkeys(("num_questions", "unit_size", "num_units"), 1)}, time.time(), 0.0
    )
    [rank] = progress.ranks
    assert (rank.state, rank.shard, rank.pid, rank.host) == ("failed", (1, 4), os.getpid(), ME.host)
    assert [one.message for one in progress.warnings] == ["look out", "IndexError: list index out of range"]
