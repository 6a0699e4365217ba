"""`validate --measure` on a tiny model: it computes, leaves nothing behind, and does not begin where a mistake is."""

import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from run_files import hostile_rows, write

from data_engine.commands import main, validate
from data_engine.commands.arguments import parse
from data_engine.planning import measure
from data_engine.planning.found import Found
from data_engine.planning.timed import Spent, Timed
from data_engine.processes import cpu_wait
from data_engine.processes.ranks import Ranks
from data_engine.questions.dataset import open_questions
from data_engine.stages import SAMPLING
from data_engine.store import units


@pytest.fixture
def job(goldens, tmp_path, monkeypatch) -> list[str]:
    monkeypatch.setattr(measure, "BUDGET_S", 0.5)
    # What else this machine does is no part of a test.
    monkeypatch.setattr(cpu_wait, "choose", lambda *_: None)
    flags = {f"{role}_model_path": str(goldens / "llava" / role) for role in ("instruct", "reward")}
    flags |= {
        "dataset_path": str(write(tmp_path / "q.parquet", hostile_rows()[:1])), "work_dir": str(tmp_path / "work"),
        "device": "cpu", "sample_k": "2", "rank": "1", "max_new_tokens": "4", "threads": "1",
    }  # fmt: skip
    return [f"--{name}={value}" for name, value in flags.items()]


@pytest.mark.slow
def test_every_stage_is_timed_and_the_whole_is_the_sum(job, tmp_path, capsys):
    assert main.main(["validate", "--measure", "--json", *job]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)["measured"]
    names = ["start", "sampled_answer", "instruct_logps", "reward_logps", "pairs and report"]
    assert [stage["name"] for stage in told["stages"]] == names
    assert all(stage["seconds"] > 0 for stage in told["stages"])
    assert told["seconds"] == pytest.approx(sum(stage["seconds"] for stage in told["stages"]))
    assert 1 <= told["stages"][1]["tokens_an_answer"] <= 4
    low, high = told["seconds_range"]
    assert low < told["seconds"] < high
    assert "measuring sampled_answer" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q.parquet"]


def test_nothing_is_measured_where_something_is_wrong_and_all_of_it_is_told(job, capsys, monkeypatch):
    monkeypatch.setattr(measure, "measure", lambda *_: pytest.fail("it was measured"))
    assert main.main(["validate", "--measure", *job, "--beta=0", "--seed=-1"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "data-engine: error: beta must be above 0, got 0.0",
        "data-engine: error: seed must be between 0 and 2**63 - 1, got -1",
        "data-engine: 2 mistakes; nothing was started",
    ]


@pytest.mark.parametrize(("device", "processes"), [("cpu", [(0, 2), (1, 2)]), ("cuda", [(0, 1)])])
@pytest.mark.parametrize("machines", [1, 3])
def test_ranks_that_share_processors_are_timed_beside_each_other(job, monkeypatch, device, processes, machines):
    started = []

    def start(found, rank, together, folder, budget_s):
        started.append((rank, together))

    monkeypatch.setattr(measure, "_start", start)
    monkeypatch.setattr(measure, "_results", lambda children: sys.exit("enough"))
    with pytest.raises(SystemExit, match="enough"):
        measure.measure(Found(parse(job), heavy={"device": device}), Ranks(0, 2 * machines, 0, 2))
    assert started == processes


def test_what_is_measured_is_every_stage_of_the_whole_dataset_in_a_folder_of_its_own(job, tmp_path, monkeypatch):
    """Whatever part of a run is to be started, and without its exports."""
    asked = []
    stdin = SimpleNamespace(write=asked.append, close=lambda: None)
    monkeypatch.setattr(measure.subprocess, "Popen", lambda *_, **options: SimpleNamespace(stdin=stdin))
    part = ["--num_shards=4", "--shard_index=3", "--continue_from_stage=1", "--export=trl"]
    config = parse([*job, *part])
    measure._start(Found(config, questions=open_questions(config)), 1, 2, tmp_path, 7.0)
    [request] = map(json.loads, asked)
    assert (request["rank"], request["world_size"], request["budget_s"]) == (1, 2, 7.0)
    changed = {name: value for name, value in request["config"].items() if value != getattr(config, name)}
    # Units are as large as those of the run: of one question.
    assert changed == {
        "num_shards": 1, "shard_index": 0, "continue_from_stage": 0, "export": None, "unit_size": 1,
        "work_dir": str(tmp_path / "1/work"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("device", "seconds", "threads", "warned"),
    [
        ("cpu", 6.0, 2, None),
        ("cpu", 2.0, 2, "25% of their 2 processors"),
        ("cpu", 1.0, 1, "25% of their 1 processor"),
        ("cuda", 2.0, 2, None),
    ],
)
def test_ranks_that_do_not_get_their_processors_are_told_of(job, monkeypatch, device, seconds, threads, warned):
    """A unit took 4 s of the clock, and 6 s, 2 s or 1 s, of the processors of its rank: 75% of two, 25% of two or of
    one. Beside a GPU they have little to do.
    """
    config = parse([*job, "--stop_after_stage=0"])
    stage = {"times": [(1, (4.0, seconds))], "role": "", "tokens_an_answer": 3.0, "bytes_an_answer": 9.0}
    result = {
        "stages": {"sampled_answer": stage}, "loads": {}, "last": {}, "size": 1, "threads": threads,
        **dict.fromkeys(("plan_s", "import_s", "workers_s"), (1.0, 1.0)),
    }  # fmt: skip
    monkeypatch.setattr(measure, "_start", lambda *_: None)
    monkeypatch.setattr(measure, "_results", lambda children: [result] * len(children))
    found = Found(config, questions=open_questions(config), heavy={"device": device})
    assert measure.measure(found, Ranks(0, 2, 0, 2))["processor_share"] == seconds / 4 / threads
    assert [f"had {warned} each" in told for told in found.warnings] == [True] * (warned is not None)


def test_threads_wait_while_they_are_measured_as_they_do_in_a_run(job, monkeypatch, capfd):
    """On a busy machine threads of a run sleep: those that spin would tell a run that is many times slower."""
    # Set, then taken away, so that the test leaves it as it was.
    monkeypatch.setenv(cpu_wait.VARIABLE, "x")
    monkeypatch.delenv(cpu_wait.VARIABLE)
    monkeypatch.setenv("NUM_PROCESSES", "2")
    monkeypatch.setattr(cpu_wait, "choose", lambda environment, threads: f"{threads} threads")
    monkeypatch.setattr(validate, "run_checks", lambda draft, tell: Found(draft.config, heavy={"device": "cpu"}))
    seen = []
    monkeypatch.setattr(measure, "_start", lambda *_: seen.append(os.environ.get(cpu_wait.VARIABLE)))
    monkeypatch.setattr(measure, "_results", lambda children: sys.exit("enough"))
    with pytest.raises(SystemExit, match="enough"):
        main.main(["validate", "--measure", *job, "--threads=3"])
    assert seen == ["PASSIVE"] * 2
    assert "OMP_WAIT_POLICY=PASSIVE: 6 threads, so waiting threads sleep" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_measurement_that_a_signal_ends_leaves_no_folder(job, tmp_path, capsys, monkeypatch, number):
    found = Found(parse(job), heavy={"device": "cpu"})
    monkeypatch.setattr(validate, "run_checks", lambda draft, tell: found)
    begun = []

    def start(found, rank, together, folder, budget_s):
        begun.append(folder)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(measure, "_start", start)
    before = signal.getsignal(number)
    assert main.main(["validate", "--measure", *job]) == 75
    assert "interrupted" in capsys.readouterr().err
    assert [folder.exists() for folder in begun] == [False]
    assert signal.getsignal(number) is before


def test_what_measures_is_ended_where_the_measurement_is(monkeypatch):
    def interrupted(thread):
        raise KeyboardInterrupt

    monkeypatch.setattr(measure.threading.Thread, "start", interrupted)
    with subprocess.Popen(["sleep", "20"], stdout=subprocess.PIPE) as child, pytest.raises(KeyboardInterrupt):
        measure._results([child])
    assert child.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("so_far", "says"),
    [(10, "measuring pairs: 10 s so far, about 50 s left"), (300, "measuring pairs: 5 min so far")],
)
def test_a_measurement_that_takes_longer_than_was_meant_does_not_tell_what_is_left(so_far, says):
    assert measure._progress("pairs", so_far) == says


def test_what_a_further_question_adds_to_the_last_step_is_by_those_beyond_the_smaller_pairing(tmp_path, monkeypatch):
    """Units of one question, of 8, of 8 others and of 4 of the first: the last two have 12 questions, each once."""
    for unit in range(4):
        path = units.unit_path(tmp_path, "sampled_answer", unit)
        path.parent.mkdir(exist_ok=True)
        path.touch()
    spent = {"all": Spent(4.0, 2.0), "again": Spent(9.0, 3.0), "one": Spent(9.0, 1.0)}
    asked = {}

    def pair(self, numbers, todo, name):
        asked[name] = list(numbers)
        return spent[name]

    monkeypatch.setattr(Timed, "_pair", pair)
    timed = Timed.__new__(Timed)
    timed.plan = SimpleNamespace(work_dir=tmp_path)
    timed.rows = [range(0, 1), range(0, 8), range(8, 16), range(0, 4)]
    found = timed.last_step([SAMPLING])
    assert asked == {"all": [3, 2], "again": [3, 2], "one": [3]}
    # 2 s of the processor for 8 more questions; the clock took twice as long as the processor.
    assert found == {"seconds": spent["all"], "questions": 12, "a_question": Spent(0.5, 0.25)}
