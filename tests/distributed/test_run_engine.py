"""launch/run_engine.sh around real launchers and real ranks, which run a stand-in for the command line."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jobs import PYTHONPATH
from waiting import told_of, until

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "run_engine.sh"
CPU = ROOT / "launch" / "accelerate" / "cpu.yaml"
PATIENCE_S = 120


def slow(*values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.slow)


class Job:
    """The script over two ranks of the stand-in, which find what to do in `folder`."""

    def __init__(self, folder: Path, ranks: int, *shell: str, **environment: str) -> None:
        self.folder, self.ranks = folder, ranks
        kept = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "RANK")}
        self.process = subprocess.Popen(
            [*shell, SCRIPT, "--work_dir", "a b", "--limit=3"],
            env=kept
            | {"PYTHON": sys.executable, "PYTHONPATH": PYTHONPATH, "DATA_ENGINE_PROGRAM": "stand_in"}
            | {"STAND_IN": str(folder), "NUM_PROCESSES": str(ranks), "TMPDIR": str(folder)}
            | {"ACCELERATE_CONFIG": str(CPU)}
            | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def wait_for_ranks(self) -> None:
        until(lambda: all(self.pid(rank) for rank in range(self.ranks)), "the ranks")

    def pid(self, rank: int) -> int:
        path = self.folder / f"pid-{rank}"
        return int(path.read_text() or 0) if path.exists() else 0

    def signals(self, rank: int) -> list[str]:
        path = self.folder / f"signal-{rank}"
        return path.read_text().split() if path.exists() else []

    def code(self) -> int:
        """The script's exit code, once it has been seen that nothing of the job is left."""
        output, _ = self.process.communicate(timeout=PATIENCE_S)
        print(output)
        assert not self.alive()
        left = [name for kind in ("data-engine", "torchelastic") for name in self.folder.glob(f"{kind}*")]
        assert not left, "temporary files were left behind"
        return self.process.returncode

    def alive(self) -> list[str]:
        """Processes of this job, by the folder in their environment; a zombie has none."""
        mine = f"STAND_IN={self.folder}\0".encode()
        return [path.name for path in Path("/proc").glob("[0-9]*") if mine in told_of(path.name, "environ")]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    jobs = []

    def start(*todo: str, shell: tuple[str, ...] = (), **environment: str) -> Job:
        for rank, what in enumerate(todo):
            (tmp_path / f"rank-{rank}").write_text(what)
        jobs.append(Job(tmp_path, len(todo), *shell, **environment))
        return jobs[-1]

    yield start
    for job in jobs:
        job.process.kill()
        for pid in job.alive():
            os.kill(int(pid), signal.SIGKILL)


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        (("0", "3"), 3),
        slow(("0", "0"), 0),
        slow(("0", "75"), 75),
        slow(("2", "work"), 2),
        slow(("1", "work"), 1),
        slow(("die", "work"), 1),
        slow(("0", "die"), 1),
        slow(("0",), 0),
        slow(("3",), 3),
        slow(("late", "3"), 3),
    ],
)
def test_the_exit_code_of_the_ranks_comes_out_of_the_script(start, ranks, expected):
    assert start(*ranks).code() == expected


def test_a_rank_that_was_killed_is_named_with_what_to_do_behind_what_the_launcher_says(start):
    job = start("work", "die")
    output, _ = job.process.communicate(timeout=PATIENCE_S)
    assert job.process.returncode == 1
    told = output.splitlines()[-1]
    assert told.startswith("data-engine: error: rank 1 died without a word: killed, most often for want of memory")
    assert "run the same command again" in told


def test_a_rank_that_tells_its_own_end_is_not_said_to_have_died(start):
    output, _ = start("1", "work").process.communicate(timeout=PATIENCE_S)
    assert "died without a word" not in output


def test_a_rank_that_is_killed_because_another_one_failed_is_not_said_to_have_died(start, tmp_path):
    (tmp_path / "slow-1").write_text("60")
    job = start("2", "work")
    until(lambda: job.signals(1), "the launcher's signal")
    # As the launcher does to who takes longer than 30 s.
    os.kill(job.pid(1), signal.SIGKILL)
    output, _ = job.process.communicate(timeout=PATIENCE_S)
    assert job.process.returncode == 2
    assert "died without a word" not in output


def test_a_failed_check_starts_no_rank_and_its_code_comes_out(start, tmp_path):
    (tmp_path / "validate").write_text("2")
    job = start("0", "0")
    assert job.code() == 2
    assert not (tmp_path / "run.arguments").exists()


def test_a_signal_ends_a_check_that_takes_long(start, tmp_path):
    """As reading the models does: docker stop waits for 10 s."""
    (tmp_path / "validate").write_text("hang")
    job = start("0")
    until((tmp_path / "validate.arguments").exists, "the check")
    job.process.send_signal(signal.SIGTERM)
    assert job.code() == 75
    assert not (tmp_path / "run.arguments").exists()


@pytest.mark.slow
def test_check_and_ranks_get_the_same_flags_unchanged(start, tmp_path):
    start("0", "0").code()
    flags = ["--work_dir", "a b", "--limit=3"]
    assert json.loads((tmp_path / "validate.arguments").read_text()) == flags
    assert json.loads((tmp_path / "run.arguments").read_text()) == flags


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("chosen", [None, "3"])
def test_the_cores_are_shared_among_the_ranks_unless_the_user_says_otherwise(start, tmp_path, ranks, chosen):
    start(*["0"] * ranks, **({"OMP_NUM_THREADS": chosen} if chosen else {})).code()
    values = json.loads((tmp_path / f"environment-{ranks - 1}").read_text())
    assert values["WORLD_SIZE"] == str(ranks)
    assert values["OMP_NUM_THREADS"] == (chosen or str(max(1, len(os.sched_getaffinity(0)) // ranks)))


@pytest.mark.parametrize(
    ("name", "ranks"),
    [("SIGUSR1", 2), slow("SIGTERM", 2), slow("SIGINT", 2), slow("SIGUSR1", 1), slow("SIGTERM", 1), slow("SIGINT", 1)],
)
def test_a_signal_reaches_every_rank_once_and_the_job_says_75(start, name, ranks):
    job = start(*["work"] * ranks)
    job.wait_for_ranks()
    job.process.send_signal(signal.Signals[name])
    assert job.code() == 75
    assert [job.signals(rank) for rank in range(ranks)] == [[name]] * ranks


# dash where it is installed under its own name: there it is also what `sh` is.
@pytest.mark.parametrize("shell", [shutil.which("dash") or "sh", pytest.param("bash", marks=pytest.mark.slow)])
def test_any_shell_runs_the_script_passes_a_signal_on_and_returns_the_code(start, tmp_path, shell):
    job = start("work", shell=(shell,))
    job.wait_for_ranks()
    job.process.send_signal(signal.SIGUSR1)
    assert job.code() == 75
    assert job.signals(0) == ["SIGUSR1"]
    assert json.loads((tmp_path / "run.arguments").read_text()) == ["--work_dir", "a b", "--limit=3"]


@pytest.mark.slow
@pytest.mark.parametrize("other", ["die", "work"])
def test_a_machine_whose_ranks_are_done_does_not_wait_for_another_one(tmp_path, other):
    """The launcher would, for 5 minutes, and print a traceback then. The other machine goes on without it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    jobs = []
    for machine, what in enumerate(("0", other)):
        folder = tmp_path / str(machine)
        folder.mkdir()
        (folder / f"rank-{machine}").write_text(what)
        place = {"MACHINE_RANK": str(machine), "MAIN_ADDRESS": "127.0.0.1", "MAIN_PORT": port}
        jobs.append(Job(folder, 1, NUM_MACHINES="2", **place))
    try:
        assert jobs[0].code() == 0
        if other == "work":
            assert jobs[1].process.poll() is None
            until(lambda: jobs[1].pid(1), "the other rank")
            time.sleep(2)
            assert jobs[1].process.poll() is None
            jobs[1].process.send_signal(signal.SIGUSR1)
        assert jobs[1].code() == (75 if other == "work" else 1)
    finally:
        for job in jobs:
            job.process.kill()
            for pid in job.alive():
                os.kill(int(pid), signal.SIGKILL)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_the_launcher_adds_no_traceback_to_what_ranks_that_stop_say(start, name):
    job = start("work", "work")
    job.wait_for_ranks()
    job.process.send_signal(signal.Signals[name])
    output, _ = job.process.communicate(timeout=PATIENCE_S)
    assert job.process.returncode == 75
    assert "Traceback" not in output
    assert not job.alive()


@pytest.mark.slow
def test_usr2_to_script_and_launcher_is_ignored(start):
    job = start("work", "work")
    job.wait_for_ranks()
    for pid in map(int, job.alive()):
        os.kill(pid, signal.SIGUSR2)
    job.process.send_signal(signal.SIGTERM)
    assert job.code() == 75
    assert [job.signals(rank) for rank in range(2)] == [["SIGTERM"]] * 2


@pytest.mark.slow
def test_a_hangup_of_the_terminal_stops_the_ranks_like_sigterm(start):
    job = start("work", "work")
    job.wait_for_ranks()
    job.process.send_signal(signal.SIGHUP)
    assert job.code() == 75
    assert job.signals(1) == ["SIGTERM"]


@pytest.mark.slow
def test_a_signal_before_the_ranks_are_ready_still_reaches_them(start, tmp_path):
    job = start("work", "work")
    until((tmp_path / "validate.arguments").exists, "the check")
    job.process.send_signal(signal.SIGTERM)
    assert job.code() == 75


@pytest.mark.slow
def test_a_signal_while_the_launcher_waits_for_another_machine_ends_the_job(start):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    # Nobody listens there any more.
    job = start("work", NUM_MACHINES="2", MACHINE_RANK="1", MAIN_ADDRESS="127.0.0.1", MAIN_PORT=port)
    command = b"accelerate.commands.launch"
    until(lambda: any(command in told_of(pid, "cmdline") for pid in job.alive()), "the launcher")
    job.process.send_signal(signal.SIGUSR1)
    assert job.code() == 75


@pytest.mark.slow
def test_a_slow_rank_finishes_what_it_holds_after_the_other_has_stopped(start, tmp_path):
    (tmp_path / "slow-1").write_text("5")
    job = start("work", "work")
    job.wait_for_ranks()
    job.process.send_signal(signal.SIGTERM)
    until(lambda: str(job.pid(0)) not in job.alive(), "rank 0 to stop")
    assert job.code() == 75
    # One signal: the launcher, which would send another, and SIGKILL 30 s later, was held still.
    assert job.signals(1) == ["SIGTERM"]


@pytest.mark.slow
def test_a_second_signal_kills_the_ranks(start, tmp_path):
    (tmp_path / "slow-0").write_text("1000")
    job = start("work", "0")
    job.wait_for_ranks()
    job.process.send_signal(signal.SIGINT)
    until(lambda: bool(job.signals(0)), "the first signal")
    job.process.send_signal(signal.SIGINT)
    assert job.code() == 75


@pytest.mark.slow
def test_ranks_whose_launcher_died_are_stopped(start):
    job = start("work", "work")
    job.wait_for_ranks()
    launcher = int(Path(f"/proc/{job.pid(0)}/stat").read_text().rsplit(")", 1)[1].split()[1])
    os.kill(launcher, signal.SIGKILL)
    assert job.code() == 75
    assert [job.signals(0), job.signals(1)] == [["SIGTERM"], ["SIGTERM"]]
