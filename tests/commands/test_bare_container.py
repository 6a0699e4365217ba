"""Commands in containers that lack what others have: a name of the user and a home, a folder for temporary files."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_engine.commands import main

GOLDENS = Path(__file__).parents[1] / "goldens/llava"
# As the system answers for a user id that no list of users has.
NAMELESS = """
import os, pwd, sys

def no_entry(uid):
    raise KeyError(uid)

pwd.getpwuid = no_entry
sys.argv[1:] = ["--version"]
from data_engine.commands.main import entry
assert entry() == 0
import data_engine.preferences.word_count
print(os.path.expanduser("~"))
"""


@pytest.mark.parametrize(("home", "then"), [({}, "/"), ({"HOME": "/somewhere"}, "/somewhere")], ids=["none", "set"])
def test_a_user_without_a_name_and_a_home_can_pair(home, then):
    environment = {name: value for name, value in os.environ.items() if name != "HOME"} | home
    done = subprocess.run(
        [sys.executable, "-c", NAMELESS], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, [then]), done.stderr


@pytest.mark.parametrize("command", ["run", "validate"])
def test_without_a_folder_for_temporary_files_the_variable_to_set_is_named(tmp_path, command):
    """As in a container whose file system may only be read; here no file may have a byte."""
    flags = ["--dataset_path", str(GOLDENS / "dataset"), "--work_dir", str(tmp_path / "work")]
    for role in ("instruct", "reward"):
        flags += [f"--{role}_model_path", str(GOLDENS / role), f"--{role}_model_name", "llava-1.5-7b"]
    limited = ["sh", "-c", 'ulimit -f 0; exec "$@"', "sh", sys.executable, "-m", "data_engine", command, *flags]
    done = subprocess.run(limited, capture_output=True, text=True, check=False)
    says = "no folder takes temporary files: set TMPDIR to one that can be written and has room"
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"data-engine: error: {says}"
    assert "Traceback" not in done.stderr


def test_a_path_of_a_user_that_this_machine_does_not_know_is_told_as_it_was_given(tmp_path, capsys):
    """As one of a login node, in a container."""
    flags = ["--dataset_path", "~nobody-of-that-name/q.parquet", "--work_dir", str(tmp_path / "work")]
    assert main.main(["validate", *flags]) == 2
    told = capsys.readouterr().err
    assert '"~nobody-of-that-name/q.parquet"' in told
    assert "Traceback" not in told


SIGNALLED = """
import os, signal, sys
from data_engine.commands.main import COMMANDS, entry

def work(argv):
    # The first process of a container gets no signal that it does not handle.
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    os.kill(os.getpid(), getattr(signal, argv[0]))
    while True:
        signal.pause()

import data_engine.commands.status as status
status.main = work
sys.exit(entry())
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT", "SIGUSR1"])
def test_a_signal_ends_a_command_that_is_the_first_process_of_a_container(name):
    command = [sys.executable, "-c", SIGNALLED, "status", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    told = "data-engine: error: interrupted; run the same command again to go on\n"
    assert (done.returncode, done.stderr) == (75, told)


ENDING = """
import atexit, os, signal, sys, time
from data_engine.commands import status
from data_engine.commands.main import entry

def work(argv):
    # As what may hang.
    atexit.register(time.sleep, 20)
    atexit.register(lambda: os.kill(os.getpid(), int(argv[0])))
    return 3

status.main = work
sys.exit(entry())
"""
# Behind Python's own end the C library calls raise(the exit code), as a signal might come while C++ code cleans up.
ENDED = """
import ctypes, sys
from data_engine.commands import status
from data_engine.commands.main import entry

library = ctypes.CDLL(None)
assert library.on_exit(getattr(library, "raise"), None) == 0
status.main = lambda argv: int(argv[0])
sys.exit(entry())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1])
def test_a_command_that_a_signal_ends_behind_its_work_has_its_own_exit_code(number):
    for code, exit_code in ((ENDING, 3), (ENDED, number)):
        command = [sys.executable, "-c", code, "status", str(int(number))]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=15)
        assert (done.returncode, done.stderr) == (exit_code, "")


THREADLESS = """
import sys, threading
from data_engine.commands.main import COMMANDS, entry

def work(argv):
    # As threading does it where the system refuses.
    if argv == ["thread"]:
        raise RuntimeError("can't start new thread")
    if argv == ["process"]:
        raise BlockingIOError(11, "Resource temporarily unavailable")
    raise RuntimeError("another one")

import data_engine.commands.status as status
status.main = work
sys.exit(entry())
"""


@pytest.mark.parametrize(("what", "code"), [("thread", 2), ("process", 2), ("other", 1)])
def test_a_limit_on_processes_is_told_as_one_and_another_failure_is_not(what, code):
    done = subprocess.run(
        [sys.executable, "-c", THREADLESS, "status", what], capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert ("the system starts no more processes or threads: raise" in done.stderr) == (code == 2)
    assert ("Traceback" in done.stderr) == (code == 1)
