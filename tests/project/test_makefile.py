"""The set-up: once, in its own folder, and only by a Python that will do."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import inner_make
import pytest

ROOT = Path(__file__).parents[2]
# The real one, with no plugin but that of -n: to import the others takes longer than the tests here.
PYTEST = f'PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 exec {sys.executable} -m pytest -p xdist -c /dev/null --rootdir . "$@"'


@pytest.fixture
def checkout(tmp_path) -> Path:
    """The files that the set-up looks at, and interpreters that only say what they were asked."""
    for name in ("Makefile", "setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "launch").mkdir()
    shutil.copy(ROOT / "launch" / "constraints.txt", tmp_path / "launch")
    program(tmp_path / "old-python", 'echo "Python 3.8.20"; exit 1')
    program(
        tmp_path / "new-python",
        'echo "new-python $*" >> calls; [ "$1" != -m ] || { mkdir -p .venv/bin; cp pip .venv/bin/; }',
    )
    program(tmp_path / "pip", 'echo "pip $*" >> calls')
    return tmp_path


def program(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def make(checkout: Path, *arguments: str) -> subprocess.CompletedProcess:
    command, environment = ["make", *arguments], inner_make.environment()
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)


def calls(checkout: Path) -> list[str]:
    return [line for line in (checkout / "calls").read_text().splitlines() if line.startswith("pip")]


def test_an_old_python_is_refused_with_what_is_needed(checkout):
    done = make(checkout, "setup", "PYTHON=./old-python")
    assert done.returncode == 2
    assert "Python 3.11 or newer is needed, and ./old-python is Python 3.8.20" in done.stderr
    assert not (checkout / ".venv").exists()


def test_torch_is_installed_first_and_alone_from_the_index_that_the_user_names(checkout):
    assert make(checkout, "setup", "PYTHON=./new-python", "TORCH_PIP_ARGS=--index-url U").returncode == 0
    first, second = calls(checkout)
    assert first == "pip install --quiet -c launch/constraints.txt --index-url U torch"
    assert second == "pip install --quiet -c launch/constraints.txt -e .[zero3,test,lint]"


@pytest.mark.parametrize(("changed", "times"), [(None, 2), ("setup.cfg", 4), ("launch/constraints.txt", 4)])
def test_a_second_set_up_does_nothing_unless_the_versions_changed(checkout, changed, times):
    make(checkout, "setup", "PYTHON=./new-python")
    if changed:
        later = (checkout / ".venv" / ".installed").stat().st_mtime + 1
        os.utime(checkout / changed, (later, later))
    assert make(checkout, "setup", "PYTHON=./new-python").returncode == 0
    assert len(calls(checkout)) == times


@pytest.mark.parametrize(("skips", "code"), [("photographs", 0), ("one", 2)])
def test_the_suite_fails_for_a_skip_that_is_not_on_the_list(checkout, skips, code):
    """pytest and python are the real ones, in the places where `make` looks for them."""
    make(checkout, "setup", "PYTHON=./new-python")
    program(checkout / ".venv/bin/pytest", PYTEST)
    program(checkout / ".venv/bin/python", f'exec {sys.executable} "$@"')
    tests = checkout / "tests"
    tests.mkdir()
    for name in ("check_skips.py", "allowed_skips.txt"):
        shutil.copy(ROOT / "tests" / name, tests)
    body = "import pytest\ndef test_a(): pass\ndef test_b(): pytest.skip('no photographs')\n"
    (tests / f"test_{skips}.py").write_text(body)
    done = make(checkout, "test", "PYTEST_ARGS=tests", "TEST_WORKERS=1")
    assert done.returncode == code, done.stdout + done.stderr
    assert "1 passed, 0 failed, 1 skipped" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("pip_fails", "code"), [(False, 0), (True, 2)])
def test_packages_of_the_families_tests_lie_apart_and_are_missed_aloud(checkout, pip_fails, code):
    """They are on the path of these tests alone; where they cannot be fetched, what is skipped fails the target."""
    make(checkout, "setup", "PYTHON=./new-python")
    program(
        checkout / ".venv/bin/pip", f'echo "pip $*" >> calls; {"exit 1" if pip_fails else "mkdir -p .venv/families"}'
    )
    program(checkout / ".venv/bin/pytest", PYTEST)
    program(checkout / ".venv/bin/python", f'exec {sys.executable} "$@"')
    tests = checkout / "tests" / "families"
    tests.mkdir(parents=True)
    for name in ("check_skips.py", "allowed_skips.txt", "families/packages.txt"):
        shutil.copy(ROOT / "tests" / name, checkout / "tests" / name)
    (tests / "test_all.py").write_text(
        "import os, pathlib, pytest\nfolder = pathlib.Path(os.environ['PYTHONPATH'])\ndef test_a(): pass\n"
        "@pytest.mark.skipif(not folder.is_dir(), reason='no torchvision')\n"
        "def test_b(): assert folder.name == 'families' and 'site-packages' not in folder.parts\n"
    )
    for _ in range(2):
        done = make(checkout, "test-families", "TEST_WORKERS=1", "PYTEST_ARGS=-W ignore")
        assert done.returncode == code, done.stdout + done.stderr
    fetched = [line for line in calls(checkout) if "--target" in line]
    assert set(fetched) == {"pip install --quiet --no-deps --target .venv/families -r tests/families/packages.txt"}
    # Tried again while it fails, and else done once.
    assert len(fetched) == (2 if pip_fails else 1)
    assert ("could not be fetched" in done.stderr) == pip_fails
    assert ("NOT ALLOWED: tests.families.test_all::test_b: no torchvision" in done.stdout) == pip_fails


@pytest.mark.slow
@pytest.mark.parametrize(("fails", "code"), [(None, 0), ("models", 2), ("families", 2)])
def test_other_releases_come_first_on_the_path_and_both_runs_are_made_whatever_fails(checkout, fails, code):
    make(checkout, "setup", "PYTHON=./new-python")
    program(checkout / ".venv/bin/pip", 'echo "pip $*" >> calls; mkdir -p .venv/families .venv/versions/newest')
    program(checkout / ".venv/bin/pytest", PYTEST)
    program(checkout / ".venv/bin/python", f'exec {sys.executable} "$@"')
    for name in ("models", "sampling", "scoring", "questions", "exports", "preferences", "rewards", "families"):
        (checkout / "tests" / name).mkdir(parents=True)
    (checkout / "tests/versions").mkdir()
    for name in ("check_skips.py", "allowed_skips.txt", "families/packages.txt", "versions/newest.txt"):
        shutil.copy(ROOT / "tests" / name, checkout / "tests" / name)
    path = {"models": ["newest"], "families": ["newest", "families"]}
    for name, folders in path.items():
        (checkout / f"tests/{name}/test_{name}.py").write_text(
            "import os, pathlib, pytest\n@pytest.mark.releases\ndef test_a():\n"
            f"    names = [pathlib.Path(one).name for one in os.environ['PYTHONPATH'].split(':')]\n"
            f"    assert names == {folders} and {name != fails}\n"
        )
    for _ in range(2):
        done = make(checkout, "test-newest", "PYTEST_ARGS=-W ignore")
        assert done.returncode == code, done.stdout + done.stderr
        told = "1 passed, 1 failed, 0 skipped" if fails else "2 passed, 0 failed, 0 skipped"
        assert told in done.stdout
    fetched = [line for line in calls(checkout) if ".venv/versions" in line]
    assert fetched == ["pip install --quiet --no-deps --target .venv/versions/newest -r tests/versions/newest.txt"]


@pytest.mark.slow
@pytest.mark.parametrize(("pip_fails", "code"), [(False, 0), (True, 2)])
def test_each_trainer_has_an_environment_of_its_own_which_is_made_once_and_missed_aloud(checkout, pip_fails, code):
    make(checkout, "setup", "PYTHON=./new-python")
    # The last word of `python -m venv FOLDER`.
    program(checkout / "new-python", "for folder; do :; done; mkdir -p $folder/bin && cp pip python $folder/bin/")
    program(checkout / "pip", f'echo "pip $*" >> calls; {"exit 1" if pip_fails else ""}')
    program(checkout / "python", "exit 0")
    program(checkout / ".venv/bin/pytest", PYTEST)
    program(checkout / ".venv/bin/python", f'exec {sys.executable} "$@"')
    tests = checkout / "tests" / "trainers"
    tests.mkdir(parents=True)
    for name in ("check_skips.py", "allowed_skips.txt", "trainers/ms-swift.txt", "trainers/llama-factory.txt"):
        shutil.copy(ROOT / "tests" / name, checkout / "tests" / name)
    (tests / "test_all.py").write_text(
        "import os, pytest\n@pytest.mark.trainers\n"
        "@pytest.mark.parametrize('name', ['MS_SWIFT_PYTHON', 'LLAMA_FACTORY_PYTHON'])\n"
        "def test_a(name): os.path.exists(os.environ[name]) or pytest.skip('no environment')\n"
    )
    (checkout / "calls").unlink()
    for _ in range(2):
        done = make(checkout, "test-trainers", "TEST_WORKERS=1", "PYTEST_ARGS=-W ignore", "PYTHON=./new-python")
        assert done.returncode == code, done.stdout + done.stderr
    names, told = ("ms-swift", "llama-factory"), calls(checkout)
    first = [f"pip install --quiet --no-compile -c tests/trainers/{name}.txt torch" for name in names]
    if pip_fails:
        # Tried again while it fails.
        assert told == first * 2
        assert all(f"the tests of {name} are skipped" in done.stderr for name in names)
        assert "NOT ALLOWED: tests.trainers.test_all::test_a[MS_SWIFT_PYTHON]: no environment" in done.stdout
    else:
        then = [f"pip install --quiet --no-compile --no-deps -r tests/trainers/{name}.txt" for name in names]
        assert told == [first[0], then[0], first[1], then[1]]


@pytest.mark.parametrize("given", [[], ["FUZZ_SEED=7", "FUZZ_TIMES=3"]])
def test_fuzzing_tries_more_data_and_others_each_day_unless_a_seed_is_given(checkout, given):
    make(checkout, "setup", "PYTHON=./new-python")
    program(checkout / ".venv/bin/pytest", 'echo "$FUZZ_TIMES times: $*"')
    told = make(checkout, "fuzz", *given).stdout
    seed = "7" if given else r"20\d{6}"
    assert re.search(
        rf"^{3 if given else 10} times: .*--hypothesis-seed={seed} .*tests/project/test_fuzz.py", told, re.M
    )


def test_a_job_needs_a_name(checkout):
    make(checkout, "setup", "PYTHON=./new-python")
    done = make(checkout, "run")
    assert done.returncode == 2
    assert "make run CONFIG=configs/" in done.stderr
