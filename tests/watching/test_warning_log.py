"""What a rank logs of its warnings, its start and its end, as far as status tells of them."""

import json
import logging
import os
import time

import pytest
from watched_run import ME, make_run

from data_engine.job import worker
from data_engine.job.warning_log import MOST_WARNINGS, logged_warnings
from data_engine.store import logs
from data_engine.watching.reader import Reader


def test_warnings_and_the_error_that_ends_a_rank_are_logged_and_bounded(tmp_path):
    program = logging.getLogger("data_engine")

    def work() -> None:
        program.info("no warning")
        for number in range(MOST_WARNINGS + 5):
            logging.getLogger("data_engine.job").warning("number %d %s", number, "x" * 1000)
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"), logged_warnings(tmp_path, 2):
        work()
    program.warning("after the end")
    make_run(tmp_path, 1, {})
    lines = [json.loads(line) for path in (tmp_path / "logs").iterdir() for line in path.read_text().splitlines()]
    told = [(line["level"], line["message"]) for line in lines]
    assert len(told) == MOST_WARNINGS + 1
    assert told[0] == ("warning", ("number 0 " + "x" * 1000)[: logs.MESSAGE_LENGTH])
    assert told[-2] == ("warning", "more warnings are on the standard error of the rank alone")
    assert told[-1] == ("error", "ValueError: a bug")


def test_a_run_logs_its_start_its_warnings_and_its_end(config, tmp_path, monkeypatch):
    """A run that is refused, after it has warned: no model is loaded."""
    monkeypatch.setattr(worker.Plan, "of", lambda *_: worker.log.warning("look out") or [][0])
    with pytest.raises(IndexError):
        worker.run(config(tmp_path / "none.parquet", num_shards=4, shard_index=1))
    make_run(tmp_path / "work", 1, {})
    progress = Reader(tmp_path / "work").look(
        {"units": dict.fromkeys(("num_questions", "unit_size", "num_units"), 1)}, time.time(), 0.0
    )
    [rank] = progress.ranks
    assert (rank.state, rank.shard, rank.pid, rank.host) == ("failed", (1, 4), os.getpid(), ME.host)
    assert [one.message for one in progress.warnings] == ["look out", "IndexError: list index out of range"]
