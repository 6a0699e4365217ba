"""`status --watch` on real terminals: what the screen shows at several sizes, and how the terminal is left."""

import os
import re
import shutil
import signal
import subprocess
import sys
import termios
import time

import pytest
from watched_run import STAGES, Terminal, busy_run, finish, make_run, warn


def watch(work_dir, *arguments, **options):
    return Terminal("status", str(work_dir), "--watch", *arguments, **options)


def has(*words):
    return lambda lines: all(any(word in line for line in lines) for word in words)


def test_a_screen_keeps_what_matters_most_as_the_window_shrinks_and_q_leaves_it(tmp_path):
    with watch(busy_run(tmp_path), "600", size=(120, 40)) as terminal:
        lines = terminal.shows(has("q or Ctrl-C leaves"))
        assert lines[0].startswith(str(tmp_path))
        assert terminal.screen.is_alternate
        assert terminal.screen.cursor.hidden
        assert not termios.tcgetattr(terminal.ours)[3] & termios.ECHO
        # 10 of 40 units: 10 s each on the one rank that works leave 30 * 10 s; nothing is known of the last stage.
        assert "41 % done, more than 5 min left" in lines[1]
        row = next(line for line in lines if line.startswith("instruct_logps"))
        assert row.split()[1:] == ["10/40", "━" * 7 + "╌" * 23, "25", "%", "8.0", "1", "5", "min"]
        assert has("   1  dead", "   2  stalled", "   0  working", "row 7 cannot be read", "node7")(lines)

        terminal.resize(80, 24)
        lines = terminal.shows(has("q or Ctrl-C leaves"))
        row = next(line for line in lines if line.startswith("instruct_logps"))
        assert row.split()[1] == "10/40"
        assert row.split()[-2:] == ["5", "min"]
        assert has("   1  dead", "   2  stalled", "   0  working", "row 7 cannot be read")(lines)

        terminal.resize(40, 10)
        lines = terminal.shows(lambda lines: lines[0].startswith("41 % done"))
        terminal.shows(has("pairs", "row 7"))
        assert [line.split()[0] for line in lines[2:5]] == list(STAGES)
        assert has("ranks: 1 dead, 1 stalled, 1 working", "25 %", "   1  dead")(lines)

        terminal.resize(120, 40)
        terminal.shows(has("q or Ctrl-C leaves", "━" * 7 + "╌" * 23, "node7"))
        terminal.press(b"q")
        assert terminal.ended() == 0
        assert terminal.is_as_it_was()
        # The prompt from before, and behind it the last table.
        assert terminal.screen.display[0].startswith("$ data-engine")
        assert has("41 % done", "   2  stalled")(terminal.screen.display)
        assert "q or Ctrl-C" not in terminal.text


@pytest.mark.parametrize(("ends", "code"), [("Ctrl-C", 0), (signal.SIGTERM, -signal.SIGTERM)])
def test_ctrl_c_and_a_signal_leave_the_terminal_as_it_was(tmp_path, ends, code):
    with watch(busy_run(tmp_path), "600", NO_COLOR="1") as terminal:
        terminal.shows(has("q or Ctrl-C leaves"))
        terminal.press(b"\x03") if ends == "Ctrl-C" else terminal.send(ends)
        assert terminal.ended() == code
        assert terminal.is_as_it_was()
        assert has("$ data-engine", "41 % done")(terminal.screen.display)
        assert "Traceback" not in terminal.text
        # Colours are off: what is left of styles is plain, bold and dim.
        assert set(re.findall(rb"\x1b\[([0-9;]*)m", terminal.received)) == {b"0", b"1", b"2"}


def test_a_hangup_that_the_starter_ignores_does_not_end_the_watching(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with watch(busy_run(tmp_path), "600") as terminal:
            terminal.shows(has("q or Ctrl-C leaves"))
            terminal.send(signal.SIGHUP)
            terminal.press(b"q")
            assert terminal.ended() == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_only_lines_that_change_are_drawn_again(tmp_path):
    with watch(busy_run(tmp_path), "0.2") as terminal:
        terminal.shows(has("q or Ctrl-C leaves"))
        before = len(terminal.received)
        warn(tmp_path, "another one")
        terminal.shows(has("another one"))
        drawn = terminal.received[before:].decode()
        # The heading of the stages and a finished stage stay; the screen is not cleared.
        assert "time left" not in drawn
        assert "sampled_answer" not in drawn
        assert "\x1b[2J" not in drawn


def test_a_run_that_comes_to_its_end_ends_the_watching_with_its_last_table(tmp_path):
    work_dir = make_run(tmp_path, 2, {"sampled_answer": 1})
    with watch(work_dir, "0.2") as terminal:
        terminal.shows(has("16 % done", "nobody at work"))
        finish(work_dir)
        assert terminal.ended() == 0
        assert terminal.is_as_it_was()
        assert has("finished: the pairs are written", "reward_logps", "2/2", "pairs: written")(terminal.screen.display)


@pytest.mark.slow
def test_a_run_whose_folder_goes_away_is_an_error_on_a_restored_terminal(tmp_path):
    work_dir = make_run(tmp_path / "run", 2, {"sampled_answer": 1})
    with watch(work_dir, "0.2") as terminal:
        terminal.shows(has("nobody at work"))
        work_dir.rename(tmp_path / "moved")
        assert terminal.ended() == 2
        assert terminal.is_as_it_was()
        assert "data-engine: error: no folder" in terminal.text
        assert "Traceback" not in terminal.text


HOSTILE = "row '\x1b[2J\x1b]0;owned\x07\x1b[?1049l' is \u202etxt.exe\u2066 bad\r\nrank 9: all is well \x9b31m\x00 ä"


@pytest.mark.parametrize("utf8_mode", ["0", "1"])
def test_a_hostile_warning_is_inert_and_a_locale_without_utf8_gets_ascii_alone(tmp_path, utf8_mode):
    work_dir = busy_run(tmp_path)
    warn(work_dir, HOSTILE)
    ascii_only = {"LC_ALL": "C", "PYTHONIOENCODING": "", "PYTHONUTF8": utf8_mode, "PYTHONCOERCECLOCALE": "0"}
    with watch(work_dir, "600", size=(140, 30), **ascii_only) as terminal:
        lines = terminal.shows(has("q or Ctrl-C leaves"))
        [told] = [line for line in lines if "is well" in line]
        escaped = (
            r"row '\x1b[2J\x1b]0;owned\x07\x1b[?1049l' is \u202etxt.exe\u2066 bad rank 9: all is well \x9b31m\x00 \xe4"
        )
        assert told.rstrip().endswith(f"rank 0: {escaped}")
        assert terminal.screen.is_alternate
        assert terminal.screen.title == ""
        assert has("#" * 7 + "-" * 23)(lines)
        assert terminal.received.isascii()
        terminal.press(b"q")
        assert terminal.ended() == 0


@pytest.mark.slow
def test_a_file_system_that_does_not_answer_keeps_no_key_waiting(tmp_path):
    """A pipe that nobody writes to: opening it never returns."""
    work_dir = busy_run(tmp_path)
    os.mkfifo(work_dir / "logs/rank-0.jsonl")
    with watch(work_dir, "0.2") as terminal:
        terminal.shows(has("reading ..."))
        terminal.resize(40, 10)
        terminal.shows(has("reading ..."))
        terminal.press(b"q")
        assert terminal.ended() == 0
        assert terminal.is_as_it_was()


@pytest.mark.slow
def test_a_dumb_terminal_gets_plain_lines(tmp_path):
    work_dir = make_run(tmp_path, 2, {"sampled_answer": 1})
    with watch(work_dir, "0.1", TERM="dumb", size=(200, 24)) as terminal:
        terminal.shows(has("not written"))
        finish(work_dir)
        assert terminal.ended() == 0
        assert b"\x1b" not in terminal.received
        assert has("questions in 2 units of 8", "written")(terminal.screen.display)


@pytest.mark.slow
def test_ctrl_z_gives_the_terminal_back_until_the_watching_goes_on(tmp_path):
    with watch(busy_run(tmp_path), "600") as terminal:
        terminal.shows(has("q or Ctrl-C leaves"))
        terminal.send(signal.SIGTSTP)
        _, status = os.waitpid(terminal.process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        terminal.shows(has("$ data-engine"))
        assert terminal.is_as_it_was()
        terminal.send(signal.SIGCONT)
        terminal.shows(has("q or Ctrl-C leaves"))
        assert terminal.screen.is_alternate
        terminal.press(b"q")
        assert terminal.ended() == 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not on the machine")
def test_a_window_of_tmux_shows_the_screen_and_gets_its_own_back(tmp_path):
    work_dir = busy_run(tmp_path / "run")
    tmux = ["tmux", "-S", str(tmp_path / "socket"), "-f", "/dev/null"]

    def window() -> str:
        return subprocess.run([*tmux, "capture-pane", "-p"], check=True, capture_output=True, text=True).stdout

    def wait_for(word: str, at_top: str = "") -> str:
        deadline = time.monotonic() + 30
        while not (word in (text := window()) and text.startswith(at_top)):
            assert time.monotonic() < deadline, text
        return text

    command = f"{sys.executable} -m data_engine status {work_dir} --watch 600; printf 'left with %s' $?; cat"
    subprocess.run([*tmux, "new-session", "-d", "-x", "80", "-y", "24", command], check=True)
    try:
        wide = wait_for("q or Ctrl-C leaves")
        assert "instruct_logps  10/40" in wide
        subprocess.run([*tmux, "resize-window", "-x", "40", "-y", "10"], check=True)
        assert "instruct_logps  10/40   25 %" in wait_for("ranks: 1 dead, 1 stalled, 1 working", "41 % done")
        subprocess.run([*tmux, "send-keys", "q"], check=True)
        assert "41 % done" in wait_for("left with 0")
    finally:
        subprocess.run([*tmux, "kill-server"], check=False, capture_output=True)
