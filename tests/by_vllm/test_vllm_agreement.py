"""vLLM's CPU build draws from what the engine scores: two families, the golden photographs, and what is planted."""

import json
import subprocess

import pytest
from conftest import HERE, PATIENCE_S, QUESTIONS

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize(("kind", "family", "workers"), [("llava", "llava", 1), ("qwen", "auto", 2)])
def test_vllm_draws_from_what_the_engine_scores(kind, family, workers, checkpoints, python, environment):
    instruct, _ = checkpoints(kind)
    command = [python, str(HERE / "check_backend.py"), str(instruct), family, str(QUESTIONS), str(workers)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))[6:])
    assert found["largest"] < 1e-4
    assert found["left_out"] == []
    # On a CPU it takes no seeds.
    assert not found["seeded"]
    # Nothing that the run sets in vLLM's environment is unknown there, and no worker outlives the engine.
    assert found["unknown_variables"] == []
    assert found["workers"] == [workers, 0]
    # vLLM is given prompts in the way that stays.
    assert "raw prompts" not in done.stdout + done.stderr
    for reason, ids in found["answers"]:
        assert reason == ("stop" if ids[-1] in found["ends"] else "length")
        assert not set(ids) & set(found["banned"])
    assert {reason for reason, _ in found["answers"]} == {"stop", "length"}
    for planted in ("template", "picture"):
        assert "drew these answers from another distribution than they are scored by" in found[planted]
    assert found["ids"].startswith("vLLM makes another prompt than the engine, which scores answers (token ")
