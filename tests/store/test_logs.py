"""Names of log files: one a process, wherever it runs. Their lines are read in test_status.py and test_summary.py."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from data_engine.store import logs
from data_engine.store.process_identity import ProcessIdentity

ME = ProcessIdentity("node7", "boot-a", "pid:[4026531836]", 4242, "99")


@pytest.fixture
def name_of(tmp_path, monkeypatch):
    """The name of the log of a process that is like ME but for what is given."""

    def name(rank: int = 0, **fields: object) -> str:
        monkeypatch.setattr(ProcessIdentity, "of_this_process", lambda: replace(ME, **fields))
        return logs.log_path(tmp_path, rank).name

    return name


def test_a_log_is_named_by_rank_host_and_process(name_of):
    assert name_of(3).startswith("rank-3-node7-4242-")


def test_processes_on_several_hosts_never_share_a_log(name_of):
    """Shards have equal ranks; containers may have equal host names and process ids, machines equal names."""
    differing = [
        {}, {"host": "node8"}, {"pid": 4243}, {"boot": "boot-b"}, {"namespace": "pid:[1]"},
        {"host": "a b"}, {"host": "a_b"}, {"host": "n" * 200}, {"host": "n" * 201},
    ]  # fmt: skip
    assert len({name_of(**fields) for fields in differing}) == len(differing)


@pytest.mark.parametrize("host", ["../../etc", "a/b", "a b", "nœud", "\udcff", "h" * 300, ""])
def test_any_host_name_makes_a_file_name_that_readers_find(name_of, tmp_path, host):
    path = tmp_path / "logs" / name_of(host=host)
    logs.append(path, {"stage": "sampled_answer", "time": 1, "seconds": 2, "answers": 3})
    assert path.parent == tmp_path / "logs"
    assert path.name.isascii()
    assert [line["answers"] for line in logs.unit_lines(tmp_path)] == [3.0]


def test_lines_that_no_rank_wrote_are_left_out(tmp_path):
    path, unit = tmp_path / "logs/rank-0.jsonl", '{"stage": "sampled_answer", "time": 1, "seconds": 2, "answers": '
    path.parent.mkdir()
    huge = "1" + "0" * 400
    hostile = ["NaN}", "Infinity}", "-1}", huge + "}", '3, "tokens": "many"}', '3, "peak_gb": -2}', '3, "unit": []}']
    others = ["[1]", "[" * 100_000, "{", '{"event": "x", "seconds": NaN}', '{"event": "x", "seconds": ' + huge + "}"]
    lines = [*(unit + end for end in hostile), *others, unit + '3, "tokens": 7}', '{"event": "pairing", "seconds": 4}']
    path.write_text("\n".join(lines))
    assert [(line["answers"], line["tokens"]) for line in logs.unit_lines(tmp_path)] == [(3.0, 7.0)]
    assert list(logs.events(tmp_path)) == [("pairing", 4.0)]


WRITE = """
import sys
from pathlib import Path
from data_engine.store import logs
path = logs.log_path(Path(sys.argv[1]), 0)
for unit in range(200):
    logs.append(path, {"stage": "sampled_answer", "unit": unit, "time": 1, "seconds": 1, "answers": 1})
"""


def test_two_shards_write_a_file_each_and_readers_see_both(tmp_path):
    shards = [subprocess.Popen([sys.executable, "-c", WRITE, str(tmp_path)]) for _ in "12"]
    assert [shard.wait() for shard in shards] == [0, 0]
    files = list((tmp_path / "logs").iterdir())
    assert len(files) == 2
    assert all(len(list(map(json.loads, file.read_text().splitlines()))) == 200 for file in files)
    assert len(list(logs.unit_lines(tmp_path))) == 400
