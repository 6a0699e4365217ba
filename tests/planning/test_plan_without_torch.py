"""validate where torch is not installed: what it checks and tells all the same, and what it says that it did not."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from run_files import hostile_rows
from validated import PLANTED, words

from data_engine.commands import main

ROOT = Path(__file__).parents[2]
SOURCES = (ROOT / "engine", ROOT / "kernels")


@pytest.mark.slow
def test_validate_imports_no_torch_where_nothing_is_wrong_either(job, tmp_path):
    code = f"import sys; from data_engine.commands.main import main; code = main({['validate', *words(job)]!r})"
    code += "; print(code, [m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


def without_torch(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`data-engine validate` where every package of this environment is installed, but torch."""
    packages = folder / "packages"
    packages.mkdir(exist_ok=True)
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        place = packages / package.name
        if not place.exists() and not package.name.startswith(("torch", "__pycache__")) and package.suffix != ".pth":
            place.symlink_to(package)
    # -S: the environment's own packages are not found.
    command = [sys.executable, "-S", "-m", "data_engine.commands.main", "validate", *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(packages), *map(str, SOURCES)])}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)


def test_without_torch_the_other_checks_and_the_plan_are_there_and_what_was_not_looked_at_is_said(job, tmp_path):
    done = without_torch(tmp_path, "--json", *words(job))
    found = json.loads(done.stdout)
    assert (done.returncode, found["problems"], found["models"], done.stderr) == (0, [], {}, "")
    [warning] = [told for told in found["warnings"] if "torch" in told]
    assert warning.startswith("torch is not installed here: names and shapes of weights")
    [sampling] = [stage for stage in found["plan"]["stages"] if stage["name"] == "sampled_answer"]
    assert (sampling["questions"], sampling["prompt_tokens"], sampling["answer_tokens"]) == (2, None, 2 * 10 * 512)
    done = without_torch(tmp_path, *words(job))
    assert done.returncode == 0
    assert done.stdout.startswith("valid: 2 questions, 10 answers each; instruct and reward model: llava and llava; ")
    assert "data-engine: warning: torch is not installed here" in done.stderr


def test_without_torch_mistakes_are_told_all_the_same(planted, tmp_path):
    done = without_torch(tmp_path, "--config", str(planted))
    assert (done.returncode, done.stdout) == (2, "")
    lines = [line for line in done.stderr.splitlines() if line.startswith("data-engine: error: ")]
    # All, but the shapes of weights.
    assert len(lines) == len(PLANTED)
    assert "Traceback" not in done.stderr


def test_without_torch_a_work_dir_of_another_run_is_told(job, tmp_path, capsys):
    assert main.main(["run", *words(job, sample_k="2", rank="1", max_new_tokens="4")]) in (0, 4)
    capsys.readouterr()
    # The device is named; the dtype was left to it then, and is another now.
    changed = words(job, sample_k="3", rank="1", dtype="bfloat16")
    [problem] = json.loads(without_torch(tmp_path, "--json", *changed).stdout)["problems"]
    assert "holds another run" in problem["message"]
    assert all(f"{name} " in problem["message"] for name in ("sample_k", "max_new_tokens", "dtype"))
    assert "device" not in problem["message"]
    # What is left to the device is not held against anything.
    same = words(job, sample_k="2", rank="1", max_new_tokens="4", device="auto")
    assert json.loads(without_torch(tmp_path, "--json", *same).stdout)["problems"] == []


def test_without_torch_answers_that_make_no_pair_are_told(job, tmp_path):
    (tmp_path / "answers.jsonl").write_text(json.dumps({"idx": hostile_rows()[0][0], "answer": "one"}))
    done = without_torch(tmp_path, *words(job, rank="1", answers=str(tmp_path / "answers.jsonl")))
    assert done.returncode == 2
    assert "has one answer a question; a pair needs two" in done.stderr


def test_without_torch_measuring_is_refused(job, tmp_path):
    done = without_torch(tmp_path, "--measure", *words(job))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("data-engine: error: --measure runs the models, and torch is not")
    done = without_torch(tmp_path, "--measure", "--json", *words(job))
    found = json.loads(done.stdout)
    assert (done.returncode, found["measured"]) == (2, None)
    [problem] = found["problems"]
    assert (problem["check"], problem["flag"]) == ("measure", None)
    assert found["plan"]["num_questions"] == 2
