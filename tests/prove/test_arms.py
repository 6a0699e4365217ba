"""The proof's arms: which two answers each of them takes, by hand; and what is shuffled where rewards are."""

import arms
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import run_engine

from data_engine.store.sealed import write_sealed

TRUTH = ("red circle", "blue square")
# Nothing wrong, an object left out, one wrong, two wrong; 9, 5, 9 and 10 words.
RIGHT = "I can see a red circle and a blue square."
SHORT = "I can see a red circle."
WRONG = "I can see a red circle and a blue cross."
WORST = "There is a green circle and a blue cross in there."
ANSWERS = [WRONG, SHORT, WORST, RIGHT]


def rng():
    return np.random.default_rng(0)


def test_the_oracle_takes_the_most_and_the_least_true_answer():
    assert arms.truest(ANSWERS, TRUTH, rng()) == (RIGHT, WORST)
    # Of answers with nothing wrong, the one that leaves out more is worse.
    assert arms.truest([SHORT, RIGHT], TRUTH, rng()) == (RIGHT, SHORT)
    assert arms.truest([RIGHT, RIGHT.replace("I can see", "There is")], TRUTH, rng()) is None


def test_length_takes_the_longest_and_the_shortest_answer():
    assert arms.longer(ANSWERS, TRUTH, rng()) == (WORST, SHORT)
    assert arms.longer([RIGHT, WRONG], TRUTH, rng()) is None


def test_random_takes_any_two_in_any_order():
    drawn = {arms.random_pair([RIGHT, WRONG], TRUTH, np.random.default_rng(seed)) for seed in range(50)}
    assert drawn == {(RIGHT, WRONG), (WRONG, RIGHT)}


def test_an_arm_with_fewer_pairs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="length has 1 pairs, expected 2: ask more questions"):
        arms.write(tmp_path / "length", pa.table({"idx": [1]}), {}, 2)


def logps(folder, stage, token_logps):
    table = pa.table({
        "idx": pa.array([0, 0, 0, 1], pa.int64()), "sample_index": pa.array([0, 1, 2, 0], pa.int32()),
        "token_logps": pa.array(token_logps, pa.list_(pa.float32())),
        "sum": pa.array([sum(one) for one in token_logps], pa.float64()),
        "mean": pa.array([float(np.mean(one)) for one in token_logps], pa.float64()),
    })  # fmt: skip
    (folder / stage).mkdir(parents=True)
    write_sealed(table, folder / stage / "unit-00000.parquet", {})


def test_shuffled_rewards_change_places_within_a_question(tmp_path):
    logps(tmp_path / "work", "instruct_logps", [[-1.0, -2.0], [-3.0], [-4.0, -4.0, -4.0], [-5.0]])
    # Mean gains of 0.5, 1 and 2 in question 0, and 3 in question 1.
    logps(tmp_path / "work", "reward_logps", [[-0.5, -1.5], [-2.0], [-2.0, -2.0, -2.0], [-2.0]])
    gains = set()
    for seed in range(10):
        run_engine.shuffle_rewards(tmp_path / "work", tmp_path / "shuffled", seed)
        instruct, reward = (
            pq.read_table(tmp_path / "shuffled" / stage / "unit-00000.parquet")
            for stage in ("instruct_logps", "reward_logps")
        )
        rows = list(zip(instruct["token_logps"].to_pylist(), reward["token_logps"].to_pylist(), strict=True))
        assert [len(a) == len(b) for a, b in rows] == [True] * 4
        per_token = [{round(b - a, 5) for a, b in zip(*row, strict=True)} for row in rows]
        assert all(len(values) == 1 for values in per_token)
        found = [values.pop() for values in per_token]
        assert sorted(found[:3]) == [0.5, 1, 2]
        assert found[3] == 3
        assert reward["sum"].to_pylist() == pytest.approx([sum(b) for _, b in rows])
        gains.add(tuple(found))
    assert len(gains) > 3
    # The run itself stays as it was.
    assert pq.read_table(tmp_path / "work/reward_logps/unit-00000.parquet")["token_logps"].to_pylist()[1] == [-2.0]
