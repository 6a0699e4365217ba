"""The examples that end each command's help: two a command, whole, and understood by the command's own parser."""

import contextlib
import shlex
from pathlib import Path

import pytest

from data_engine.commands import bench, export, pairs, submit
from data_engine.commands.arguments import parse
from data_engine.commands.examples import EXAMPLES
from data_engine.commands.main import COMMANDS, main

ROOT = Path(__file__).parents[1]
LINES = [line for examples in EXAMPLES.values() for _, line in examples]


def understand_submit(words: list[str]) -> None:
    options, flags = submit.split(words)
    submit._number(options["array"])
    submit._check_can_submit(parse(flags))


PARSERS = {
    "run": parse,
    "validate": lambda words: parse(words, "validate"),
    "submit": understand_submit,
    "pairs": lambda words: pairs._parser().parse_args(words),
    "export": lambda words: export.chosen(export._arguments(words).format),
    "bench": lambda words: bench._parser().parse_args(words),
}
# These two read their arguments in `main`, and look for the folder after.
ABOUT_A_FOLDER = ("status", "report")


@pytest.fixture(autouse=True)
def at_the_root(tmp_path, monkeypatch):
    """A folder with configs/ and nothing else, and a program called sbatch."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sbatch").write_text("#!/bin/sh\n")
    (tmp_path / "bin/sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.chdir(tmp_path)


def test_each_command_has_two_examples_that_differ():
    assert list(EXAMPLES) == list(COMMANDS)
    assert all(len(examples) == 2 for examples in EXAMPLES.values())
    assert len(set(LINES)) == 2 * len(COMMANDS)


@pytest.mark.parametrize("line", LINES)
def test_the_commands_own_parser_understands_an_example(line, capsys):
    program, command, *words = shlex.split(line)
    assert program == "data-engine"
    if command in ABOUT_A_FOLDER:
        assert main([command, *words]) == 2
        assert capsys.readouterr().err == 'data-engine: error: no folder "runs/llava-1.5-7b"\n'
    else:
        PARSERS[command](words)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_ends_with_its_examples(command, capsys):
    # argparse prints a help by leaving the program with 0.
    with contextlib.suppress(SystemExit):
        assert main([command, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (one, first), (other, second) = EXAMPLES[command]
    assert lines[-6:] == ["", "examples:", f"  # {one}", f"  {first}", f"  # {other}", f"  {second}"]
