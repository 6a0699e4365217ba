"""The CPU cores that a process may keep busy, by made-up control groups as docker, Kubernetes and SLURM set them."""

import os
import subprocess
import sys

import pytest

from data_engine.processes import cpu_limit
from data_engine.processes.ranks import Ranks, num_threads

HOST = 128


@pytest.mark.parametrize(
    ("group", "files", "expected"),
    [
        # A pod of 4 CPUs that sees its own group as the root, by both versions of the interface.
        ("0::/", {"cpu.max": "400000 100000\n"}, 4),
        ("3:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        # One that is told its path on the host, which is not mounted inside.
        ("3:cpu,cpuacct:/kubepods/pod7", {"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        # The least quota of the groups around it, and another period.
        ("0::/pods/pod7", {"pods/pod7/cpu.max": "max 100000\n", "pods/cpu.max": "300000 50000\n"}, 6),
        # A part of a core is one that is used in part.
        ("0::/", {"cpu.max": "350000 100000\n"}, 4),
        ("0::/", {"cpu.max": "10000 100000\n"}, 1),
        # More than the host has, no quota, none that is told, and that of another controller.
        ("0::/", {"cpu.max": "25600000 100000\n"}, HOST),
        ("0::/", {"cpu.max": "max 100000\n"}, HOST),
        ("3:cpu:/", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, HOST),
        ("3:cpuset:/", {"cpuset/cpu.cfs_quota_us": "400000\n", "cpuset/cpu.cfs_period_us": "100000\n"}, HOST),
        ("", {"cpu.max": "400000 100000\n"}, HOST),
    ],
)
def test_the_least_quota_of_the_groups_of_a_process_counts(tmp_path, monkeypatch, group, files, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: range(HOST))
    (tmp_path / "cgroup").write_text(f"{group}\n" if group else "")
    for name, text in files.items():
        path = tmp_path / "mounted" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert cpu_limit.num_cores(tmp_path / "cgroup", tmp_path / "mounted") == expected


@pytest.mark.parametrize(("ranks", "threads"), [(1, 4), (2, 2), (8, 1)])
def test_the_ranks_of_a_machine_share_the_cores_of_the_quota(monkeypatch, ranks, threads):
    """Those of another machine, of which there are as many, have its cores."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(cpu_limit, "num_cores", lambda: 4)
    place = Ranks(local_world_size=ranks, world_size=2 * ranks)
    assert num_threads(None, place) == threads
    assert num_threads(3, place) == 3


def test_threads_are_those_of_the_flag_before_those_of_the_environment(monkeypatch):
    monkeypatch.setattr(cpu_limit, "num_cores", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert [num_threads(asked, Ranks()) for asked in (None, 3)] == [2, 3]
    # No number of threads.
    for value in ("0", "", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert num_threads(None, Ranks()) == 4


def test_the_number_is_printed_for_the_launch_script():
    command = [sys.executable, "-m", "data_engine.processes.cpu_limit"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) == cpu_limit.num_cores()
