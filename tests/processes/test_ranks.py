"""Which rank this is, and stopping by signals, in processes that are really signalled."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch

from data_engine.errors import UserError
from data_engine.models.device import pick_device
from data_engine.processes.ranks import Ranks, join_process_group, set_device
from data_engine.processes.signals import interrupted_by_signals

WAIT = """
import sys, time
from data_engine.processes import signals
from data_engine.processes.exit_report import announce
from data_engine.processes.signals import Stopped
# Where nothing hides it, it is raised once, and in time.
signals.AGAIN_S = 0.5 if sys.argv[2] == "hiding" else 600
stop = signals.Stop(grace_s=float(sys.argv[1])).listen()
announce()
print("ready", flush=True)
try:
    if sys.argv[2] == "polite":
        while not stop.wanted:
            time.sleep(0.01)
        print(stop.wanted, flush=True)
        sys.exit()
    if sys.argv[2] == "polled":
        stop.polled = True
        assert not stop.overdue(), "nothing came"
        while not stop.overdue():
            time.sleep(0.01)
        print("overdue", flush=True)
        sys.exit()
    if sys.argv[2] == "hiding":
        try:
            while True:
                time.sleep(0.01)
        except Stopped:
            print("hidden", flush=True)
    if sys.argv[2].startswith("committing"):
        if sys.argv[2] == "committing late":
            while not stop.wanted:
                time.sleep(0.001)
        with stop.committing():
            print("begun", flush=True)
            while not stop.wanted:
                time.sleep(0.001)
            end = time.monotonic() + 1
            while time.monotonic() < end:
                time.sleep(0.01)
            print("committed", flush=True)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        time.sleep(0.01)
except Stopped:
    print("dropped", flush=True)
"""


def start(grace_s: float, manner: str) -> subprocess.Popen:
    command = [sys.executable, "-c", WAIT, str(grace_s), manner]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_asks_to_stop_and_the_unit_in_hand_goes_on(number):
    with start(60, "polite") as process:
        process.send_signal(number)
        assert process.communicate(timeout=30)[0] == f"{signal.Signals(number).name}\n"
        assert process.returncode == 0


def test_a_hang_up_that_nohup_ignores_stops_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = start(60, "polite")
    finally:
        signal.signal(signal.SIGHUP, before)
    with process:
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGUSR1)
        assert process.communicate(timeout=30)[0] == "SIGUSR1\n"


def test_a_command_under_nohup_goes_on_where_its_terminal_hangs_up():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupted_by_signals():
            inside = signal.getsignal(signal.SIGHUP)
        assert inside is signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_behind_a_command_no_alarm_comes():
    """One that was set for an exception that Python dropped would end the process."""
    with interrupted_by_signals():
        signal.setitimer(signal.ITIMER_REAL, 600)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_unit_that_outlasts_the_grace_time_is_dropped():
    with start(0.2, "busy") as process:
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=30)[0] == "dropped\n"


def test_a_rank_in_lock_step_is_never_interrupted_and_asks_whether_its_grace_time_is_over():
    """Within a call that it makes together with others, it would leave them waiting."""
    with start(0.2, "polled") as process:
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=30)[0] == "overdue\n"


def test_a_dropped_unit_that_hides_the_drop_is_dropped_again():
    with start(0.2, "hiding") as process:
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=30)[0] == "hidden\ndropped\n"


LOST = """
import sys, time
from data_engine.processes import signals
from data_engine.processes.exit_report import announce
signals.AGAIN_S = 600

class Slow:
    def __del__(self):
        print("ready", flush=True)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            time.sleep(0.01)

def work():
    Slow()
    print("worked on", flush=True)
    time.sleep(20)

try:
    if sys.argv[1] == "rank":
        stop = signals.Stop(grace_s=0.1).listen()
        announce()
        work()
    else:
        with signals.interrupted_by_signals():
            work()
except (signals.Stopped, KeyboardInterrupt) as stopped:
    print(type(stopped).__name__, flush=True)
"""


@pytest.mark.parametrize(("what", "raised"), [("rank", "Stopped"), ("command", "Interrupted")])
def test_a_signal_that_comes_while_a_destructor_runs_is_not_lost_and_prints_nothing(what, raised):
    """Python drops what is raised there, and would print a traceback of it."""
    command = [sys.executable, "-c", LOST, what]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        told, errors = process.communicate(timeout=60)
    assert (told, errors) == (f"worked on\n{raised}\n", "")


IMPORTING = """
import signal, sys
from data_engine.processes.signals import interrupted_by_signals
try:
    with interrupted_by_signals():
        exec("signal.raise_signal(signal.{name})")
except KeyboardInterrupt:
    sys.exit(75)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_the_exit_code_of_a_command_is_its_own_where_a_signal_comes_while_a_text_is_executed(tmp_path, name):
    """As dataclasses of what is imported are made. Python would end a module by SIGINT, whatever was caught."""
    (tmp_path / "importing.py").write_text(IMPORTING.format(name=name))
    assert subprocess.run([sys.executable, "-m", "importing"], cwd=tmp_path, check=False).returncode == 75


def test_another_exception_in_a_destructor_is_printed_as_ever_and_nothing_is_changed_behind_the_work():
    code = """if True:
        import signal, sys
        from data_engine.processes.signals import Stop
        class Broken:
            def __del__(self):
                raise ValueError("broken")
        before = sys.unraisablehook
        stop = Stop(grace_s=600).listen()
        Broken()
        signal.raise_signal(signal.SIGTERM)
        stop.disarm()
        print(sys.unraisablehook is before, signal.getitimer(signal.ITIMER_REAL))
    """
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "ValueError: broken" in done.stderr
    assert done.stdout == "True (0.0, 0.0)\n"


@pytest.mark.parametrize("signalled", ["before", "inside"])
def test_a_commit_that_outlasts_the_grace_time_ends_whole_and_what_follows_is_dropped(signalled):
    with start(0.3, "committing late" if signalled == "before" else "committing") as process:
        if signalled == "inside":
            assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGTERM)
        told = process.communicate(timeout=30)[0]
        assert told.removeprefix("begun\n") == "committed\ndropped\n"


AGAIN = """
import signal
from data_engine.processes import signals
stop = signals.Stop(grace_s=600).listen()
signal.raise_signal(signal.SIGUSR1)
signal.raise_signal(signal.SIGTERM)
print(stop.wanted, flush=True)
signals.SAME_SIGNAL_S = 0
signal.raise_signal(signal.SIGTERM)
print("still there", flush=True)
"""


def test_a_second_signal_at_once_counts_for_nothing_and_a_later_one_exits_at_once(monkeypatch, tmp_path):
    """SLURM signals all processes of a job, and its batch script passes its own on. What exits at once tells the launch
    script its code, which else takes it for a rank that died.
    """
    monkeypatch.setenv("DATA_ENGINE_EXIT_FILE", str(tmp_path / "exit"))
    done = subprocess.run([sys.executable, "-c", AGAIN], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (75, "SIGUSR1\n")
    assert json.loads((tmp_path / "exit").read_text()) == {"rank": 0, "code": 75}


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
