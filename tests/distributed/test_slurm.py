"""docs/real-runs.md on a real SLURM of two nodes; tasks requeued, warned and killed: one dataset, byte for byte."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import NODES, Cluster, missing_programs, until
from jobs import PYTHONPATH, Job, Result, stray_files, write_questions
from shown import ON_A_CLUSTER, ROOT
from test_same_dataset import FLAGS

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(
        bool(missing_programs()),
        reason=f"no {', '.join(missing_programs())} on this machine: apt-get install slurm-wlm munge",
    ),
]
LOOP, SUBMIT, STATUS, MULTINODE = ON_A_CLUSTER
ENGINE_S = 200


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Result:
    """What one process leaves without SLURM."""
    folder = tmp_path_factory.mktemp("undisturbed")
    job = Job(write_questions(folder / "questions.parquet", 22), folder / "work", FLAGS)
    job.run()
    return Result.of(job.work_dir)


@pytest.fixture(scope="module")
def cluster():
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def reader(place, cluster) -> "Reader":
    write_questions(place / "data/questions.parquet", 22)
    return Reader(place, cluster)


class Reader:
    """Somebody who types the commands of the page, with this test's settings behind them, one rank a node on CPU."""

    def __init__(self, place: Path, cluster: Cluster) -> None:
        self.place, self.cluster = place, cluster

    def types(self, line: str, *more: str) -> str:
        environment = {
            "OMP_NUM_THREADS": "1", "NUM_PROCESSES": "1", "PYTHON": sys.executable, "HOLD": str(self.place),
            "ACCELERATE_CONFIG": str(ROOT / "launch/accelerate/cpu.yaml"), "DATA_ENGINE_PROGRAM": "held",
            "PYTHONPATH": PYTHONPATH,
        }  # fmt: skip
        done = subprocess.run(
            [*shlex.split(line), *more], env=self.cluster.environment | environment, cwd=self.place,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout

    def waits_until(self, holds, what: str) -> None:
        try:
            until(holds, what, ENGINE_S)
        except AssertionError:
            print(self.cluster.call("squeue"), self.cluster.log())
            for path in [*self.place.glob("slurm-*"), *self.place.glob("runs/*/logs/slurm-*")]:
                print(f"== {path}\n{path.read_text()}")
            raise

    def waits_for_the_end(self, job: str) -> dict[str, str]:
        self.waits_until(lambda: self.cluster.job(job)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING"), job)
        return self.cluster.job(job)

    def asks_to_hold(self, *shards: int) -> None:
        for shard in shards:
            (self.place / f"hold-{shard}").touch()

    def waits_until_held(self, shard: int) -> None:
        self.waits_until((self.place / f"held-{shard}").exists, f"shard {shard} to publish a unit")


def test_tasks_requeued_warned_and_killed_with_their_node_make_the_same_dataset(reader, undisturbed):
    cluster, work_dir = reader.cluster, reader.place / "runs/array"
    reader.asks_to_hold(0, 1, 3)
    output = reader.types(SUBMIT, *FLAGS)
    array, pairing = re.search(r"array job (\d+): 4 tasks\npairing job (\d+)", output).groups()
    tasks = [f"{array}_{index}" for index in range(4)]

    # Preempted, as an administrator or another job does it.
    reader.waits_until_held(0)
    cluster.call("scontrol", "requeue", tasks[0])

    # Its node dies, and comes back.
    reader.waits_until_held(1)
    node = cluster.job(tasks[1])["NodeList"]
    assert node in NODES
    cluster.kill_node(node)
    # A node that comes back without a job so young is taken to be starting it still: BatchStartTimeout, and 10 s more.
    reader.waits_until(lambda: cluster.job(tasks[1])["RunTime"] > "00:00:14", "the lost job to be no beginner")
    cluster.start_node(node)

    # What --signal=B:USR1@120 does when the time limit is near; the last task has the array's number as its own.
    reader.waits_until_held(3)
    assert re.search(r"sampled_answer +[1-7]/8", reader.types(STATUS))
    cluster.call("scancel", "--batch", "--signal=USR1", tasks[3])

    ends = [reader.waits_for_the_end(job) for job in [*tasks, pairing]]
    assert [end["JobState"] for end in ends] == ["COMPLETED"] * 5
    assert [end["Restarts"] for end in ends] == ["1", "1", "0", "1", "0"]
    assert "stopped by SIGUSR1; every published unit is kept" in (work_dir / f"logs/slurm-{tasks[3]}.out").read_text()
    assert Result.of(work_dir) == undisturbed
    assert not stray_files(work_dir)
    status = reader.types(STATUS)
    assert re.findall(r"(\w+) +8/8 100 %", status) == ["sampled_answer", "instruct_logps", "reward_logps"]
    assert re.search(r"pairs +written", status)


def test_one_job_over_two_nodes_warned_once_makes_the_same_dataset(reader, undisturbed):
    cluster, work_dir = reader.cluster, reader.place / "runs/two-nodes"
    reader.asks_to_hold(0)
    job = reader.types(MULTINODE, *FLAGS).split()[-1]
    reader.waits_until_held(0)
    cluster.call("scancel", "--batch", "--signal=USR1", job)
    end = reader.waits_for_the_end(job)
    assert (end["JobState"], end["Restarts"]) == ("COMPLETED", "1")
    assert Result.of(work_dir) == undisturbed
    assert not stray_files(work_dir)
    files = (work_dir / "logs").glob("rank-*.jsonl")
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    counted = sorted((line["rank"], line["exit_code"]) for line in lines if "exit_code" in line)
    # The warning may find rank 1 at work, or before it has begun.
    assert {(0, 75), (0, 0), (1, 0)} <= set(counted), "the two nodes did not count their ranks together"


def test_tasks_of_srun_without_a_launcher_are_ranks_of_one_run(reader, undisturbed):
    work_dir = reader.place / "runs/tasks"
    command = shlex.join([sys.executable, "-m", "data_engine", "run"])
    reader.types(
        f"srun --partition gpu --nodes 2 --ntasks 2 {command} --config configs/llava-1.5-7b.yaml --work_dir {work_dir}",
        *FLAGS,
    )
    assert Result.of(work_dir) == undisturbed
    files = (work_dir / "logs").glob("rank-*.jsonl")
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert sorted((line["rank"], line["exit_code"]) for line in lines if "exit_code" in line) == [(0, 0), (1, 0)]
    assert len([line for line in lines if line.get("event") == "pairing"]) == 1


def test_a_loop_that_is_warned_while_it_trains_goes_on(reader, undisturbed):
    cluster, folder, hook = reader.cluster, reader.place / "runs/loop", reader.place / "hook"
    hook.mkdir()
    (hook / "wait").touch()
    # The page's train.sh.
    (reader.place / "train.sh").write_text(
        f'exec "{sys.executable}" "{Path(__file__).with_name("loop_trainer.py")}" "$@" hook\n'
    )
    job = reader.types(LOOP, *FLAGS).split()[-1]
    reader.waits_until((hook / "waits").exists, "the trainer of the first round")
    cluster.call("scancel", "--batch", "--signal=USR1", job)
    (hook / "wait").unlink()
    end = reader.waits_for_the_end(job)
    assert (end["JobState"], end["Restarts"]) == ("COMPLETED", "1"), Path(end["StdOut"]).read_text()
    assert [line.split("/")[-2] for line in (hook / "starts").read_text().split()] == ["round-1", "round-1", "round-2"]
    assert Result.of(folder / "round-1/run") == undisturbed
    assert (folder / "round-2/trained.json").exists()


def test_a_cancelled_task_stays_away_and_takes_the_pairing_job_along(reader):
    reader.asks_to_hold(0)
    output = reader.types(SUBMIT, *FLAGS, "--array", "1")
    array, pairing = re.search(r"array job (\d+).*\npairing job (\d+)", output).groups()
    reader.waits_until_held(0)
    reader.cluster.call("scancel", f"{array}_0")
    ends = [reader.waits_for_the_end(job) for job in (f"{array}_0", pairing)]
    assert [end["JobState"] for end in ends] == ["CANCELLED"] * 2
    assert ends[0]["Restarts"] == "0"
    assert not (reader.place / "runs/array/dataset").exists()
