"""What README.md says is run: its commands in a folder like the reader's, its Python as it stands."""

import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from data_engine.commands import submit
from data_engine.commands.arguments import parse
from data_engine.commands.main import COMMANDS
from data_engine.config import RunConfig

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)


def commands(text: str) -> list[str]:
    """The commands of a text's bash blocks."""
    bodies = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [line.partition("  # ")[0].strip() for body in bodies for line in body.splitlines()]


# Those of the section on SLURM need a cluster, and are run on one by tests/distributed/test_slurm.py.
ON_A_CLUSTER = commands(TEXT.partition("\n## SLURM\n")[2].partition("\n## ")[0])
COMMANDS_SHOWN = [line for line in commands(TEXT) if line not in ON_A_CLUSTER]
MAKE = [line for line in COMMANDS_SHOWN if line.startswith("make ")]
ENGINE = [line for line in COMMANDS_SHOWN if not line.startswith("make ")]


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


def test_every_flag_shown_for_a_cluster_is_understood(monkeypatch):
    monkeypatch.chdir(ROOT)
    submitted, _, script = ON_A_CLUSTER
    options, flags = submit.split(shlex.split(submitted.removeprefix("data-engine submit")))
    assert set(options) == {"array", "sbatch", "sbatch_pair"}
    parse(flags)
    parse(shlex.split(re.fullmatch(r"sbatch .* launch/slurm/multinode.sbatch (.*)", script)[1]))


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


@pytest.mark.parametrize("table", ["README.md", "docs/bound.md"])
def test_every_proof_that_the_table_of_faults_names_exists(table):
    proofs = re.findall(r"\| `(tests/[\w/]+\.py)::(\w+)` \|$", (ROOT / table).read_text(), re.MULTILINE)
    assert len(proofs) > 10
    for file, name in proofs:
        assert f"def {name}(" in (ROOT / file).read_text(), f"{file} has no {name}"
