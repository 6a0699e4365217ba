"""The processes that an engine of vLLM starts: which signals reach them, and when they end."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_engine import load_model
from data_engine.errors import LostRankError
from data_engine.job import model_holder, worker
from data_engine.sampling import vllm_engine

PATIENCE_S = 60
PARENT = """
import multiprocessing, os, time

def work():
    import data_engine.sampling.vllm_worker
    print(os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    child = multiprocessing.get_context("spawn").Process(target=work)
    child.start()
    child.join()
"""


def test_signals_of_the_job_reach_the_rank_alone(settings, vllm):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert worker.run(settings(stop_after_stage=0)) == 0
    asked_to_stop = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
    assert vllm.started_with["blocked"] >= asked_to_stop
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_workers_are_started_apart_from_what_the_launcher_told(settings, vllm, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert worker.run(settings(stop_after_stage=0)) == 0
    told = vllm.started_with["environment"]
    assert told["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
    assert "TORCHELASTIC_USE_AGENT_STORE" not in told
    assert os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "True"


def test_the_threads_that_vllm_sets_for_its_workers_are_not_those_of_what_the_rank_starts_later(
    settings, vllm, monkeypatch
):
    for name in vllm_engine.THREADS:
        monkeypatch.delenv(name, raising=False)
    assert worker.run(settings(stop_after_stage=0)) == 0
    assert len(vllm.engines) == 1
    assert [os.environ.get(name) for name in ("OMP_NUM_THREADS", "VLLM_OMP_NUM_THREADS_SET_BY_VLLM")] == [None, None]


def test_no_model_is_loaded_before_the_workers_are_gone(settings, vllm, monkeypatch):
    """A worker that does not end, as one that hangs in a library's call, is killed."""
    monkeypatch.setattr(vllm_engine, "PATIENCE_S", 0.1)
    vllm.worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,), daemon=True)
    alive = []

    def noting(*names: str, **options: object):
        alive.append(vllm.worker.is_alive())
        return load_model(*names, **options)

    monkeypatch.setattr(model_holder, "load_model", noting)
    assert worker.run(settings()) == 0
    assert alive == [False, False]


def test_a_worker_that_is_killed_ends_the_run_by_name(settings, vllm):
    """vLLM's own word for it is "cancelled"."""
    vllm.worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,), daemon=True)

    def killed() -> RuntimeError:
        vllm.worker.kill()
        vllm.worker.join()
        return RuntimeError("cancelled")

    vllm.fails = killed
    with pytest.raises(LostRankError, match=r"a worker of vLLM's has ended \(exit code of SpawnProcess-\d+: -9\)"):
        worker.run(settings())
    assert vllm.engines[0].closed


def test_memory_that_runs_out_is_told_with_what_to_lower_and_another_failure_stays_as_it_is(settings, vllm, refusal):
    vllm.fails = lambda: RuntimeError("Worker failed with error 'CUDA out of memory. Tried to allocate 2.00 GiB'")
    told = refusal(settings())
    assert told.startswith("vLLM ran out of memory (Worker failed with error 'CUDA out of memory.")
    assert told.endswith("lower gpu_memory_utilization, max_num_seqs or max_num_batched_tokens in --vllm_args")
    vllm.fails = lambda: RuntimeError("Executor failed.")
    with pytest.raises(RuntimeError, match=r"^Executor failed\.$"):
        worker.run(settings())


def test_a_worker_ends_with_the_rank_that_started_it(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        child = Path("/proc") / parent.stdout.readline().strip()
        assert child.exists()
        parent.kill()
    end = time.monotonic() + PATIENCE_S
    while _is_alive(child):
        assert time.monotonic() < end
        time.sleep(0.01)


def _is_alive(process: Path) -> bool:
    """A process that nobody waits for stays as a zombie."""
    try:
        return "State:\tZ" not in (process / "status").read_text()
    except OSError:
        return False


@pytest.mark.parametrize(("parent", "code"), [("os.getppid()", 0), ("1 + os.getppid()", -signal.SIGKILL)])
def test_a_worker_whose_rank_has_ended_ends_at_once(parent, code):
    asked = f"import os; from data_engine.sampling.vllm_worker import end_with; end_with({parent})"
    assert subprocess.run([sys.executable, "-c", asked], check=False).returncode == code
