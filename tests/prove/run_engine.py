"""The engine's part, by its command line: run_engine.py FOLDER --seed S --k K --num N [--also PAIRING ...]

FOLDER gets questions.parquet, work/ (a run) and exports/NAME/trl for `engine` and each of --also. Goes on where it was
stopped.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from experiment import CHECKPOINTS, ROOT

from data_engine.store.sealed import read_facts, write_sealed

ENGINE_FLAGS = (
    "--config", "configs/demo.yaml", "--instruct_model_path", str(CHECKPOINTS / "instruct"),
    "--reward_model_path", str(CHECKPOINTS / "reward"), "--threads", "1", "--unit_size", "128",
    # One pair a picture, so that as many pictures stand behind each number of pairs.
    "--max_pairs", "1",
)  # fmt: skip
# Flags of `data-engine pairs` for what is not the run's own pairing.
OTHER_PAIRINGS = {
    "contrast": ("--rank_by", "contrast.sum,contrast.avg"),
    "mu_2sigma": ("--strategy", "mu_2sigma", "--rank_by", "implicit.avg"),
    "shuffled": (),
}


def rank_of(k: int) -> int:
    """How deep pairs are looked for among k answers: 3 of 10."""
    return max(1, round(0.3 * k))


def data_engine(*arguments: str | Path) -> None:
    """One command. Raises CalledProcessError where it does not end with 0."""
    subprocess.run([sys.executable, "-m", "data_engine", *map(str, arguments)], check=True, cwd=ROOT)


def export(folder: Path, work_dir: Path, name: str, *flags: str) -> None:
    target = folder / "exports" / name
    if target.exists():
        return
    temporary = folder / f".{name}"
    shutil.rmtree(temporary, ignore_errors=True)
    data_engine("export", work_dir, "--format", "trl", "--output", temporary, *flags)
    target.parent.mkdir(exist_ok=True)
    temporary.rename(target)


def shuffle_rewards(work_dir: Path, target: Path, seed: int) -> None:
    """A copy of a run in which each answer has the mean reward of another one to the same question, at random."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(work_dir, target)
    rng = np.random.default_rng(seed)
    for path in sorted((target / "reward_logps").glob("unit-*.parquet")):
        table, instruct = pq.read_table(path), pq.read_table(target / "instruct_logps" / path.name)
        ours = instruct["token_logps"].to_pylist()
        gains = [float(np.mean(np.subtract(a, b))) if b else 0.0
                 for a, b in zip(table["token_logps"].to_pylist(), ours, strict=True)]  # fmt: skip
        idx = np.array(table["idx"].to_pylist())
        places = np.arange(len(idx))
        for one in np.unique(idx):
            places[idx == one] = rng.permutation(places[idx == one])
        logps = [[value + gains[other] for value in values] for values, other in zip(ours, places, strict=True)]
        columns = {"token_logps": logps, "sum": list(map(sum, logps)), "mean": [np.mean(one or [0.0]) for one in logps]}
        for name, values in columns.items():
            at = table.schema.get_field_index(name)
            table = table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))
        facts, _ = read_facts(path)
        path.unlink()
        write_sealed(table, path, facts)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    for name in ("seed", "k", "num"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--also", nargs="*", choices=sorted(OTHER_PAIRINGS), default=[])
    given = parser.parse_args()
    folder, work_dir, questions = given.folder, given.folder / "work", given.folder / "questions.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    if not questions.exists():
        write = ["-m", "data_engine.demo", "questions", folder / ".questions.parquet", "--num", given.num]
        subprocess.run([sys.executable, *map(str, [*write, "--seed", given.seed])], check=True)
        # The truth first: what is there is whole.
        (folder / ".questions.truth.parquet").rename(folder / "questions.truth.parquet")
        (folder / ".questions.parquet").rename(questions)
    rewards = "implicit,contrast" if "contrast" in given.also else "implicit"
    data_engine(
        "run", *ENGINE_FLAGS, "--dataset_path", questions, "--work_dir", work_dir, "--seed", given.seed,
        "--sample_k", given.k, "--rank", rank_of(given.k), "--rewards", rewards,
        "--rank_by", "implicit.sum,implicit.avg",
    )  # fmt: skip
    export(folder, work_dir, "engine")
    for name in given.also:
        source = work_dir
        if name == "shuffled":
            source = folder / "shuffled"
            if not (folder / "exports" / name).exists():
                shuffle_rewards(work_dir, source, given.seed)
        data_engine("pairs", source, "--name", name, "--max_pairs", "1", *OTHER_PAIRINGS[name])
        export(folder, source, name, "--name", name)


if __name__ == "__main__":
    main()
