"""How well each reward tells true answers from false ones within a question, and how well what is left of it once
length is regressed out: areas.py RUN_FOLDER OUT.json
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from data_engine.demo.areas import is_true, rewards_of
from data_engine.demo.judge import truth_path

REWARDS = ("implicit.sum", "implicit.avg", "contrast.sum", "contrast.avg")


def within(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Each value less the mean of its group."""
    _, numbers = np.unique(groups, return_inverse=True)
    means = np.bincount(numbers, values) / np.bincount(numbers)
    return values - means[numbers]


def without_length(values: np.ndarray, words: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """What the best line in the number of words, with a constant a group, leaves of the values."""
    values, words = within(values, groups), within(words, groups)
    return values - words * (values @ words) / (words @ words)


def area(values: np.ndarray, is_true: np.ndarray, groups: np.ndarray) -> float:
    """Share of the pairs of a true and a false answer of one group in which the true one has the higher value."""
    won = compared = 0.0
    for group in np.unique(groups):
        mine = groups == group
        true, false = values[mine & is_true], values[mine & ~is_true]
        won += (0.5 + 0.5 * np.sign(true[:, None] - false[None])).sum()
        compared += len(true) * len(false)
    return float(won / compared)


def areas(run_folder: Path) -> Mapping[str, Mapping[str, float]]:
    """By reward, the area as it is and without length. Each text of a question counts once."""
    truth = {
        row["idx"]: tuple(row["objects"])
        for row in pq.read_table(truth_path(run_folder / "questions.parquet")).to_pylist()
    }
    rewards = rewards_of(run_folder / "work")
    files = sorted((run_folder / "work/sampled_answer").glob("unit-*.parquet"))
    distinct = {}
    for row in pq.read_table(files, columns=["idx", "sample_index", "answer"]).to_pylist():
        key = (row["idx"], row["sample_index"])
        verdict = is_true(row["answer"], truth[row["idx"]])
        if key in rewards and verdict is not None:
            distinct.setdefault((row["idx"], row["answer"]), (verdict, rewards[key]))
    groups = np.array([idx for idx, _ in distinct])
    words = np.array([float(len(answer.split())) for _, answer in distinct])
    verdicts = np.array([verdict for verdict, _ in distinct.values()])
    found = {}
    for name in REWARDS:
        values = np.array([numbers[name] for _, numbers in distinct.values()])
        left = without_length(values, words, groups)
        found[name] = {"area": area(values, verdicts, groups), "without_length": area(left, verdicts, groups)}
    return found


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(areas(Path(sys.argv[1]))))
