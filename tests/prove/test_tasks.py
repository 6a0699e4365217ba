"""The proof's tasks: killed at any point and started again, none is done twice, and none half done counts."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tasks
from tasks import Task

WRITE = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])"
# Two tasks, the second of which needs the first, waits for a file, and notes each of its starts.
PROGRAM = """
import sys
from pathlib import Path
import tasks
folder = Path(sys.argv[1])
SLOW = '''
import pathlib, sys, time
out, folder = map(pathlib.Path, sys.argv[1:])
with open(folder / "starts", "a") as file:
    file.write("x")
out.write_text("half")
while not (folder / "go").exists():
    time.sleep(0.01)
out.write_text("whole")
'''
FAST = '''
import pathlib, sys
out, folder = map(pathlib.Path, sys.argv[1:])
with open(folder / "first starts", "a") as file:
    file.write("x")
out.write_text("first")
'''
first = tasks.Task(folder / "first", lambda out: [("-c", FAST, str(out), str(folder))])
second = tasks.Task(folder / "second", lambda out: [("-c", SLOW, str(out), str(folder))], needs=(first.out,))
tasks.run_all([second, first])
"""


def start(folder):
    path = os.pathsep.join([str(Path(tasks.__file__).parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder)], env=os.environ | {"PYTHONPATH": path}, start_new_session=True
    )


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_was_killed_is_done_again_and_what_was_done_is_not(tmp_path):
    running = start(tmp_path)
    wait_for((tmp_path / "starts").exists)
    wait_for(lambda: (tmp_path / ".second.making").exists())
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert not (tmp_path / "second").exists()
    (tmp_path / "go").touch()
    again = start(tmp_path)
    assert again.wait(60) == 0
    assert (tmp_path / "second").read_text() == "whole"
    assert (tmp_path / "starts").read_text() == "xx"
    assert (tmp_path / "first starts").read_text() == "x"


def test_a_command_that_fails_is_told_with_the_end_of_its_log(tmp_path):
    bad = Task(tmp_path / "bad", lambda out: [("-c", "import sys; print('why it failed'); sys.exit(3)")])
    with pytest.raises(tasks.Failed, match=r"ended with 3.*bad\.log ends with:\nwhy it failed"):
        tasks.run_all([bad])
    assert not bad.is_done


def test_a_failure_stops_what_else_runs(tmp_path):
    endless = Task(tmp_path / "endless", lambda out: [("-c", "import time; time.sleep(1000)")])
    bad = Task(tmp_path / "bad", lambda out: [("-c", "raise SystemExit(1)")])
    with pytest.raises(tasks.Failed):
        tasks.run_all([endless, bad])


def test_commands_of_a_task_run_one_after_the_other(tmp_path):
    append = "import sys; open(sys.argv[1], 'a').write(sys.argv[2])"
    both = Task(tmp_path / "both", lambda out: [("-c", append, str(out), "a"), ("-c", append, str(out), "b")])
    tasks.run_all([both])
    assert both.out.read_text() == "ab"
