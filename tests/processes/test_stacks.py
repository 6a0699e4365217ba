"""The stacks of a process's threads on a signal, in processes that are really signalled."""

import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from data_engine.processes import stacks
from data_engine.processes.stacks import _stacks

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


def items():
    yield 1
    yield 2


def outermost(done: threading.Event) -> None:
    while not done.is_set():
        sum(items())


def test_the_stack_of_a_thread_that_works_is_shown_whole():
    """A generator that yields while it is looked at has lost its caller, and with it all outer frames."""
    before, done = sys.getswitchinterval(), threading.Event()
    thread = threading.Thread(target=outermost, args=(done,), name="working")
    thread.start()
    sys.setswitchinterval(1e-5)
    shown, until = [], time.monotonic() + 3
    try:
        while time.monotonic() < until:
            shown.append(_stacks().partition("Thread working:\n")[2].partition("Thread ")[0])
    finally:
        sys.setswitchinterval(before)
        done.set()
        thread.join()
    assert [text for text in shown if "in outermost\n" not in text] == []
    assert any("in items\n" in text for text in shown), "no generator was ever met"
    assert all(text.index("in run\n") < text.index("in outermost\n") for text in shown)


@pytest.mark.parametrize(("received", "shown"), [((signal.SIGTERM,), 0), ((signal.SIGTERM, signal.SIGUSR2), 1)])
def test_stacks_are_shown_for_their_own_signal_alone(monkeypatch, received, shown):
    """Python writes the number of each signal that it handles."""
    shows = []
    monkeypatch.setattr(stacks, "_stacks", lambda: shows.append(received) or "")
    woken, wakes = socket.socketpair()
    with woken:
        wakes.send(bytes(received))
        wakes.close()
        stacks._listen(woken, signal.SIGUSR2)
    assert len(shows) == shown


def test_text_that_no_encoding_has_does_not_end_the_listening_thread(tmp_path):
    """A folder with a byte that is no UTF-8."""
    folder = tmp_path / "caf\udce9"
    folder.mkdir()
    (folder / "script.py").write_text(STUCK)
    process = subprocess.Popen(
        [sys.executable, folder / "script.py"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    for _ in range(2):
        process.send_signal(signal.SIGUSR2)
        while "Thread MainThread:" not in process.stderr.readline():
            pass
        assert "caf\\udce9" in process.stderr.readline()
    process.kill()
    process.communicate()


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
