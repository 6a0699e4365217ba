"""The command line as a user meets it: exit code, stdout and stderr, of real processes where those could differ."""

import importlib
import os
import signal
import subprocess
import sys

import pytest
from command_line import HEAVY, call, refused

from data_engine.commands import main, run
from data_engine.errors import IncompleteError, UserError
from data_engine.processes import signals


def test_help_lists_the_commands_and_imports_nothing_heavy():
    code = "import sys; from data_engine.commands.main import main; main(['--help'])"
    code += f"; print([m for m in {HEAVY} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *lines, heavy = result.stdout.splitlines()
    assert heavy == "[]"
    assert all(any(line.startswith(f"  {name} ") for line in lines) for name in main.COMMANDS)


def test_the_help_of_run_shows_every_flag_and_imports_nothing_heavy():
    code = "import sys, atexit; from data_engine.commands.main import main"
    code += f"; atexit.register(lambda: print([m for m in {HEAVY} if m in sys.modules])); main(['run', '--help'])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
    assert "  --sample_k N " in result.stdout
    assert "answers a question (default: 10)" in result.stdout


def test_no_command_and_an_unknown_one_are_refused():
    assert call() == refused("which command? usage: data-engine {" + ",".join(main.COMMANDS) + "} ...")
    assert call("vaildate") == refused('unknown command "vaildate"; did you mean validate?')


def test_the_version_is_told(capsys):
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("data-engine 0.")


def test_every_command_of_the_table_exists():
    import importlib

    for target, text in main.COMMANDS.values():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
        assert text


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UserError("sample_k is odd"), 2, "data-engine: error: sample_k is odd\n"),
        (IncompleteError("units missing: 3"), 3, "data-engine: error: units missing: 3\n"),
        (KeyboardInterrupt(), 75, "data-engine: error: interrupted; run the same command again to go on\n"),
    ],
)
def test_an_error_ends_with_its_exit_code_and_its_message_alone(monkeypatch, capsys, error, code, says):
    def fail(argv):
        raise error

    monkeypatch.setattr(run, "main", fail)
    assert main.main(["run"]) == code
    assert capsys.readouterr() == ("", says)


def test_a_bug_ends_with_one_and_a_traceback(monkeypatch, capsys):
    monkeypatch.setattr(run, "main", lambda argv: 1 // 0)
    assert main.main(["run"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_the_exit_code_of_a_command_is_passed_on(monkeypatch):
    monkeypatch.setattr(run, "main", lambda argv: 75)
    assert main.main(["run"]) == 75


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["report", "a", "--nmae", "x"], "--nmae x; did you mean --name?"),
        (["status", "--wtach", "a"], "unknown flag --wtach; did you mean --watch?"),
        (["status", "a", "--watch", "3", "--watch=4"], "--watch is given twice"),
        (["status", "a", "--json=yes"], "--json takes no value"),
        (["report", "a", "--open=yes"], "argument --open: ignored explicit argument 'yes'"),
        (["export", "a", "--format", "trl", "--outptu", "b"], "--outptu b; did you mean --output?"),
        (["export", "a", "--fromat", "trl", "--output", "b"], "unknown flag --fromat; did you mean --format?; the fo"),
        (["export", "a", "--output", "b"], "error: the following arguments are required: --format"),
        (["export", "a", "--format", "trl", "--output", ""], "--output is empty; is a shell variable unset?"),
        (["bench", "--modle", "a"], "--modle a; did you mean --model?"),
        (["validate", "--mesure"], "unknown flag --mesure; did you mean --measure?"),
        *((words, "WORK_DIR is empty; is a shell variable unset?") for words in (
            ["status", ""], ["report", ""], ["pairs", "", "--name", "a"], ["export", "", "--format", "trl"],
        )),
    ],
)  # fmt: skip
def test_a_mistake_in_the_flags_of_any_command_is_named_with_what_is_meant(capsys, arguments, says):
    assert main.main(arguments) == 2
    assert says in capsys.readouterr().err


def test_output_that_a_full_disk_loses_is_no_success():
    command = [sys.executable, "-m", "data_engine", "--help"]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    told = "data-engine: error: standard output cannot be written: No space left on device\n"
    assert (result.returncode, result.stderr) == (2, told)


def test_a_reader_that_has_read_enough_is_no_fault():
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as closed:
        command = [sys.executable, "-m", "data_engine", "--help"]
        result = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_signal_ends_a_command_at_once_while_it_or_torch_is_imported(monkeypatch):
    """Not by an exception: see test_signals.py."""
    handlers = []

    def imported(_name: str) -> list[str]:
        handlers.append(signal.getsignal(signal.SIGTERM))
        return handlers.append

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(main, "load", imported)
    monkeypatch.setattr(importlib, "import_module", imported)
    assert main.main(["status", "w"]) is None
    run._worker()
    assert handlers == [signals._leave, ["w"], signals._leave]
    assert signal.getsignal(signal.SIGTERM) is before
