"""The memory that a process may take, by made-up control groups as docker, Kubernetes and SLURM set them."""

import os
import subprocess
import sys

import pytest

from data_engine.processes.memory_limit import memory_bytes

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
MB = 2**20
NO_LIMIT = 9223372036854771712


@pytest.mark.parametrize(
    ("group", "limits", "expected"),
    [
        # A container that sees its own group as the root, by both versions of the interface.
        ("0::/", {"memory.max": f"{64 * MB}\n"}, 64 * MB),
        ("4:memory:/", {"memory/memory.limit_in_bytes": f"{64 * MB}\n"}, 64 * MB),
        # One that is told its path on the host, which is not mounted inside.
        ("4:memory:/docker/0a1b", {"memory/memory.limit_in_bytes": f"{64 * MB}\n"}, 64 * MB),
        # SLURM limits the job, and leaves its step and task alone.
        ("0::/slurm/job_7/step_0/task_0", {"slurm/job_7/memory.max": f"{32 * MB}\n", "memory.max": "max\n",
         "slurm/job_7/step_0/memory.max": "max\n"}, 32 * MB),
        ("1:name=systemd:/a\n4:memory:/slurm/job_7/step_0", {
            "memory/slurm/job_7/step_0/memory.limit_in_bytes": f"{48 * MB}\n",
            "memory/slurm/job_7/memory.limit_in_bytes": f"{32 * MB}\n",
            "memory/memory.limit_in_bytes": f"{NO_LIMIT}\n"}, 32 * MB),
        # No limit, none that is told, and the limit of another controller's group.
        ("0::/user.slice", {"user.slice/memory.max": "max\n"}, MACHINE),
        ("4:memory:/", {"memory/memory.limit_in_bytes": f"{NO_LIMIT}\n"}, MACHINE),
        ("0::/", {}, MACHINE),
        ("", {"memory.max": f"{64 * MB}\n"}, MACHINE),
        ("3:cpuset:/a", {"cpuset/a/memory.max": f"{64 * MB}\n"}, MACHINE),
    ],
)  # fmt: skip
def test_the_least_limit_of_the_groups_of_a_process_counts(tmp_path, group, limits, expected):
    (tmp_path / "cgroup").write_text(f"{group}\n" if group else "")
    for name, text in limits.items():
        path = tmp_path / "mounted" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert memory_bytes(tmp_path / "cgroup", tmp_path / "mounted") == expected


def test_a_system_without_control_groups_has_its_memory(tmp_path):
    assert memory_bytes(tmp_path / "none", tmp_path / "neither") == MACHINE


def test_a_limit_of_the_process_counts_as_one_of_its_groups_does():
    tell = "from data_engine.processes.memory_limit import memory_bytes; print(memory_bytes())"
    limited = ["sh", "-c", 'ulimit -v 1000000; exec "$@"', "sh", sys.executable, "-c", tell]
    done = subprocess.run(limited, capture_output=True, text=True, check=True)
    # ulimit counts in KiB.
    assert int(done.stdout) == 1_000_000 * 1024
