"""The place of a process that srun or mpirun starts several of, without a launcher of torch.

The variables are those that SLURM 22.05, Open MPI 5.0 and MPICH gave to real processes.
"""

import os
import pty
import re
import subprocess
import sys

import pytest

from data_engine.errors import UserError
from data_engine.processes import ranks

TELL = """
import os
from data_engine.processes.ranks import Ranks, take_place
take_place()
ranks = Ranks.from_environment()
place = ranks.rank, ranks.world_size, ranks.local_rank, ranks.local_world_size
print("place", *place, os.environ.get("OMP_NUM_THREADS"))
"""
OTHERS = re.compile(
    r"(SLURM|OMPI|PMI|MPI|ACCELERATE)_.*|(LOCAL_)?(RANK|WORLD_SIZE)|OMP_NUM_THREADS|CUDA_VISIBLE_DEVICES"
)
# The third of five tasks, on the second of two nodes with 12 cores and 4 GPUs for the step.
TASK = {
    "SLURM_PROCID": "3", "SLURM_LOCALID": "0", "SLURM_NODEID": "1", "SLURM_NTASKS": "5", "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_TASKS_PER_NODE": "3,2", "SLURM_CPUS_ON_NODE": "12", "SLURM_GPUS_ON_NODE": "4",
    "CUDA_VISIBLE_DEVICES": "0,1,2,3",
}  # fmt: skip
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}  # fmt: skip
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
ALONE = "place 0 1 0 1 None"


def without_others() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not OTHERS.fullmatch(name)}


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        (TASK, "place 3 5 0 2 6"),
        (TASK | {"SLURM_PROCID": "2", "SLURM_LOCALID": "2", "SLURM_NODEID": "0"}, "place 2 5 2 3 4"),
        (TASK | {"SLURM_PROCID": "4", "SLURM_LOCALID": "1", "OMP_NUM_THREADS": "2"}, "place 4 5 1 2 2"),
        # Two nodes of as many tasks.
        (
            TASK | {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"},
            "place 3 8 0 4 3",
        ),
        # --gpus-per-task=2: it sees its own alone.
        (TASK | {"SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": "2,3"}, "place 3 5 0 1 6"),
        (OPEN_MPI, "place 3 4 1 2 None"),
        (MPICH, "place 1 2 1 2 None"),
        # Over several nodes, srun starts the daemons of mpirun.
        (OPEN_MPI | TASK, "place 3 4 1 2 None"),
        # What a launcher says comes first.
        (TORCHRUN | TASK | OPEN_MPI, "place 1 2 1 2 None"),
        (TASK | {"ACCELERATE_MIXED_PRECISION": "no"}, ALONE),
        (TASK | {"DATA_ENGINE_EXIT_FILE": "exits"}, ALONE),
        # The only task of its step.
        (TASK | {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1"}, ALONE),
        # A batch script has no step; one that was submitted inside of a step has what is left of that one's.
        ({name: value for name, value in TASK.items() if "STEP" not in name}, ALONE),
        (TASK | {"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, ALONE),
        ({}, ALONE),
    ],
)
def test_a_process_that_was_started_several_times_has_a_place_of_its_own(variables, place):
    done = subprocess.run(
        # In a session of its own, as a task is.
        [sys.executable, "-c", TELL], env=without_others() | variables, start_new_session=True, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.stdout == f"{place}\n", done.stderr


def test_a_command_in_the_shell_of_srun_pty_is_alone():
    """The shell is the first of five tasks, which have ended or do nothing."""
    ours, theirs = pty.openpty()
    # The first terminal that the first process of a session opens controls it.
    command = ["sh", "-c", 'exec < "$0"; exec "$@"', os.ttyname(theirs), sys.executable, "-c", TELL]
    environment = without_others() | TASK | {"SLURM_PROCID": "0"}
    done = subprocess.run(command, env=environment, start_new_session=True, capture_output=True, text=True, check=False)
    os.close(theirs)
    os.close(ours)
    assert done.stdout == f"{ALONE}\n", done.stderr


@pytest.mark.parametrize(
    ("changed", "refused"),
    [
        ({}, True),
        # One a machine, and one a GPU.
        ({"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, False),
        ({"CUDA_VISIBLE_DEVICES": "1"}, False),
        ({"SLURM_GPUS_ON_NODE": ""}, False),
    ],
)
def test_several_launchers_that_would_share_all_gpus_of_a_machine_are_refused(monkeypatch, changed, refused):
    monkeypatch.setattr(os, "environ", without_others() | TASK | changed)
    monkeypatch.setattr(ranks, "_has_terminal", lambda: False)
    if not refused:
        ranks.require_one_launcher()
        return
    with pytest.raises(UserError, match=r"srun started run_engine.sh 2 times on this machine.*--ntasks-per-node=1"):
        ranks.require_one_launcher()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, True),
        ({"NUM_MACHINES": "2"}, False),
        ({"SLURM_JOB_NUM_NODES": "1"}, False),
        # A step may be one of several beside each other.
        ({"SLURM_STEP_ID": "0"}, False),
    ],
)
def test_nodes_of_a_job_on_which_no_rank_starts_are_told(monkeypatch, changed, told):
    monkeypatch.setattr(os, "environ", without_others() | {"SLURM_JOB_NUM_NODES": "2"} | changed)
    says = ranks.idle_nodes()
    assert (says is not None) == told
    assert not told or says.startswith("this SLURM job has 2 nodes, and the ranks start on this one alone:")
