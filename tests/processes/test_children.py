"""What a loop starts, by real processes and real signals."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from waiting import until

from data_engine.errors import UserError
from data_engine.processes import children as children_module
from data_engine.processes.children import LOCK, Children, LoopStopped

# Tells that it has begun, and what it hears.
LISTENS = """
import signal, sys, time
from pathlib import Path
folder, code, stubborn = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] == ["stubborn"]
def hear(number, frame):
    with open(folder / "heard", "a") as file:
        file.write(signal.Signals(number).name + " ")
    if not stubborn:
        sys.exit(code)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, hear)
(folder / "begun").touch()
time.sleep(60)
"""


def send_when_begun(folder: Path, *numbers: int) -> threading.Thread:
    def send() -> None:
        until((folder / "begun").exists, "the child")
        for number in numbers:
            os.kill(os.getpid(), number)
            # The second one kills.
            until(lambda: heard(folder), "the signal")

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def heard(folder: Path) -> int:
    file = folder / "heard"
    return len(file.read_text().split()) if file.exists() else 0


def listener(folder: Path, *more: str) -> list[str]:
    return [sys.executable, "-c", LISTENS, str(folder), *more]


def test_the_code_of_a_child_and_what_it_says(tmp_path, capfd):
    children, log = Children(tmp_path), tmp_path / "log"
    log.write_bytes(b"of an earlier start\n")
    with children.alone():
        say = "import sys; print('one', flush=True); print('two', file=sys.stderr); sys.exit(7)"
        assert children.run([sys.executable, "-c", say], log) == 7
        assert children.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], log) == -9
        assert children.run(["sh", "-c", 'test "$A" = own && test "$HOME" != other'], A="own", HOME="other") == 0
    assert log.read_bytes() == b"of an earlier start\none\ntwo\n"
    assert capfd.readouterr().out == "one\ntwo\n"


def test_what_cannot_be_started_is_told_by_its_name(tmp_path):
    script = tmp_path / "train"
    script.write_text("echo a")
    script.chmod(0o755)
    children = Children(tmp_path)
    with children.alone(), pytest.raises(UserError) as refused:
        children.run([str(script)], tmp_path / "log")
    assert str(refused.value) == f'"{script}" cannot be started: Exec format error'


def test_a_child_that_asks_is_told_nothing(tmp_path):
    """Else it would wait for a person, or take what is meant for the loop."""
    ours, theirs = os.pipe()
    os.write(theirs, b"yes\n")
    before = os.dup(0)
    os.dup2(ours, 0)
    try:
        children = Children(tmp_path)
        with children.alone():
            assert children.run(["sh", "-c", "read answer || exit 9"]) == 9
    finally:
        os.dup2(before, 0)
        for one in (ours, theirs, before):
            os.close(one)


def test_what_a_child_says_is_copied_in_parts_and_whole(tmp_path, capfd, monkeypatch):
    parts = []
    monkeypatch.setattr(children_module, "MOST_BYTES", 1000)
    children = Children(tmp_path)
    with children.alone(), monkeypatch.context() as patch:
        patch.setattr(sys.stdout, "write", parts.append)
        assert children.run(["sh", "-c", "seq 1000"], tmp_path / "log") == 0
    assert max(map(len, parts)) == 1000
    assert "".join(parts).split() == [str(number) for number in range(1, 1001)]


@pytest.mark.parametrize(
    ("log", "sent", "expected"),
    [
        ("log", signal.SIGTERM, "SIGTERM"), ("log", signal.SIGINT, "SIGINT"), ("log", signal.SIGUSR1, "SIGTERM"),
        (None, signal.SIGTERM, "SIGTERM"), (None, signal.SIGUSR1, "SIGUSR1"),
    ],
)  # fmt: skip
def test_a_signal_goes_to_the_child_and_stops_the_loop(tmp_path, log, sent, expected):
    """To a trainer as programs know it, to run_engine.sh as it is. A child that ends with 0 may not be done."""
    children = Children(tmp_path)
    with children.alone():
        thread = send_when_begun(tmp_path, sent)
        with pytest.raises(LoopStopped):
            children.run(listener(tmp_path, "0"), log and tmp_path / log)
        thread.join()
        with pytest.raises(LoopStopped):
            children.run(["true"])
    assert (tmp_path / "heard").read_text() == f"{expected} "
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_the_second_signal_kills_a_trainer_with_all_that_it_started(tmp_path, monkeypatch):
    # Any later one, and not only one that comes behind the time in which a signal that is sent twice counts once.
    monkeypatch.setattr("data_engine.processes.children.SAME_SIGNAL_S", 0)
    children = Children(tmp_path)
    script = f'"{sys.executable}" -c "$1" "$2" 0 stubborn & echo $! > "$2/pid"; trap "" TERM; wait; wait'
    with children.alone():
        thread = send_when_begun(tmp_path, signal.SIGTERM, signal.SIGTERM)
        with pytest.raises(LoopStopped):
            children.run(["sh", "-c", script, "sh", LISTENS, str(tmp_path)], tmp_path / "log")
        thread.join()
    assert (tmp_path / "heard").read_text() == "SIGTERM "
    pid = int((tmp_path / "pid").read_text())
    until(lambda: is_gone(pid), "the end of what the trainer started")


def test_a_signal_repeated_at_once_counts_once_unless_it_is_from_the_keyboard(tmp_path):
    """SLURM signals all processes of a job, and its batch script passes its own on."""
    children = Children(tmp_path)
    with children.alone():
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert children._received == [signal.SIGTERM, signal.SIGINT, signal.SIGINT]


def test_a_signal_that_is_ignored_stays_so(tmp_path):
    """As a hang-up is under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        children = Children(tmp_path)
        with children.alone():
            os.kill(os.getpid(), signal.SIGHUP)
            assert children.run(["sh", "-c", "kill -HUP $$; exit 3"]) == 3
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def refuse(*_arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    children = Children(tmp_path)
    with children.alone():
        assert children.run(["true"]) == 0
    assert f"{tmp_path} cannot be locked (No locks available): start no second loop there" in caplog.text


def test_a_second_loop_is_refused_while_the_first_works(tmp_path):
    # Of one whose number was longer.
    (tmp_path / LOCK).write_text("9" * 15)
    first = Children(tmp_path)
    with first.alone():
        for _ in range(2):
            with pytest.raises(UserError, match=rf"\(process {os.getpid()}\)"):
                Children(tmp_path).alone().__enter__()
            # Behind a child, whose number it was, it is the loop's again.
            first.run(["true"])
    with Children(tmp_path).alone():
        pass


def test_a_trainer_that_outlives_its_loop_keeps_others_away(tmp_path):
    start = (
        "import sys; from pathlib import Path; from data_engine.processes.children import Children\n"
        "children = Children(Path(sys.argv[1]))\n"
        "with children.alone(): children.run(sys.argv[2:], Path(sys.argv[1]) / 'log')"
    )
    first = subprocess.Popen([sys.executable, "-c", start, str(tmp_path), *listener(tmp_path, "0")])
    until((tmp_path / "begun").exists, "the child")
    first.kill()
    first.wait()
    with pytest.raises(UserError, match=r"what it started still does \(process \d+\)") as refused:
        Children(tmp_path).alone().__enter__()
    os.kill(int(str(refused.value).partition("(process ")[2].partition(")")[0]), signal.SIGTERM)
    until(lambda: heard(tmp_path), "the end of the child")

    def free() -> bool:
        try:
            with Children(tmp_path).alone():
                return True
        except UserError:
            return False

    until(free, "the lock")
