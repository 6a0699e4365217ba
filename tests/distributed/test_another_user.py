"""A run that goes on under a user who may not read or write all that is there, as where another one has begun it."""

import sys

import pytest
from as_another_user import OBEYS
from jobs import Job, write_questions


@pytest.mark.slow
def test_what_this_user_may_not_touch_is_named_and_once_given_the_run_goes_on(tmp_path):
    flags = ("--sample_k", "3", "--rank", "1", "--max_new_tokens", "8", "--unit_size", "2", "--temperature", "1.0")
    job = Job(write_questions(tmp_path / "questions.parquet", 4), tmp_path / "work", flags)
    plain = (*OBEYS, sys.executable)
    Job(job.dataset, job.work_dir, (*flags, "--stop_after_stage", "0")).run()

    closed = [job.work_dir / name for name in ("claims", "logs", "sampled_answer")]
    for folder in closed:
        folder.chmod(0o555)
    told = job.run(*plain, code=2)
    assert f'work_dir "{job.work_dir}": cannot write to {", ".join(map(str, closed))}. Where another user' in told
    assert "Traceback" not in told
    for folder in closed:
        folder.chmod(0o755)

    for name in ("run.json", "sampled_answer/unit-00001.parquet"):
        path = job.work_dir / name
        path.chmod(0)
        told = job.run(*plain, code=2)
        assert f'data-engine: error: "{path}" cannot be read or written: Permission denied. Where it is of' in told
        assert "Traceback" not in told
        path.chmod(0o644)
    job.run(*plain)
