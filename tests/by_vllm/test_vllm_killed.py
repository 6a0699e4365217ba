"""A whole run by vLLM's CPU build, killed and rerun."""

import json
import time

import pyarrow.parquet as pq
import pytest
from conftest import DIFFERENCE, PATIENCE_S, QUESTIONS, UNIT

pytestmark = pytest.mark.vllm

NUM_UNITS = -(-pq.read_metadata(QUESTIONS).num_rows // UNIT)


def test_a_run_that_is_killed_goes_on_with_every_answer_once(run):
    killed = run("llava")
    process = killed.start()
    killed.wait_for_units(1, process)
    assert killed.workers()
    process.kill()
    process.communicate(timeout=PATIENCE_S)
    before = killed.sampled()
    assert 0 < len(before) < NUM_UNITS
    # Its workers hold a GPU, which the next start needs.
    end = time.monotonic() + PATIENCE_S
    while killed.children():
        assert time.monotonic() < end, "processes of vLLM outlive the rank"
        time.sleep(0.1)

    output = killed.finish(killed.start())
    after = killed.sampled()
    assert len(after) == NUM_UNITS
    assert {number: after[number] for number in before} == before
    killed.require_complete()
    # This family samples from other pixels than it scores by.
    assert float(DIFFERENCE.search(output)[1]) < 1e-4
    told = json.loads((killed.work / "run.json").read_text())
    assert told["sampler"]["same_bytes"] is False
    assert told["bound"]["sampler"] == "vllm"
