"""Exports of one run, and the checks of tests/trainers/check_*.py on them, each in its trainer's own environment."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# The interpreters of the environments that `make test-trainers` makes.
INTERPRETERS = {"swift": "MS_SWIFT_PYTHON", "llama_factory": "LLAMA_FACTORY_PYTHON"}


class Exports:
    """The exports of a run on hostile pictures and texts, each made when it is first asked for.

    That with log-probs, which takes few answers, is of another run.
    """

    def __init__(self, goldens: Path, folder: Path) -> None:
        import exported

        self._module, self._goldens, self._folder = exported, goldens, folder
        self._work_dirs: dict[bool, Path] = {}

    def __getitem__(self, name: str) -> Path:
        """The folder of a format."""
        if not (self._folder / name).exists():
            self._module.export(self._work_dir(name), [name], self._folder / name)
        return self._folder / name / name

    def expected(self, name: str) -> Path:
        """The folder of what a trainer must see of it."""
        folder = self._folder / f"expected {name}"
        if not folder.exists():
            self._module.expected(name, self._work_dir(name), self._module.questions(self._goldens), folder)
        return folder

    def _work_dir(self, name: str) -> Path:
        with_logps = name == "rlaif-v-logps"
        if with_logps not in self._work_dirs:
            run = self._module.run_to_the_end if with_logps else self._module.run
            folder = self._folder / run.__name__
            folder.mkdir()
            self._work_dirs[with_logps] = run(self._goldens, folder)
        return self._work_dirs[with_logps]


@pytest.fixture(scope="session")
def exports(goldens, tmp_path_factory, one_thread) -> Exports:
    return Exports(goldens, tmp_path_factory.mktemp("exports"))


@pytest.fixture
def spoil(exports, tmp_path):
    """A copy of a format's folder with something done to it."""

    def spoil(name: str, change: Callable[[Path], None]) -> Path:
        folder = tmp_path / name
        shutil.copytree(exports[name], folder)
        change(folder)
        return folder

    return spoil


@pytest.fixture
def check(exports):
    """Run a trainer's check on a format's folder, a spoilt one if given: exit code, and figures or what is wrong."""

    def check(trainer: str, name: str, folder: Path | None = None, *flags: str) -> tuple[int, dict | str]:
        python = sys.executable
        if trainer in INTERPRETERS:
            python = os.environ.get(INTERPRETERS[trainer], "")
            if not os.access(python, os.X_OK):
                pytest.skip(f"no environment of {trainer}: `make test-trainers` makes one ({INTERPRETERS[trainer]})")
        command = [python, HERE / f"check_{trainer}.py", folder or exports[name], name, exports.expected(name)]
        if folder is not None:
            command += ["--load_only", *flags]
        # Nothing of this environment is seen in the other.
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment | {"OMP_NUM_THREADS": "1"}, check=False
        )
        print(done.stdout, done.stderr)
        return done.returncode, json.loads(done.stdout) if done.returncode == 0 else done.stderr

    return check


@pytest.fixture
def num_rows(exports):
    """How many rows a trainer must see of a format."""
    return lambda name: len(json.loads((exports.expected(name) / "rows.json").read_text()))
