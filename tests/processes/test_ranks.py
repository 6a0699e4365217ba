"""Which rank this is, which device it works on, and what it tells the launch script."""

import json
import subprocess
import sys
import time

import pytest
import torch

from data_engine.errors import UserError
from data_engine.models.device import pick_device
from data_engine.processes.ranks import Ranks, join_process_group, set_device


def test_ranks_come_from_what_torchrun_sets(monkeypatch):
    for name, value in {"RANK": 5, "WORLD_SIZE": 8, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 4}.items():
        monkeypatch.setenv(name, str(value))
    assert Ranks.from_environment() == Ranks(5, 8, 1, 4)


def test_a_process_knows_how_long_ago_it_was_started():
    code = "from data_engine.processes.ranks import since_start_s; print(since_start_s())"
    before = time.monotonic()
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    # The system tells hundredths.
    assert 0 < float(told) < time.monotonic() - before + 0.02


def test_a_process_without_a_launcher_is_alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "DATA_ENGINE_EXIT_FILE"):
        monkeypatch.delenv(name, raising=False)
    assert Ranks.from_environment() == Ranks(0, 1, 0, 1)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        # Such a rank would sample and score, and leave the pairing to a rank 0 that nobody has started.
        ({"RANK": "1"}, "RANK=1, and WORLD_SIZE is not set: ranks are numbered from 0"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2, and WORLD_SIZE is 2"),
        ({"RANK": ""}, 'RANK="", expected a number from 0 on'),
        ({"WORLD_SIZE": "two"}, 'WORLD_SIZE="two", expected a number from 1 on'),
        ({"WORLD_SIZE": "0"}, 'WORLD_SIZE="0", expected'),
        ({"LOCAL_RANK": "-1"}, 'LOCAL_RANK="-1", expected'),
    ],
)
def test_an_environment_that_names_no_place_in_a_job_is_refused(monkeypatch, given, says):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "DATA_ENGINE_EXIT_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught:
        Ranks.from_environment()
    assert says in str(caught.value)
    assert "for one process unset RANK, WORLD_SIZE" in str(caught.value)


@pytest.mark.parametrize(("given", "lacks"), [({}, "RANK, WORLD_SIZE, MASTER_ADDR"), ({"RANK": "0"}, "WORLD_SIZE, M")])
def test_ranks_that_cannot_find_each_other_are_refused(monkeypatch, given, lacks):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught:
        join_process_group(Ranks(0, 2, 0, 1), "cpu")
    assert f"a split model takes all ranks, and the environment lacks {lacks}" in str(caught.value)


@pytest.mark.parametrize("machines", [1, 2])
def test_fewer_ranks_than_asked_for_is_an_error_that_names_the_trap(monkeypatch, tmp_path, machines):
    """Of each machine: the ranks of another one are not among those that were asked for here."""
    monkeypatch.setenv("NUM_PROCESSES", "2")
    monkeypatch.setenv("WORLD_SIZE", str(machines))
    monkeypatch.setenv("DATA_ENGINE_EXIT_FILE", str(tmp_path / "exit"))
    with pytest.raises(UserError, match=r"2 ranks were asked for, 1 started.*MULTI_GPU"):
        Ranks.from_environment()


def test_a_number_that_is_none_does_not_hide_its_message_behind_another_error(monkeypatch, tmp_path):
    from data_engine.processes import exit_report

    monkeypatch.setenv("RANK", "first")
    monkeypatch.setenv("DATA_ENGINE_EXIT_FILE", str(tmp_path / "exit"))
    (tmp_path / "exit").touch()
    exit_report.announce()
    exit_report.report_exit(2, tmp_path / "work")
    assert [json.loads(line)["rank"] for line in (tmp_path / "exit").read_text().splitlines()] == [0, 0]


def test_a_rank_tells_the_launch_script_its_process_and_its_code(monkeypatch, tmp_path):
    from data_engine.processes import exit_report

    monkeypatch.setenv("DATA_ENGINE_EXIT_FILE", str(tmp_path / "exit"))
    monkeypatch.setenv("RANK", "3")
    (tmp_path / "exit").touch()
    exit_report.announce()
    exit_report.report_exit(75, tmp_path / "work")
    first, second = map(json.loads, (tmp_path / "exit").read_text().splitlines())
    assert first["rank"] == 3
    assert first["pid"] > 0
    assert second == {"rank": 3, "code": 75}
    [log] = (tmp_path / "work/logs").iterdir()
    assert log.name.startswith("rank-3-")
    assert json.loads(log.read_text())["exit_code"] == 75
    # The script has ended, and its folder with it, and the rank ends as it would have.
    monkeypatch.setenv("DATA_ENGINE_EXIT_FILE", str(tmp_path / "gone/exit"))
    exit_report.announce()
    exit_report.report_exit(0, tmp_path / "work")
    assert [json.loads(line)["exit_code"] for line in log.read_text().splitlines()] == [75, 0]


def test_each_rank_works_on_a_gpu_of_its_own_and_more_ranks_than_gpus_are_refused(monkeypatch):
    """Two GPUs, which this machine need not have."""
    current, shares = [], []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *given: shares.append(given))
    for rank in (0, 1):
        for asked in ("auto", "cuda"):
            set_device(pick_device(Ranks(8 + rank, 16, rank, 8).device(asked)), 0.5)
    set_device(pick_device("cpu"), 0.5)
    assert current == [torch.device("cuda", 0)] * 2 + [torch.device("cuda", 1)] * 2
    assert shares == [(0.5, device) for device in current], "--memory_fraction holds for its GPU"
    with pytest.raises(UserError, match="'cuda:2' was asked for, but torch sees 2 of them"):
        pick_device(Ranks(10, 16, 2, 8).device("auto"))
