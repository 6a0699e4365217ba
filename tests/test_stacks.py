"""The stacks of a process's threads on a signal, in processes that are really signalled."""

import signal
import subprocess
import sys
import time

import pytest

BUSY = """
import os, signal, sys, threading, time
from data_engine.processes import stacks

def deep(calls):
    return calls and deep(calls - 1)

def calling():
    while True:
        deep(200)

def starting():
    while True:
        brief = [threading.Thread(target=deep, args=(20,)) for _ in range(4)]
        for thread in brief:
            thread.start()
        for thread in brief:
            thread.join()

stacks.dump_on_signal(signal.SIGUSR2)
for work in (calling, starting):
    threading.Thread(target=work, name=work.__name__, daemon=True).start()
until = time.monotonic() + float(sys.argv[1])
while time.monotonic() < until:
    os.kill(os.getpid(), signal.SIGUSR2)
    time.sleep(0.001)
os._exit(0)
"""
STUCK = """
import ctypes, signal
from data_engine.processes import stacks

stacks.dump_on_signal(signal.SIGUSR2)
print("ready", flush=True)
# A semaphore at 0, in C, waited for again after each signal: as in a collective whose other ranks are gone.
ctypes.CDLL(None).sem_wait(ctypes.create_string_buffer(64))
"""
HANGS = 'Thread MainThread:\n  File "<string>", line 8, in <module>\n'


def test_threads_that_come_go_and_work_while_they_are_shown_crash_nothing():
    # Written by the signal's handler itself, in the midst of them, this died of SIGSEGV within milliseconds.
    done = subprocess.run([sys.executable, "-c", BUSY, "2"], stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 0
    for thread in ("MainThread", "calling", "starting"):
        assert f"Thread {thread}:" in done.stderr


@pytest.fixture
def stuck(tmp_path):
    """A process about to hang, and the file it writes its stacks to."""
    errors = tmp_path / "stderr"
    with open(errors, "w") as stderr:
        process = subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=stderr, text=True)
    yield process, errors
    process.kill()
    process.communicate()


def test_a_main_thread_that_hangs_in_c_is_shown(stuck):
    process, errors = stuck
    assert process.stdout.readline() == "ready\n"
    # Signalled until it hangs: the first signal can come between its line and the call.
    until = time.monotonic() + 30
    while HANGS not in errors.read_text() and time.monotonic() < until:
        process.send_signal(signal.SIGUSR2)
        time.sleep(0.05)
    assert HANGS in errors.read_text()
    assert process.poll() is None, "the signal ended the wait"
