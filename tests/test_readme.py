"""What README.md says is run: its commands in a folder like the reader's, its Python as it stands."""

import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_engine.arguments import parse
from data_engine.cli import COMMANDS
from data_engine.config import RunConfig

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)
COMMANDS_SHOWN = [
    line.partition("  # ")[0].strip() for kind, body in BLOCKS if kind == "bash" for line in body.splitlines()
]
MAKE = [line for line in COMMANDS_SHOWN if line.startswith("make ")]
ENGINE = [line for line in COMMANDS_SHOWN if not line.startswith("make ")]


@pytest.fixture
def place(tmp_path, goldens, monkeypatch) -> Path:
    """A folder that holds what the quick start asks for, with tiny models in the place of the real ones."""
    for name in ("configs", "launch"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "llava-v1.5-7b").symlink_to(goldens / "llava" / "instruct")
    (tmp_path / "models" / "RLAIF-V-7B").symlink_to(goldens / "llava" / "reward")
    (tmp_path / "models" / "OmniLMM-12B").symlink_to(goldens / "omnilmm" / "instruct")
    (tmp_path / "models" / "RLAIF-V-12B").symlink_to(goldens / "omnilmm" / "reward")
    (tmp_path / "data").mkdir()
    questions = pq.read_table(goldens / "llava" / "dataset" / "questions.parquet")
    pq.write_table(questions, tmp_path / "data" / "questions.parquet")
    (tmp_path / "picture.jpg").write_bytes(questions["image"][0].as_py()["bytes"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: str) -> subprocess.CompletedProcess:
    """One line of the README, with this interpreter's programs."""
    programs = str(Path(sys.executable).parent)
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        shlex.split(command), env=os.environ | environment, capture_output=True, text=True, timeout=500, check=False
    )


def test_the_first_two_commands_are_demo_and_test():
    assert [command.split()[1] for command in MAKE[:2]] == ["demo", "test"]


def test_every_make_target_that_is_named_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", TEXT, re.MULTILINE))
    assert named
    assert named <= targets


def test_every_command_line_shown_is_understood(monkeypatch):
    monkeypatch.chdir(ROOT)
    for line in ENGINE:
        _, command, flags = re.fullmatch(r"(launch/run_engine.sh|.*data.engine (\w+)) (.*)", line).groups()
        assert command is None or command in COMMANDS
        if command in (None, "run", "validate"):
            parse(shlex.split(flags))


@pytest.mark.slow
def test_every_command_shown_runs(place):
    for line in ENGINE:
        done = run(line)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
def test_the_demo_shows_that_chosen_answers_hallucinate_far_less(tmp_path):
    venv = Path(sys.executable).parents[1]
    command = ["make", "demo", f"DEMO_DIR={tmp_path}", f"VENV={venv}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    chosen, rejected = map(
        float, re.search(r"^hallucinated objects +([\d.]+)% +([\d.]+)%$", done.stdout, re.M).groups()
    )
    assert rejected > 15
    assert chosen <= rejected / 4
    assert (tmp_path / "work/report/index.html").is_file()


def test_the_python_example_runs_as_it_stands(place):
    (example,) = [body for kind, body in BLOCKS if kind == "python"]
    values: dict = {}
    exec(compile(example, "README.md", "exec"), values)
    assert len(values["answers"]) == 4
    assert all(math.isfinite(row[name]) for row in values["rows"] for name in ("sum", "avg"))
    assert isinstance(values["pairs"], list)


def test_the_defaults_in_the_table_of_flags_are_the_real_ones():
    rows = re.findall(r"^\| (`--[^|]*) \| ([^|]*) \|", TEXT, re.MULTILINE)
    shown = {}
    for names, defaults in rows:
        names, values = re.findall(r"--(\w+)", names), defaults.split(", ")
        shown |= dict(zip(names, values if len(values) == len(names) else values * len(names), strict=True))
    real = {name: field.default for name, field in RunConfig.__dataclass_fields__.items()}
    for name, text in shown.items():
        expected = real[name]
        if isinstance(expected, bool):
            assert text == "off", name
        elif text not in ("required", "none", "from config.json", "auto"):
            assert text == str(expected), name
