"""Answers that are given, which are right, and a rule of one's own that scores them."""

from pathlib import Path

from run_files import read

ANSWERS = {
    1: ["Final Answer: 4", "Final Answer: 5", "It is four.", "\\boxed{4}"],
    2: ["Final Answer: B", "Final Answer: (B) cat", "Final Answer: C", "Final Answer: yes"],
    3: ["one", "two", "three", "four"],
}
RIGHT = {1: "4", 2: "B", 3: None}
SCORES = {1: [1, 0, 0, 1], 2: [1, 1, 0, 0], 3: [None] * 4}


def scores(work: Path) -> dict:
    found: dict = {}
    for row in read(work / "rule"):
        found.setdefault(row["idx"], []).append(row["score"])
    return found


def rule_file(folder: Path, body: str, name: str = "mine.py") -> str:
    (folder / name).write_text(body)
    return str(folder / name)
