"""The examples that end each command's help: two a command, whole, and understood by the command's own parser."""

import contextlib

import pytest
from shown import understand

from data_engine.commands.examples import EXAMPLES
from data_engine.commands.main import COMMANDS, main

LINES = [line for examples in EXAMPLES.values() for _, line in examples]


def test_each_command_has_two_examples_that_differ():
    assert list(EXAMPLES) == list(COMMANDS)
    assert all(len(examples) == 2 for examples in EXAMPLES.values())
    assert len(set(LINES)) == 2 * len(COMMANDS)


@pytest.mark.parametrize("line", LINES)
def test_the_commands_own_parser_understands_an_example(line, without_runs):
    assert line.startswith("data-engine ")
    understand(line)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_ends_with_its_examples(command, capsys):
    # argparse prints a help by leaving the program with 0.
    with contextlib.suppress(SystemExit):
        assert main([command, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (one, first), (other, second) = EXAMPLES[command]
    assert lines[-6:] == ["", "examples:", f"  # {one}", f"  {first}", f"  # {other}", f"  {second}"]
