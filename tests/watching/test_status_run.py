"""A real run, watched on a real terminal from its first unit to its end."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_files import noise, png, write
from watched_run import STAGES, Terminal

GOLDENS = Path(__file__).parents[1] / "goldens/llava"


@pytest.mark.slow
def test_a_run_is_watched_until_it_is_done(tmp_path):
    photo, work = png(noise((60, 40), 80)), tmp_path / "work"
    rows = [(f"q{number}", "What is it?", photo) for number in range(24)]
    flags = {
        "instruct_model_path": GOLDENS / "instruct", "reward_model_path": GOLDENS / "reward",
        "dataset_path": write(tmp_path / "questions.parquet", rows), "work_dir": work, "sample_k": 4, "rank": 1,
        "max_new_tokens": 24, "threads": 1, "unit_size": 2,
    }  # fmt: skip
    command = [sys.executable, "-m", "data_engine", "run"]
    command += [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    before = time.time()
    with open(tmp_path / "told", "wb") as told, subprocess.Popen(command, stdout=told, stderr=told) as run:
        deadline = time.monotonic() + 120
        while not (work / "run.json").exists():
            assert run.poll() is None, (tmp_path / "told").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with Terminal("status", str(work), "--watch", "0.1", size=(100, 30)) as terminal:
            is_at_work = f"   0  working  {STAGES[0]}"
            terminal.shows(lambda lines: any(line.startswith(is_at_work) for line in lines), within_s=120)
            terminal.shows(lambda lines: any(f"{STAGES[0]}  12/12" in line for line in lines), within_s=120)
            assert terminal.ended() == 0
            assert terminal.is_as_it_was()
            lines = [line.rstrip() for line in terminal.screen.display]
            assert "finished: the pairs are written   24 questions in units of 2" in lines
            assert sum("12/12  ━" in line for line in lines) == 3
        assert run.wait() == 0, (tmp_path / "told").read_text()
    done = subprocess.run(
        [sys.executable, "-m", "data_engine", "status", str(work), "--json"], check=True, capture_output=True
    )
    progress = json.loads(done.stdout)
    [rank] = progress["ranks"]
    assert (progress["done"], rank["state"], rank["exit_code"], rank["pid"]) == (True, "finished", 0, run.pid)
    assert os.path.samefile(progress["work_dir"], work)
    [path] = (work / "logs").glob("rank-*.jsonl")
    first = json.loads(path.read_text().splitlines()[0])
    # Seconds before its first line, for which torch has to be imported; of a clock of hundredths.
    assert before - 0.05 < first["began"] < first["time"] - 0.3
