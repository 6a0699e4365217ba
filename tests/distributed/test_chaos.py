"""A few rounds of chaos, so that the harness and the promise are tried with every change; `make chaos` runs 200."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).with_name("chaos.py")


@pytest.mark.slow
def test_disturbed_jobs_end_in_the_dataset_of_an_undisturbed_one(tmp_path):
    command = [sys.executable, str(CHAOS), str(tmp_path), "--rounds", "2", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["wrong"] == []
    # Disturbed indeed: something was killed somewhere.
    assert sum(result["hits"].values()) > 0
