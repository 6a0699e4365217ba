"""The signals of a job wait while a rank starts processes, whatever Python's multiprocessing does with them."""

import subprocess
import sys

from data_engine.processes.job_signals import JOB_SIGNALS

# A process of its own: in this one the tracker of multiprocessing runs already, which a first lock starts.
START = """
import multiprocessing
import signal

from data_engine.processes import job_signals


def tell():
    print(*sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))), flush=True)


if __name__ == "__main__":
    with job_signals.held():
        spawn = multiprocessing.get_context("spawn")
        spawn.Lock()
        tell()
        child = spawn.Process(target=tell)
        child.start()
        child.join()
    tell()
"""


def test_signals_wait_in_the_rank_and_in_what_it_starts_behind_a_first_lock(tmp_path):
    (tmp_path / "start.py").write_text(START)
    found = subprocess.run([sys.executable, tmp_path / "start.py"], capture_output=True, text=True, timeout=60)
    assert found.stderr == ""
    held = " ".join(map(str, sorted(map(int, JOB_SIGNALS))))
    assert found.stdout.split("\n") == [held, held, "", ""]
