"""The gate that fails a test run for a skip that nobody allowed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "check_skips.py"


@pytest.fixture
def gate(tmp_path):
    """Run the tests of a made file, then the gate over their result: exit code and last line."""

    def gate(name: str, body: str) -> tuple[int, str]:
        folder = tmp_path / "tests"
        folder.mkdir(exist_ok=True)
        (folder / f"test_{name}.py").write_text(f"import pytest\n{body}\n")
        pytest_run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir"]
        environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # starts sooner
        result = ["--junitxml", tmp_path / "out.xml"]
        subprocess.run([*pytest_run, tmp_path, *result, folder], capture_output=True, env=environment)
        done = subprocess.run([sys.executable, SCRIPT, tmp_path / "out.xml"], capture_output=True, text=True)
        print(done.stdout, done.stderr)
        return done.returncode, done.stdout.splitlines()[-1]

    return gate


PASSING = "def test_a(): pass\n"


def test_no_skip_passes(gate):
    assert gate("one", PASSING) == (0, "1 passed, 0 failed, 0 skipped")


def test_a_skip_off_the_list_fails(gate):
    assert gate("one", PASSING + "def test_b(): pytest.skip('no')") == (1, "1 passed, 0 failed, 1 skipped")


def test_a_skip_on_the_list_passes(gate):
    body = PASSING + "def test_b(): pytest.skip('no photographs')"
    assert gate("photographs", body) == (0, "1 passed, 0 failed, 1 skipped")


def test_a_test_on_the_list_that_is_skipped_for_another_reason_fails(gate):
    body = PASSING + "def test_b(): pytest.skip('the site is not built')"
    assert gate("photographs", body) == (1, "1 passed, 0 failed, 1 skipped")


def test_a_file_skipped_as_a_whole_off_the_list_fails(gate):
    assert gate("one", "pytest.importorskip('no_such_module')")[0] == 1


def test_a_failed_test_fails(gate):
    assert gate("one", PASSING + "def test_b(): assert False") == (1, "1 passed, 1 failed, 0 skipped")


def test_results_that_were_not_written_fail_and_the_others_are_summed_up(gate, tmp_path):
    assert gate("one", PASSING)[0] == 0
    command = [sys.executable, SCRIPT, tmp_path / "gone.xml", tmp_path / "out.xml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f"{tmp_path}/gone.xml: not written, since its tests did not run to their end", "1 passed, 0 failed, 0 skipped"
    ]  # fmt: skip
