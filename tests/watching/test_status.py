import itertools
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from watched_run import STAGES, described, make_run, unit_line, write_log

from data_engine.commands import status
from data_engine.commands.work_dir import read_run
from data_engine.duration import duration
from data_engine.errors import IncompleteError, UserError
from data_engine.store import logs

NOW = 1_000_000.0


def row(text: str, stage: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(stage)]
    return line.split()


def test_units_are_counted_by_stage(tmp_path):
    text = described(make_run(tmp_path / "run", 25, {"sampled_answer": 25, "instruct_logps": 10}), NOW)
    assert text.splitlines()[0] == f"{tmp_path}/run: 200 questions in 25 units of 8"
    assert row(text, "sampled_answer") == ["sampled_answer", "25/25", "100", "%"]
    assert row(text, "instruct_logps") == ["instruct_logps", "10/25", "40", "%"]
    assert row(text, "reward_logps") == ["reward_logps", "0/25", "0", "%"]
    assert row(text, "pairs") == ["pairs", "not", "written"]


def test_one_question_of_one_unit_is_told_as_one(tmp_path):
    folder = make_run(tmp_path / "run", 1, {"sampled_answer": 1})
    told = json.loads((folder / "run.json").read_text())
    told["units"]["num_questions"] = 1
    (folder / "run.json").write_text(json.dumps(told))
    assert described(folder, NOW).splitlines()[0] == f"{tmp_path}/run: 1 question in 1 unit of 8"


def test_units_beyond_those_of_the_run_are_not_counted(tmp_path):
    text = described(make_run(tmp_path / "run", 3, {"sampled_answer": 5, "instruct_logps": 2}), NOW)
    assert row(text, "sampled_answer") == ["sampled_answer", "3/3", "100", "%"]
    assert row(text, "instruct_logps") == ["instruct_logps", "2/3", "66", "%"]


def test_a_share_is_rounded_down_so_that_only_a_whole_stage_is_100(tmp_path):
    text = described(make_run(tmp_path, 1000, {"sampled_answer": 999}), NOW)
    assert row(text, "sampled_answer")[1:4] == ["999/1000", "99", "%"]


def test_pace_and_time_left_come_from_the_ranks_logs(tmp_path):
    work_dir = make_run(tmp_path, 100, {"sampled_answer": 4})
    write_log(work_dir, 0, unit_line(NOW - 15), unit_line(NOW - 5))
    write_log(work_dir, 1, unit_line(NOW - 12), unit_line(NOW - 2))
    # 10 s a unit on each of 2 ranks: 96 units take 480 s; 80 answers a unit make 16 a second.
    assert row(described(work_dir, NOW), "sampled_answer")[4:] == ["2", "16.0", "8", "min"]


def test_ranks_of_two_shards_that_share_a_log_count_as_two(tmp_path):
    work_dir = make_run(tmp_path, 100, {"sampled_answer": 4})
    write_log(work_dir, 0, *(unit_line(NOW - ago) for ago in (12, 15, 2, 5)))
    assert row(described(work_dir, NOW), "sampled_answer")[4:] == ["2", "16.0", "8", "min"]


def test_units_one_after_the_other_are_the_work_of_one_rank(tmp_path):
    work_dir = make_run(tmp_path, 100, {"sampled_answer": 3})
    write_log(work_dir, 0, *(unit_line(NOW - ago) for ago in (20, 10, 0)))
    assert row(described(work_dir, NOW), "sampled_answer")[4] == "1"


def test_only_the_stage_of_a_line_sets_its_pace(tmp_path):
    work_dir = make_run(tmp_path, 10, {"sampled_answer": 10, "instruct_logps": 4})
    write_log(work_dir, 0, unit_line(NOW - 500, seconds=99), unit_line(NOW - 1, "instruct_logps", seconds=2, answers=8))
    assert row(described(work_dir, NOW), "instruct_logps")[4:] == ["1", "4.0", "12", "s"]


def test_what_a_clock_that_ran_ahead_has_dated_to_come_is_not_the_latest(tmp_path):
    work_dir = make_run(tmp_path, 100, {"sampled_answer": 4})
    write_log(work_dir, 0, unit_line(NOW + 7200, seconds=999), unit_line(NOW - 10), unit_line(NOW))
    # 96 units of 10 s on one rank
    assert row(described(work_dir, NOW), "sampled_answer")[4:] == ["1", "8.0", "16", "min"]


def test_a_run_that_nobody_works_on_stands_still(tmp_path):
    work_dir = make_run(tmp_path, 10, {"sampled_answer": 4})
    write_log(work_dir, 0, unit_line(NOW - 3600))
    assert row(described(work_dir, NOW), "sampled_answer")[4:] == ["0", "-", "stands", "still"]


def test_a_torn_or_foreign_log_line_is_passed_over(tmp_path):
    work_dir = make_run(tmp_path, 10, {"sampled_answer": 4})
    torn = ['{"time": 99', "null", "[]", '{"event": "start"}', '{"time": "x", "stage": 1}', "\x00"]
    write_log(work_dir, 0, *torn, unit_line(NOW - 1), '{"time": 1000')
    assert row(described(work_dir, NOW), "sampled_answer")[4:] == ["1", "8.0", "1", "min"]


def test_a_line_behind_half_a_line_of_a_killed_rank_is_not_lost(tmp_path):
    path = logs.log_path(tmp_path, 0)
    logs.append(path, unit_line(1.0))
    with open(path, "a") as file:
        file.write('{"time": 2.0, "sta')
    logs.append(path, unit_line(3.0))
    logs.append(path, unit_line(4.0))
    assert [line["time"] for line in logs.unit_lines(tmp_path)] == [1.0, 3.0, 4.0]
    assert path.read_text().count("\n") == 4


@pytest.mark.parametrize("name", ["dpo_dataset.parquet", "dpo_dataset-00000-of-00002.parquet"])
def test_a_written_dataset_is_said_to_be_there(tmp_path, name):
    work_dir = make_run(tmp_path, 1, {})
    (work_dir / "dataset").mkdir()
    (work_dir / "dataset" / name).touch()
    assert row(described(work_dir, NOW), "pairs") == ["pairs", "written"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "is not the work_dir of a run: it has no run.json"),
        ("{", 'run.json" is not one of a run: JSONDecodeError'),
        ("{}", "run.json\" is not one of a run: KeyError: 'units'"),
        ('{"units": 3}', 'run.json" is not one of a run: TypeError'),
    ],
)
def test_a_folder_that_is_no_work_dir_is_refused(tmp_path, content, says):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError) as caught:
        described(tmp_path, NOW)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (3599, "1 h 0 min"),
        (12_000, "3 h 20 min"),
        (100_000, "27 h 47 min"),
        (190_800, "2 d 5 h"),
    ],
)
def test_a_duration_has_two_units_at_most(seconds, text):
    assert duration(seconds) == text


def start_watch(work_dir: Path, *arguments: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "data_engine", "status", *arguments, str(work_dir)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


def next_block(process: subprocess.Popen) -> list[str]:
    """The lines of the next block that a watch without a terminal prints; none at the end of its output."""
    return list(itertools.takewhile(lambda line: line.strip(), process.stdout))


def finish(work_dir: Path) -> None:
    (work_dir / "reward_logps/unit-00001.parquet").touch()
    (work_dir / "dataset").mkdir()
    (work_dir / "dataset/dpo_dataset.parquet").touch()


def test_watch_repeats_blocks_without_a_terminal_until_the_dataset_is_written(tmp_path):
    work_dir = make_run(tmp_path, 2, dict.fromkeys(STAGES, 2) | {"reward_logps": 1})
    with start_watch(work_dir, "--watch", "0.05") as process:
        first, second = next_block(process), next_block(process)
        assert [row("".join(block), "reward_logps")[1] for block in (first, second)] == ["1/2", "1/2"]
        finish(work_dir)
        *_, last = iter(lambda: next_block(process), [])
        assert row("".join(last), "reward_logps")[1] == "2/2"
        assert row("".join(last), "pairs") == ["pairs", "written"]
        assert process.wait(timeout=60) == 0


def test_ctrl_c_ends_a_watch_with_exit_code_0(tmp_path):
    work_dir = make_run(tmp_path, 2, {"sampled_answer": 1})
    with start_watch(work_dir, "--watch", "600", stderr=subprocess.PIPE) as process:
        next_block(process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run"], (None, ["run"])),
        (["--watch", "run"], (5.0, ["run"])),
        (["run", "--watch"], (5.0, ["run"])),
        (["--watch", "2", "run"], (2.0, ["run"])),
        (["run", "--watch", "0.5"], (0.5, ["run"])),
        (["--watch=3", "run"], (3.0, ["run"])),
        # A work_dir may be called 7.
        (["--watch", "7"], (5.0, ["7"])),
    ],
)
def test_the_seconds_of_a_watch_stand_before_or_after_the_work_dir(arguments, expected):
    assert status._watch_argument(arguments) == expected


@pytest.mark.parametrize("value", ["0", "-1", "soon", "", "100000", "nan"])
def test_a_watch_every_so_many_seconds_that_are_none_is_refused(value):
    with pytest.raises(UserError, match=rf'--watch takes seconds, more than 0 and at most 86400, got "{value}"'):
        status.main([f"--watch={value}", "run"])


UNITS = {"num_questions": 8, "unit_size": 8, "num_units": 1}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[]", "KeyError: 'units'"),
        ("[" * 100_000, "RecursionError"),
        (json.dumps({"units": UNITS | {"num_units": -2}}), "ValueError: units below 0"),
        ('{"units": {"num_questions": Infinity, "unit_size": 8, "num_units": 1}}', "OverflowError"),
        (json.dumps({"units": UNITS, "config": []}), "TypeError: config is no object"),
        (json.dumps({"units": UNITS, "config": {"rewards": 3}}), "TypeError: config.rewards is no text"),
        (json.dumps({"units": UNITS, "models": None}), "TypeError: models is no object"),
        (json.dumps({"units": UNITS, "models": {"instruct": "here"}}), "TypeError: models.instruct is no object"),
    ],
)
def test_a_run_json_that_no_run_wrote_is_refused(tmp_path, text, why):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UserError) as caught:
        status.main([str(tmp_path)])
    assert str(caught.value).startswith(f'"{tmp_path}/run.json" is not one of a run: {why}')


def test_a_folder_that_cannot_be_read_is_named(tmp_path):
    make_run(tmp_path, 1, {})
    (tmp_path / "claims").touch()
    with pytest.raises(UserError, match='/claims" cannot be read or written: Not a directory'):
        status.main([str(tmp_path)])


def test_pairs_that_are_broken_count_as_not_written_where_there_is_no_dataset(tmp_path):
    work_dir = make_run(tmp_path, 1, dict.fromkeys(STAGES, 1))
    (work_dir / "pairs").mkdir()
    (work_dir / "pairs/pairs.parquet").write_bytes(b"PAR1")
    assert row(described(work_dir, NOW), "pairs") == ["pairs", "not", "written"]


def test_a_run_that_no_queue_knows_and_that_was_refused_is_not_told_to_wait_in_one(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/rank-0-node-1-ab.jsonl").touch()
    with pytest.raises(IncompleteError) as told:
        read_run(tmp_path)
    assert str(told.value) == (
        f'no rank has begun yet in "{tmp_path}": its start was refused, or is still reading its models; what it '
        "printed says which"
    )


def test_a_run_whose_jobs_are_in_a_queue_has_not_begun_and_is_waited_for(tmp_path):
    """`submit` makes the folder of their output, and says to follow them by this command."""
    ready, queued = make_run(tmp_path / "ready", 2, {"sampled_answer": 1}), tmp_path / "queued"
    (queued / "logs").mkdir(parents=True)
    command = [sys.executable, "-m", "data_engine", "status", str(queued)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (queued / "logs/slurm-70_0.out").touch()
    told = (
        f'no rank has begun yet in "{queued}": its jobs wait in a queue, or have failed before; their output is '
        f'"{queued}/logs/slurm-*.out"'
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "", f"data-engine: error: {told}\n")
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, "--watch", "0.1", "--json"], stdout=pipe, stderr=pipe, text=True) as watching:
        assert watching.stderr.readline() == "no rank has begun yet; waiting for the first\n"
        # A rank's log is there before run.json.
        (queued / "logs/rank-0-node-1-ab.jsonl").touch()
        with pytest.raises(subprocess.TimeoutExpired):
            watching.wait(timeout=1)
        (ready / "run.json").rename(queued / "run.json")
        assert json.loads(watching.stdout.readline())["stages"]
        watching.send_signal(signal.SIGINT)
        assert watching.wait(timeout=30) == 0


def test_a_folder_with_logs_of_something_else_is_not_waited_for(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/server.log").touch()
    command = [sys.executable, "-m", "data_engine", "status", str(tmp_path), "--watch"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    told = f'"{tmp_path}" is not the work_dir of a run: it has no run.json'
    assert (done.returncode, done.stderr) == (2, f"data-engine: error: {told}\n")
