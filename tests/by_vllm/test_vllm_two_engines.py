"""A whole run by two engines of vLLM's CPU build, stopped and rerun."""

import os
import signal

import pytest
from conftest import DIFFERENCE, ROOT

pytestmark = pytest.mark.vllm


def test_two_engines_share_a_run_and_stop_at_a_signal(run):
    both = run("qwen")
    settings = {"NUM_PROCESSES": "2", "ACCELERATE_CONFIG": str(ROOT / "launch/accelerate/cpu.yaml")}
    launcher = (str(ROOT / "launch/run_engine.sh"),)
    process = both.start(launcher=launcher, PYTHON=both.python, **settings)
    both.wait_for_units(1, process)
    assert both.workers()
    # As a terminal does: every process of the job gets it.
    os.killpg(process.pid, signal.SIGINT)
    output = both.finish(process, 75)
    assert "every published unit is kept" in output
    assert not both.children()

    output = both.finish(both.start(launcher=launcher, PYTHON=both.python, **settings))
    both.require_complete()
    assert all(float(one) < 1e-4 for one in DIFFERENCE.findall(output)), output
    # A log is of one rank in one start.
    worked = {path.name[:6] for path in (both.work / "logs").glob("rank-*.jsonl") if '"unit"' in path.read_text()}
    assert worked == {"rank-0", "rank-1"}
