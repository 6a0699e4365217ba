"""vLLM's CPU build draws the answers of whole runs, on tiny models of two families and the golden photographs."""

import json
import os
import re
import signal
import subprocess
import time

import pyarrow.parquet as pq
import pytest
from conftest import HERE, PATIENCE_S, QUESTIONS, ROOT, UNIT

pytestmark = pytest.mark.vllm

NUM_UNITS = -(-pq.read_metadata(QUESTIONS).num_rows // UNIT)
DIFFERENCE = re.compile(r"vllm's log-probs of drawn tokens differ by (\S+) nat a token")


@pytest.mark.parametrize(("kind", "family"), [("llava", "llava"), ("qwen", "auto")])
def test_vllm_draws_from_what_the_engine_scores(kind, family, checkpoints, python, environment):
    instruct, _ = checkpoints(kind)
    command = [python, str(HERE / "check_backend.py"), str(instruct), family, str(QUESTIONS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))[6:])
    assert found["largest"] < 1e-4
    assert found["left_out"] == []
    assert found["seeded"]
    assert found["same_again"]
    for reason, ids in found["answers"]:
        assert reason == ("stop" if ids[-1] in found["ends"] else "length")
        assert not set(ids) & set(found["banned"])
    assert {reason for reason, _ in found["answers"]} == {"stop", "length"}
    for planted in ("template", "picture"):
        assert "drew these answers from another distribution than they are scored by" in found[planted]
    assert found["ids"].startswith("vLLM makes another prompt than the engine, which scores answers (token ")


def test_a_run_that_is_killed_goes_on_with_every_answer_once(run):
    killed = run("llava")
    process = killed.start()
    killed.wait_for_units(1, process)
    process.kill()
    process.communicate(timeout=PATIENCE_S)
    before = killed.sampled()
    assert 0 < len(before) < NUM_UNITS
    # vLLM's own processes see that nobody is left to work for.
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


def test_two_engines_share_a_run_and_stop_at_a_signal(run):
    both = run("qwen")
    settings = {"NUM_PROCESSES": "2", "ACCELERATE_CONFIG": str(ROOT / "launch/accelerate/cpu.yaml")}
    launcher = (str(ROOT / "launch/run_engine.sh"),)
    process = both.start(launcher=launcher, PYTHON=both.python, **settings)
    both.wait_for_units(1, process)
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
