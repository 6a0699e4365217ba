"""launch/slurm/requeue.sh under real shells, with stand-ins for the commands of SLURM that it calls; and what the batch
scripts start by it."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch/slurm/requeue.sh"
# dash where it is installed under its own name: there it is also what `sh` is.
SHELLS = [shutil.which("dash") or "sh", "bash"]
# Says when it is ready, and exits with $1 at a SIGUSR1; with $2 it ends by itself.
COMMAND = 'trap "exit $1" USR1; echo ready; test -z "$2" || exit "$2"; while :; do sleep 0.05; done'


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder of commands; `asked` is what they were called with."""
    for name, answer in {"squeue": 'echo "$STATE"', "scontrol": ":"}.items():
        command = tmp_path / name
        command.write_text(f'#!/bin/sh\necho {name} "$@" >> "{tmp_path}/asked"\n{answer}\n')
        command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in [name for name in os.environ if name.startswith("SLURM")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("STATE", "RUNNING")
    return tmp_path


def requeued(slurm: Path) -> list[str]:
    asked = slurm / "asked"
    lines = asked.read_text().splitlines() if asked.exists() else []
    return [line.removeprefix("scontrol requeue ") for line in lines if line.startswith("scontrol")]


def ends_with(shell: str, number: int | None, *command: object) -> int:
    """The script's exit code, around a command that gets signal `number` once it is ready."""
    words = [shell, SCRIPT, "sh", "-c", COMMAND, "-", *map(str, command)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        if number:
            process.send_signal(number)
        return process.wait(timeout=60)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_job_that_a_signal_stopped_is_put_back(slurm, shell, number):
    assert ends_with(shell, number, 75) == 75
    assert requeued(slurm) == ["17"]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_a_job_that_ended_otherwise_keeps_its_code_and_stays_away(slurm, shell, code):
    assert ends_with(shell, signal.SIGUSR1, code) == code
    assert ends_with(shell, None, 75, code) == code
    assert not requeued(slurm)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_75_without_a_signal_to_the_job_is_not_put_back(slurm, shell):
    """Such as a full disk: it would be full again at once."""
    assert ends_with(shell, None, 1, 75) == 75
    assert not requeued(slurm)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", ""])
def test_a_job_that_slurm_cancels_or_puts_back_itself_is_not_put_back(slurm, monkeypatch, shell, state):
    monkeypatch.setenv("STATE", state)
    assert ends_with(shell, signal.SIGTERM, 75) == 75
    assert not requeued(slurm)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_task_of_an_array_puts_back_itself_alone(slurm, monkeypatch, shell):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "16")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert ends_with(shell, signal.SIGUSR1, 75) == 75
    assert requeued(slurm) == ["16_3"]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("script", "starts"),
    [
        ("array", "- - - sh LAUNCH/run_engine.sh --config c.yaml --stop_after_stage 1 --shard_index 3"),
        ("pair", "1 - - sh LAUNCH/run_engine.sh --config c.yaml --continue_from_stage 2"),
        (
            "multinode",
            "- 2 23456 srun --ntasks=2 --ntasks-per-node=1 --wait=0 --kill-on-bad-exit=0 --cpu-bind=none sh -c",
        ),
    ],
)
def test_a_batch_script_starts_its_part_of_a_run(slurm, monkeypatch, shell, script, starts):
    """Told: ranks, machines, port, and the command."""
    (slurm / "slurm").mkdir()
    told = 'echo "${NUM_PROCESSES:--} ${NUM_MACHINES:--} ${MAIN_PORT:--} $*"'
    (slurm / "slurm/requeue.sh").write_text(told)
    environment = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "123456"}
    for name, value in (environment | {"DATA_ENGINE_LAUNCH": str(slurm)}).items():
        monkeypatch.setenv(name, value)
    for name in ("NUM_PROCESSES", "NUM_MACHINES", "MAIN_PORT"):
        monkeypatch.delenv(name, raising=False)
    words = [shell, SCRIPT.with_name(f"{script}.sbatch"), "--config", "c.yaml"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(starts.replace("LAUNCH", str(slurm)))
