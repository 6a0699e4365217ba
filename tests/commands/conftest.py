"""Commands in this process."""

from pathlib import Path

import pytest

from data_engine.commands import main


@pytest.fixture
def here(monkeypatch, capsys):
    """As command_line.call, in this process, which has torch: for what a process of its own would not tell apart."""

    def run(*arguments: str, cwd: Path) -> tuple[int, str, str]:
        monkeypatch.chdir(cwd)
        return main.main(arguments), *capsys.readouterr()

    return run
