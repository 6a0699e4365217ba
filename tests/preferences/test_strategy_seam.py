"""A pair strategy is one file and one line: the one of docs/adding.md, by the public API and in a whole pairing."""

import contributing
import pyarrow.parquet as pq
import pytest
from stage2_world import make_world

from data_engine import build_pairs
from data_engine.errors import UserError


@pytest.fixture
def neighbours(tmp_path, monkeypatch) -> str:
    table = "data_engine.preferences.strategies"
    return contributing.add("A pair strategy", table, "STRATEGIES", monkeypatch, tmp_path)


def test_a_strategy_is_one_file_and_one_line(neighbours):
    rewards = {0: 1.0, 1: 4.0, 2: -2.0, 3: 3.0}
    rows = [
        {"idx": "q", "sample_index": index, "answer": f"answer {index}", "sum": reward, "avg": -reward}
        for index, reward in rewards.items()
    ]
    [pair] = build_pairs(rows, strategy=neighbours)
    assert (pair.chosen_index, pair.rejected_index) == (1, 3)
    # The words of a pair still may not differ by as much as the distance.
    rows[1]["answer"] = "a " * 30
    assert build_pairs(rows, strategy=neighbours) == []


def test_a_whole_pairing_goes_by_the_strategy_of_the_run(neighbours, tmp_path):
    world = make_world(tmp_path / "world")
    world.publish(tmp_path / "work")
    world.pair(tmp_path / "work", strategy=neighbours, distance=1000)
    pairs = pq.read_table(tmp_path / "work/pairs/pairs.parquet").to_pylist()
    assert len({pair["idx"] for pair in pairs}) == len(pairs) > 20


def test_an_unknown_strategy_is_refused_by_name():
    with pytest.raises(UserError, match='unknown strategy "corss"; known: cross'):
        build_pairs([], strategy="corss")
