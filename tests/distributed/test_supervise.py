"""What launch/supervise.py makes of signals and of its ranks' ends, by its functions alone."""

import runpy
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_engine import exit_codes

ROOT = Path(__file__).parents[2]
SUPERVISE = runpy.run_path(str(ROOT / "launch" / "supervise.py"))
exit_code, listen, launch_command, main = (
    SUPERVISE[name] for name in ("exit_code", "listen", "launch_command", "main")
)


@pytest.mark.parametrize("code", [value for name, value in vars(exit_codes).items() if name.isupper()])
def test_each_exit_code_of_a_rank_is_that_of_the_job_and_is_told_by_the_docs(code):
    assert exit_code([code], 1, 1, signalled=False) == code
    assert f"\n| {code} | " in (ROOT / "docs/faults.md").read_text()


@pytest.mark.parametrize(
    ("codes", "signalled", "expected"),
    [
        ([0, 0], False, 0),
        ([0, 1], False, 1),
        ([2, 0], False, 2),
        ([3, 0], False, 3),
        ([4, 0], False, 4),
        ([0, 75], False, 75),
        ([0, 9], False, 1),
        # A rank failed or died, so the launcher stopped the other: a bug, not an invitation to run again.
        ([1, 75], False, 1),
        ([75], False, 1),
        ([], False, 1),
        ([3, 75], False, 3),
        ([2, 75], False, 2),
        # Stopped by a signal: ranks that were killed, or had not yet begun, held nothing that counts.
        ([75, 75], True, 75),
        ([75], True, 75),
        ([], True, 75),
        ([3, 75], True, 75),
        ([1, 75], True, 1),
        # It came when the work was done.
        ([0, 0], True, 0),
    ],
)
def test_the_codes_of_two_ranks_make_one(codes, signalled, expected):
    assert exit_code(codes, 2, 2, signalled) == expected
    assert exit_code(codes[::-1], 2, 2, signalled) == expected


@pytest.mark.parametrize(
    ("codes", "signalled", "expected"),
    [
        ([3], False, 3),
        ([4], False, 4),
        ([2], False, 2),
        # The launcher may have stopped it because the other had died.
        ([75], False, 1),
        ([1], False, 1),
        ([0], False, 1),
        ([3], True, 75),
        ([0], True, 75),
    ],
)
def test_a_rank_that_was_stopped_before_it_began_hides_no_code(codes, signalled, expected):
    assert exit_code(codes, 1, 2, signalled) == expected
    # One that had begun has died.
    assert exit_code(codes, 2, 2, signalled) == (1 if expected in (3, 4) else expected)


@pytest.fixture
def received() -> Iterator[list[signal.Signals]]:
    """What this process's ranks would get, while the script's handlers stand in it."""
    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP]
    before = [signal.getsignal(number) for number in numbers]
    received: list[signal.Signals] = []
    listen(received)
    yield received
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_what_slurm_sends_to_all_processes_and_its_batch_script_passes_on_is_one_signal(received, monkeypatch):
    now = 100.0
    monkeypatch.setitem(listen.__globals__, "time", types.SimpleNamespace(monotonic=lambda: now))
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGUSR1)
    assert received == [signal.SIGTERM]
    now += 2.5
    signal.raise_signal(signal.SIGTERM)
    assert received == [signal.SIGTERM] * 2


def test_a_second_ctrl_c_counts_at_once(received):
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    assert received == [signal.SIGINT] * 2


def test_a_signal_that_is_ignored_stays_so(received):
    """As a hangup is under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    listen(received)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_signal_during_the_check_starts_no_rank(received, monkeypatch):
    monkeypatch.setitem(main.__globals__, "check", lambda *_: signal.raise_signal(signal.SIGTERM) or 0)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a rank was started"))
    monkeypatch.setenv("NUM_PROCESSES", "1")
    monkeypatch.setenv("ACCELERATE_CONFIG", "a.yaml")
    assert main([]) == 75


def test_threads_of_all_ranks_are_held_against_the_cores(received, monkeypatch):
    monkeypatch.setitem(main.__globals__, "check", lambda *_: 0)
    monkeypatch.setitem(main.__globals__, "cpu_wait", types.SimpleNamespace(apply=sys.exit))
    for name, value in {"NUM_PROCESSES": "3", "OMP_NUM_THREADS": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 6


def test_one_of_several_machines_says_which_it_is_and_asks_for_the_ranks_of_all(monkeypatch):
    settings = {"NUM_MACHINES": "3", "MACHINE_RANK": "1", "MAIN_ADDRESS": "10.0.0.7", "MAIN_PORT": "20001"}
    for name, value in (settings | {"ACCELERATE_CONFIG": "a.yaml"}).items():
        monkeypatch.setenv(name, value)
    command = launch_command("data_engine", 8, "/tmp/a", ["--limit", "4"])
    words = "--num_processes 24 --num_machines 3 --machine_rank 1 --main_process_ip 10.0.0.7 --main_process_port 20001"
    words += " --same_network"
    assert words in " ".join(command)
    assert command[-5:] == ["--module", "data_engine", "run", "--limit", "4"]
