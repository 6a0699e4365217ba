"""Stopping by signals, in processes that are really signalled."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_engine.processes.signals import interrupted_by_signals, leaving_at_once

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
    if sys.argv[2] == "cleaning up":
        try:
            while True:
                time.sleep(0.01)
        finally:
            with stop.committing():
                print("committed", flush=True)
            end = time.monotonic() + 1
            while time.monotonic() < end:
                time.sleep(0.01)
            print("cleaned up", flush=True)
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


SLOW_MODULE = """
import time
print("importing", flush=True)
end = time.monotonic() + {seconds}
while time.monotonic() < end:
    time.sleep(0.01)
print("imported", flush=True)
"""
IMPORTS = """
import sys, time
from data_engine.processes import signals
signals.AGAIN_S = 600
try:
    if sys.argv[1] == "rank":
        signals.Stop(grace_s=0).listen()
        import slow_module
        time.sleep(20)
    elif sys.argv[1] == "command":
        with signals.interrupted_by_signals():
            import slow_module
            time.sleep(20)
    else:
        with signals.leaving_at_once():
            import slow_module
finally:
    print("cleaned up", flush=True)
"""


def importing(folder: Path, what: str, seconds: float) -> subprocess.Popen:
    (folder / "slow_module.py").write_text(SLOW_MODULE.format(seconds=seconds))
    command = [sys.executable, "-c", IMPORTS, what]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder)
    assert process.stdout.readline() == "importing\n"
    return process


@pytest.mark.parametrize(("what", "raised"), [("rank", "Stopped"), ("command", "Interrupted")])
def test_a_signal_that_comes_while_a_module_is_imported_waits_until_it_is(tmp_path, what, raised):
    with importing(tmp_path, what, seconds=1) as process:
        process.send_signal(signal.SIGTERM)
        told, errors = process.communicate(timeout=60)
    assert told == "imported\ncleaned up\n"
    assert errors.splitlines()[-1] == f"data_engine.processes.signals.{raised}"


def test_a_second_signal_ends_a_command_whose_import_hangs(tmp_path):
    with importing(tmp_path, "command", seconds=600) as process:
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        told, errors = process.communicate(timeout=60)
    assert (told, process.returncode) == ("", 75)
    assert errors == "data-engine: error: interrupted; run the same command again to go on\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_ends_a_process_at_once_that_imports_torch(tmp_path, number):
    with importing(tmp_path, "torch", seconds=600) as process:
        process.send_signal(number)
        told, errors = process.communicate(timeout=60)
    assert (told, process.returncode) == ("", 75)
    assert errors == "data-engine: error: interrupted; run the same command again to go on\n"


def test_behind_an_import_signals_are_handled_as_before():
    """One that is ignored, as a hang-up is under nohup, is within it too."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with leaving_at_once():
            inside = signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGTERM)
        assert (inside[0], signal.getsignal(signal.SIGHUP)) == (signal.SIG_IGN, signal.SIG_IGN)
        assert inside[1] is not signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_no_grace_time_follows_a_signal_that_comes_behind_the_work():
    code = """if True:
        import signal, time
        from data_engine.processes.signals import Stop
        stop = Stop(grace_s=0).listen()
        stop.disarm()
        signal.raise_signal(signal.SIGTERM)
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            time.sleep(0.01)
        print(stop.wanted)
    """
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout == b"SIGTERM\n"


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


def test_a_commit_on_the_way_out_leaves_what_cleans_up_behind_it_alone():
    with start(0, "cleaning up") as process:
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=30)[0] == "committed\ncleaned up\ndropped\n"


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
