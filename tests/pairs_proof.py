"""Pairing anew at size: `python tests/pairs_proof.py 100000 [--folder DIR] [--only NAME]`, or `make prove-pairs`.

Writes the published units of a stub model (ten answers a question, of a hundred tokens), without any dataset, runs the
real `data-engine pairs` by each strategy on two cores, and prints its seconds and its peak memory, all processes
together.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from multiprocessing import Pool
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from size_proof import LIMIT_BYTES, NUM_ANSWERS, TOKENS_A_WORD, Vocabulary, publish_unit, watched

from data_engine import schemas
from data_engine.config import RunConfig
from data_engine.of_pairing import pairs_file
from data_engine.pipeline.pair_settings import Settings
from data_engine.preferences.funnel import Funnel
from data_engine.store import units

TOKENS_AN_ANSWER = 100
NUM_CORES = 2
LIMIT_S = 60
# So many units are made faster than other processes start.
MOST_ALONE = 20
MARKERS = ["<image>", "</s>", " ASSISTANT: "]
# What is measured, by name: the flags.
PAIRINGS = {
    "cross": [],
    "best_worst": ["--strategy", "best_worst"],
    "aligned": ["--strategy", "aligned"],
    "right_wrong": ["--strategy", "right_wrong", "--right", "0.2", "--max_pairs", "15"],
    "mu_2sigma": ["--strategy", "mu_2sigma"],
    "margins": ["--min_margin", "0.1", "--max_margin", "2"],
    "length_alpha": ["--length_alpha", "auto", "--rank_by", "implicit.sum"],
    "near_duplicates": ["--near_duplicates", "0.8"],
}
# These do more than a strategy does, and have no limit.
UNLIMITED = ("length_alpha", "near_duplicates")


@dataclass(frozen=True)
class Measured:
    """What one pairing took."""

    name: str
    seconds: float
    peak_bytes: int
    kept: int

    def __str__(self) -> str:
        return f"{self.name:<16}{self.seconds:7.1f} s{self.peak_bytes / 1e6:8.0f} MB{self.kept:>10,} pairs kept"


def prepare(work_dir: Path, num_questions: int) -> None:
    """A run of which every unit is published, and whose own pairs are an empty table."""
    unit_size = units.auto_unit_size(num_questions)
    spans = units.split_units(num_questions, unit_size)
    calls = [(work_dir, unit, span) for unit, span in enumerate(spans)]
    if len(calls) > MOST_ALONE:
        with Pool(NUM_CORES) as pool:
            pool.starmap(_publish, calls, chunksize=8)
    else:
        for call in calls:
            _publish(*call)
    config = RunConfig(
        instruct_model_path="instruct",
        reward_model_path="reward",
        dataset_path="questions.parquet",
        work_dir=str(work_dir),
    )
    described = {
        "layout": 2, "bound": {"dataset": ""}, "frozen": {}, "versions": {}, "config": asdict(config),
        "units": {"num_questions": num_questions, "unit_size": unit_size, "num_units": len(spans)},
        "models": {"instruct": {"markers": MARKERS}},
    }  # fmt: skip
    (work_dir / "run.json").write_text(json.dumps(described))
    told = {"settings": Settings().to_json(), "funnel": Funnel().to_json(), "same_tokenizer": "true"}
    told["rewards"] = json.dumps("implicit")
    pairs_file(work_dir).parent.mkdir()
    pq.write_table(schemas.pairs(pa.string()).with_metadata(told).empty_table(), pairs_file(work_dir))


def _publish(work_dir: Path, unit: int, span: range) -> None:
    words_an_answer = round(TOKENS_AN_ANSWER / TOKENS_A_WORD)
    publish_unit((work_dir, {"dataset": ""}), unit, (span, [""] * len(span)), (_vocabulary(), None), words_an_answer)


_vocabulary = functools.cache(Vocabulary)


def measure(work_dir: Path, name: str, flags: list[str]) -> Measured:
    """Pair the answers of the run by these flags."""
    command = [sys.executable, "-m", "data_engine", "pairs", str(work_dir), "--name", name, *flags]
    start = time.perf_counter()
    peak = watched(command, start_new_session=True, stdout=subprocess.DEVNULL, preexec_fn=_on_two_cores)
    seconds = time.perf_counter() - start
    funnel = Funnel.from_json(pq.read_schema(pairs_file(work_dir, name)).metadata[b"funnel"].decode())
    return Measured(name, seconds, peak, funnel.found)


def _on_two_cores() -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:NUM_CORES])


def main() -> str | None:
    """Measure each pairing; what is wrong with the result, None if all is well."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("num_questions", type=int)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    parser.add_argument("--only", choices=PAIRINGS, action="append", help="this one alone; may be repeated")
    options = parser.parse_args()
    faults = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        work_dir = Path(folder, "work")
        prepare(work_dir, options.num_questions)
        print(f"{options.num_questions} questions x {NUM_ANSWERS} answers of {TOKENS_AN_ANSWER} tokens", flush=True)
        for name in options.only or PAIRINGS:
            one = measure(work_dir, name, PAIRINGS[name])
            print(one, flush=True)
            if one.peak_bytes > LIMIT_BYTES:
                faults.append(f"{name} took more than 2 GB")
            if one.seconds > LIMIT_S and name not in UNLIMITED:
                faults.append(f"{name} took more than {LIMIT_S} s")
    return "; ".join(faults) or None


if __name__ == "__main__":
    sys.exit(main())
