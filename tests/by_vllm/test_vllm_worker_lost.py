"""A worker of vLLM's that is gone in the middle of a run, as the kernel takes one where memory is short."""

import json
import os
import signal

import pytest
from conftest import ARGS, K

pytestmark = pytest.mark.vllm


# One question after the other, so that the first unit is there long before the last answer is drawn.
FLAGS = ("--max_new_tokens", "600", "--unit_size", "1", "--vllm_args", json.dumps(ARGS | {"max_num_seqs": K}))


def test_a_run_whose_worker_is_killed_ends_by_name_and_leaves_no_process(run):
    lost = run("llava")
    process = lost.start(*FLAGS)
    lost.wait_for_units(1, process)
    [worker] = lost.workers()
    os.kill(worker, signal.SIGKILL)
    [told] = [line for line in lost.finish(process, 1).splitlines() if line.startswith("data-engine:")]
    assert told.startswith("data-engine: error: a worker of vLLM's has ended (exit code of VllmWorker-0: -9)")
    assert told.endswith("run the same command again to go on")
    assert not lost.children()
