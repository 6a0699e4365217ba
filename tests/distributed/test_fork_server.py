"""What the fork server starts is as if Python had started it."""

import signal
import subprocess
import sys

import pytest
from jobs import SERVER

TOLD = """
import json, os, sys
print(json.dumps([sys.argv[1:], __name__, os.getcwd(), dict(os.environ), sys.stdin.read(), sys.flags.optimize]))
print("to stderr", file=sys.stderr)
if sys.argv[1] == "raise":
    raise ValueError("an error")
if sys.argv[1] == "wait":
    import time
    time.sleep(600)
sys.exit({"code": 3, "text": "said", "none": None}[sys.argv[1]])
"""


@pytest.fixture
def environment():
    return {**SERVER.environment, "OF_THE_TEST": "here"}


@pytest.mark.parametrize("how", ["code", "text", "none", "raise"])
def test_it_has_the_arguments_folder_environment_output_and_code_of_a_process_of_its_own(tmp_path, environment, how):
    (tmp_path / "told.py").write_text(TOLD)
    command = [sys.executable, "-m", "told", how, "two words"]
    own = subprocess.run(
        command, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    forked = SERVER.start("told", [how, "two words"], tmp_path, [environment])
    output, _ = forked.communicate(timeout=60)
    assert forked.returncode == own.returncode
    assert own.stdout in output
    # A traceback has the frames of whoever started it, too.
    assert own.stderr.splitlines()[0] in output
    assert own.stderr.splitlines()[-1] in output


def test_it_can_be_killed(tmp_path, environment):
    (tmp_path / "told.py").write_text(TOLD)
    forked = SERVER.start("told", ["wait"], tmp_path, [environment])
    assert forked.poll() is None
    forked.kill()
    assert forked.wait(timeout=60) == -signal.SIGKILL


def test_the_others_of_a_failed_rank_are_ended_and_its_code_is_told(tmp_path, environment):
    (tmp_path / "by_rank.py").write_text(
        "import os, sys, time\nif os.environ['RANK'] == '1':\n    sys.exit(5)\ntime.sleep(600)"
    )
    forked = SERVER.start("by_rank", [], tmp_path, [{**environment, "RANK": rank} for rank in "012"])
    assert forked.wait(timeout=60) == 5


def test_a_process_that_wants_what_is_read_at_import_otherwise_does_not_fit(environment):
    assert SERVER.fits(environment)
    assert not SERVER.fits({**environment, "OMP_NUM_THREADS": "2"})
    assert not SERVER.fits({name: value for name, value in environment.items() if name != "OMP_NUM_THREADS"})
