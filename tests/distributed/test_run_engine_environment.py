"""launch/run_engine.sh before anything starts: what its environment says, and what it is not to be misled by."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_run_engine import CPU, ROOT, SCRIPT
from test_supervise import launch_command
from waiting import until

CORES = 6


@pytest.mark.parametrize("shell", [shutil.which("dash") or "sh", pytest.param("bash", marks=pytest.mark.slow)])
@pytest.mark.parametrize("number", ["two", "0", "-1", "1.5"])
def test_a_number_of_ranks_that_is_none_is_the_users_mistake(shell, number):
    environment = os.environ | {"NUM_PROCESSES": number, "PYTHON": sys.executable}
    done = subprocess.run([shell, SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    says = f'NUM_PROCESSES must be a whole number of ranks, from 1 to 9999, got "{number}"'
    assert done.stderr == f"data-engine: error: {says}\n"


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"NUM_MACHINES": "x"}, 'NUM_MACHINES must be a whole number of machines, from 1 to 9999, got "x"'),
        ({"NUM_MACHINES": "2"}, 'MACHINE_RANK must be this machine\'s number, from 0 to NUM_MACHINES - 1, got ""'),
        ({"NUM_MACHINES": "2", "MACHINE_RANK": "2"}, "MACHINE_RANK must be below NUM_MACHINES, got 2 of 2"),
        (
            {"NUM_MACHINES": "2", "MACHINE_RANK": "1"},
            "NUM_MACHINES is 2: set MAIN_ADDRESS to the address of machine 0",
        ),
        (
            {"NUM_MACHINES": "2", "MACHINE_RANK": "1", "MAIN_ADDRESS": "a", "MAIN_PORT": "b"},
            'NUM_MACHINES is 2: set MAIN_PORT to a free port of machine 0, got "b"',
        ),
        (
            {"NUM_MACHINES": "2", "MACHINE_RANK": "1", "MAIN_ADDRESS": "a", "MAIN_PORT": "99999"},
            "MAIN_PORT must be at most 65535, got 99999",
        ),
        (
            {"NUM_MACHINES": "2", "MACHINE_RANK": "1" * 23},
            f'MACHINE_RANK must be this machine\'s number, from 0 to NUM_MACHINES - 1, got "{"1" * 23}"',
        ),
        (
            {"NUM_PROCESSES": "9" * 20},
            f'NUM_PROCESSES must be a whole number of ranks, from 1 to 9999, got "{"9" * 20}"',
        ),
        ({"OMP_NUM_THREADS": "2,1"}, 'OMP_NUM_THREADS must be a whole number of threads, at most 9999, got "2,1"'),
        ({"ACCELERATE_CONFIG": "/nope"}, 'ACCELERATE_CONFIG must name a file, got "/nope"'),
    ],
)
def test_what_the_environment_lacks_or_has_wrong_is_told_before_anything_starts(environment, says):
    chosen = {"PYTHON": "/no/python"} | environment
    done = subprocess.run(["sh", SCRIPT], env=os.environ | chosen, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, f"data-engine: error: {says}\n")


@pytest.mark.parametrize(
    "python", ["/no/python", f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n'], ids=["none", "bare"]
)
def test_a_python_without_the_engine_is_named_with_what_to_do(tmp_path, python):
    """As where another environment than that of `make setup` is active."""
    if python.startswith("#!"):
        (tmp_path / "python").write_text(python)
        (tmp_path / "python").chmod(0o755)
        python = str(tmp_path / "python")
    done = subprocess.run(
        ["sh", SCRIPT], env=os.environ | {"PYTHON": python}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith(
        f'data-engine: error: "{python}" does not run, or lacks torch or data_engine: activate'
    )
    assert done.stderr.count("\n") == 1


def test_a_machine_without_a_folder_for_temporary_files_is_told_what_to_set():
    """As a container whose file system may only be read; here no file may have a byte."""
    chosen = {"PYTHON": sys.executable}
    command = ["sh", "-c", 'ulimit -f 0; exec sh "$0"', SCRIPT]
    done = subprocess.run(command, env=os.environ | chosen, capture_output=True, text=True, check=False)
    says = "no folder takes temporary files: set TMPDIR to one that can be written and has room"
    assert (done.returncode, done.stderr) == (2, f"data-engine: error: {says}\n")


def test_help_is_shown_once_and_no_rank_starts():
    chosen = {"PYTHON": sys.executable, "NUM_PROCESSES": "2", "ACCELERATE_CONFIG": str(CPU)}
    done = subprocess.run(
        ["sh", SCRIPT, "--help"], env=os.environ | chosen, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("usage: data-engine run") == 1
    assert "usage: data-engine validate" not in done.stdout


@pytest.fixture
def stand_in(tmp_path) -> Path:
    """In the place of Python: two GPUs, CORES cores, engines of vLLM that end with ENGINES; it tells its threads."""
    program = tmp_path / "python"
    program.write_text(
        '#!/bin/sh\ncase $* in *torch*) echo 2 ;; *engines*) exit "$ENGINES" ;; '
        f'*cpu_limit*) echo {CORES} ;; *) echo "$OMP_NUM_THREADS" ;; esac\n'
    )
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(("ranks", "threads"), [(1, CORES), (4, 1), (CORES, 1), (CORES + 1, 1)])
def test_ranks_share_the_cores_and_each_has_a_thread(stand_in, ranks, threads):
    kept = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    chosen = {"PYTHON": str(stand_in), "NUM_PROCESSES": str(ranks), "ACCELERATE_CONFIG": str(CPU)}
    done = subprocess.run(["sh", SCRIPT], env=kept | chosen, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{threads}\n")


@pytest.mark.parametrize("code", [1, 2])
def test_where_the_engines_cannot_be_counted_nothing_starts_and_the_code_comes_out(stand_in, code):
    """A bug is 1, more GPUs than there are is 2."""
    kept = {name: value for name, value in os.environ.items() if name != "NUM_PROCESSES"}
    chosen = {"PYTHON": str(stand_in), "ENGINES": str(code)}
    done = subprocess.run(["sh", SCRIPT], env=kept | chosen, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, "")


def test_a_signal_while_gpus_are_counted_says_run_the_same_command_again(tmp_path):
    program = tmp_path / "python"
    program.write_text(
        f'#!/bin/sh\ncase $* in *torch*) echo 0; touch "{tmp_path}/asked"; '
        f'while [ ! -e "{tmp_path}/go" ]; do sleep 0.02; done ;; *) echo started ;; esac\n'
    )
    program.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if name != "NUM_PROCESSES"}
    with subprocess.Popen(["sh", SCRIPT], env=kept | {"PYTHON": str(program)}, stdout=subprocess.PIPE) as job:
        until((tmp_path / "asked").exists, "the count of GPUs")
        job.send_signal(signal.SIGTERM)
        (tmp_path / "go").touch()
        assert job.communicate(timeout=60)[0] == b""
    assert job.returncode == 75


def test_an_empty_number_of_machines_is_one(monkeypatch):
    monkeypatch.setenv("NUM_MACHINES", "")
    monkeypatch.setenv("ACCELERATE_CONFIG", "a.yaml")
    assert "--num_machines" not in launch_command("data_engine", 2, "/tmp/a", [])


def test_files_of_the_current_folder_do_not_stand_in_for_modules(tmp_path):
    """Of the launcher's and the ranks', which are started by `python -m`."""
    for name in ("queue", "types", "data_engine"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not this one')")
    environment = os.environ | {"NUM_PROCESSES": "1", "PYTHON": sys.executable, "ACCELERATE_CONFIG": str(CPU)}
    done = subprocess.run(
        ["sh", SCRIPT, "--topp_k", "3"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "unknown flag --topp_k; did you mean --top_k?" in done.stderr
    assert "not this one" not in done.stderr


def test_each_script_is_understood_by_a_plain_shell():
    scripts = [SCRIPT, *(ROOT / "launch/slurm").iterdir()]
    assert len(scripts) == 6
    for script in scripts:
        assert script.read_text().startswith("#!/bin/sh\n")
        subprocess.run([shutil.which("dash") or "sh", "-n", script], check=True)
