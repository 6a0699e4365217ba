"""What each arm trains on: pairs from the same answers of one run, as folders that TRL loads.

    arms.py RUN_FOLDER OUT_FOLDER NUM_PAIRS SEED ARM...

RUN_FOLDER has questions.parquet, the truth beside it, and work/ with its exports; each arm becomes OUT_FOLDER/ARM.
"""

import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_engine.demo import world
from data_engine.demo.judge import truth_path
from data_engine.store import atomic

# Columns that exports do not have, and the one whose type is theirs.
SOURCES_OF = {"completion": "chosen"}

Pair = tuple[str, str]
"""chosen, rejected"""


def random_pair(answers: list[str], truth: tuple[str, ...], rng: np.random.Generator) -> Pair | None:
    """Two answers in the order of a coin."""
    return tuple(rng.permutation(answers)[:2].tolist())


def longer(answers: list[str], truth: tuple[str, ...], rng: np.random.Generator) -> Pair | None:
    """One of the answers with the most words, and one of those with the fewest; none where all have as many."""
    return _extremes(answers, [len(answer.split()) for answer in answers], rng)


def truest(answers: list[str], truth: tuple[str, ...], rng: np.random.Generator) -> Pair | None:
    """The most and the least true: by what is wrong in an answer, then by what it leaves out."""
    verdicts = [world.judge(answer, truth) for answer in answers]
    return _extremes(answers, [(-verdict.wrong, verdict.found) for verdict in verdicts], rng)


def _extremes(answers: list[str], values: list, rng: np.random.Generator) -> Pair | None:
    if max(values) == min(values):
        return None
    ends = ([answer for answer, value in zip(answers, values, strict=True) if value == end]
            for end in (max(values), min(values)))  # fmt: skip
    best, worst = (end[rng.integers(len(end))] for end in ends)
    return best, worst


# Arms that are made of a run's answers, without a reward. The others are exports, and what is made of those.
CONTROLS: dict[str, Callable[[list[str], tuple[str, ...], np.random.Generator], Pair | None]] = {
    "random": random_pair,
    "length": longer,
    "oracle": truest,
}


def control(name: str, run_folder: Path, num_pairs: int, seed: int) -> list[dict]:
    """Rows of a control: of the questions in random order, the first `num_pairs` that have a pair."""
    questions = {row["idx"]: row for row in pq.read_table(run_folder / "questions.parquet").to_pylist()}
    truths = {
        row["idx"]: row["objects"] for row in pq.read_table(truth_path(run_folder / "questions.parquet")).to_pylist()
    }
    answers = dict(_answers(run_folder / "work"))
    rng = np.random.default_rng([seed, list(CONTROLS).index(name)])
    rows = []
    for idx in rng.permutation(sorted(answers)).tolist():
        pair = CONTROLS[name](answers[idx], tuple(truths[idx]), rng) if len(answers[idx]) > 1 else None
        if pair is not None:
            rows.append(_row(questions[idx], *pair))
    return rows[:num_pairs]


def _answers(work_dir: Path) -> Iterator[tuple[int, list[str]]]:
    """By question, its answers, each text once."""
    files = sorted((work_dir / "sampled_answer").glob("unit-*.parquet"))
    table = pq.read_table(files, columns=["idx", "sample_index", "answer"]).sort_by("idx")
    for idx, rows in itertools.groupby(table.to_pylist(), key=lambda row: row["idx"]):
        yield idx, list(dict.fromkeys(row["answer"] for row in rows if row["answer"]))


def _row(question: dict, chosen: str, rejected: str) -> dict:
    """As `data-engine export --format trl` writes it."""
    return {
        "prompt": [{"role": "user", "content": [_part("image"), _part("text", question["question"])]}],
        "chosen": _said(chosen), "rejected": _said(rejected), "images": [question["image"]], "idx": question["idx"],
    }  # fmt: skip


def _part(kind: str, text: str | None = None) -> dict:
    return {"type": kind, "text": text}


def _said(answer: str) -> list[dict]:
    return [{"role": "assistant", "content": [_part("text", answer)]}]


def exported(run_folder: Path, name: str, num_pairs: int) -> pa.Table:
    """The first rows of an export; they come in random order."""
    return pq.read_table(run_folder / "exports" / name / "trl/train.parquet").slice(0, num_pairs)


def write(folder: Path, table: pa.Table, types: dict, num_pairs: int) -> None:
    """One folder for load_dataset. Fewer rows than the other arms have would be another experiment."""
    if len(table) != num_pairs:
        raise ValueError(f"{folder.name} has {len(table)} pairs, expected {num_pairs}: ask more questions")
    folder.mkdir(parents=True, exist_ok=True)
    # What `datasets` reads the types of columns from: that images are images, and not structs.
    features = {name: types[SOURCES_OF.get(name, name)] for name in table.column_names}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    with atomic.replacing(folder / "train.parquet") as temporary:
        pq.write_table(table, temporary, row_group_size=100)


def table_of(name: str, run_folder: Path, engine: pa.Table, seed: int) -> pa.Table:
    """An arm's pairs or answers, as many as the engine's."""
    if name == "reversed":
        return _renamed(engine, {"chosen": "rejected", "rejected": "chosen"})
    if name == "sft":
        return _renamed(engine.drop_columns(["rejected", "margin"]), {"chosen": "completion"})
    if name == "sft_random":
        # Any of the answers: what training on them does by itself.
        pairs = table_of("random", run_folder, engine, seed)
        return _renamed(pairs.drop_columns(["rejected"]), {"chosen": "completion"})
    if name in CONTROLS:
        rows = control(name, run_folder, len(engine), seed)
        return pa.Table.from_pylist(rows, schema=engine.drop_columns(["margin"]).schema)
    return exported(run_folder, name, len(engine))


def _renamed(table: pa.Table, names: dict[str, str]) -> pa.Table:
    return table.rename_columns([names.get(name, name) for name in table.column_names])


def main() -> None:
    run_folder, out, num_pairs, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    engine = exported(run_folder, "engine", num_pairs)
    types = json.loads(engine.schema.metadata[b"huggingface"])["info"]["features"]
    for name in sys.argv[5:]:
        write(out / name, table_of(name, run_folder, engine, seed), types, num_pairs)


if __name__ == "__main__":
    main()
