"""Stage 2 at size: `python tests/size_proof.py 50000 200000 [--folder DIR]`, or `make prove-size`.

Writes the published units of a stub model (ten answers a question, of a real model's lengths) and a dataset of small
pictures, runs the real `data-engine run --continue_from_stage 2`, and prints its seconds and its peak memory, all
processes together; from two sizes on, the bytes and the time that each further question takes.
"""

import argparse
import io
import itertools
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from stage2_world import publish

from data_engine import schemas
from data_engine.config import RunConfig
from data_engine.job.plan import Plan
from data_engine.processes.ranks import Ranks
from data_engine.questions.dataset import load_questions
from data_engine.store import units
from data_engine.store.units import UnitResult

ROOT = Path(__file__).parents[1]
NUM_ANSWERS = 10
WORDS_AN_ANSWER = 115
TOKENS_A_WORD = 1.35
POLL_S = 0.1
LIMIT_BYTES = 2e9
# A further question may take so many times the processor time of the ones before.
STEEPEST = 1.3
# Some of what is written in answers, and that NLTK has to be asked about as a whole.
HARD = ("the sign 'Main St.'", "Dr. J. Smith", "waiting... then", "no. 5. or so", "[sic]")
SYLLABLES = ("ba", "den", "ko", "li", "mur", "na", "pel", "ra", "sto", "ti", "ven", "wa")


@dataclass(frozen=True)
class Measured:
    """What one run took."""

    num_questions: int
    seconds: float
    cpu_seconds: float
    """on the processor, which does not depend on what else the machine does"""
    peak_bytes: int
    num_pairs: int

    def __str__(self) -> str:
        return (
            f"{self.num_questions} questions x {NUM_ANSWERS} answers: {self.seconds:.0f} s "
            f"({self.cpu_seconds:.0f} s of processor time), peak memory {self.peak_bytes / 1e6:.0f} MB, "
            f"{self.num_pairs} pairs written"
        )


def prepare(
    folder: Path,
    num_questions: int,
    for_a_run: bool = False,
    picture: Callable[[int], bytes] | None = None,
    encode: Callable[[str, str], list[int]] | None = None,
) -> tuple[Path, Path]:
    """The dataset of `num_questions` and a work_dir in which stages 0 and 1 are complete.

    With `for_a_run` the units are bound to what `flags` says, so that a run goes on with them. `picture` makes that of
    a row; else there are 500 small ones. `encode` makes the ids of an answer to a question; else they are random.
    """
    dataset, work_dir = folder / "questions.parquet", folder / "work"
    folder.mkdir(parents=True, exist_ok=True)
    small = [_picture(number) for number in range(500)]
    picture = picture or (lambda row: small[row % len(small)])
    schema = pa.schema([("idx", pa.string()), ("question", pa.string()), ("image", schemas.IMAGE)])
    spans = units.split_units(num_questions, units.auto_unit_size(num_questions))
    with pq.ParquetWriter(dataset, schema) as writer:
        for span in spans:
            rows = [
                {
                    "idx": _idx(row),
                    "question": _question(row),
                    "image": {"bytes": picture(row), "path": f"{row}.jpg"},
                }
                for row in span
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema))
    vocabulary, questions = Vocabulary(), load_questions(str(dataset))
    bound = Plan.of(RunConfig(**flags(dataset, work_dir)), Ranks()).bound if for_a_run else {}
    for unit, span in enumerate(spans):
        digests = [question.digest for question in questions.rows(span)]
        publish_unit((work_dir, bound), unit, (span, digests), (vocabulary, encode))
    return dataset, work_dir


def flags(dataset: Path, work_dir: Path) -> dict[str, str]:
    """Those of the run that is measured."""
    checkpoints = ROOT / "engine/data_engine/demo/checkpoints"
    models = {f"{role}_model_path": str(checkpoints / role) for role in ("instruct", "reward")}
    return {**models, "dataset_path": str(dataset), "work_dir": str(work_dir)}


class Vocabulary:
    """8,000 made-up words, a few of them in most of the text, as in any language."""

    def __init__(self) -> None:
        draw = np.random.default_rng(1)
        self.words = np.array(["".join(draw.choice(SYLLABLES, draw.integers(1, 5))) for _ in range(8000)], object)
        self.shares = 1 / np.arange(2, len(self.words) + 2)
        self.shares /= self.shares.sum()

    def answer(self, draw: np.random.Generator, num_words: int) -> str:
        """Sentences of about 14 words with commas; one answer in twenty has something hard in it."""
        words = draw.choice(self.words, num_words, p=self.shares).tolist()
        for start in range(0, num_words, 14):
            words[start] = words[start].capitalize()
            end = min(start + 13, num_words - 1)
            words[end] += "."
            if start + 6 < end:
                words[start + 6] += ","
        if draw.random() < 0.05:
            words[num_words // 2] = HARD[draw.integers(len(HARD))]
        return " ".join(words)


def publish_unit(
    place: tuple[Path, Mapping],
    unit: int,
    rows: tuple[range, list[str]],
    words: tuple[Vocabulary, Callable | None],
    words_an_answer: int = WORDS_AN_ANSWER,
) -> None:
    """Publish a unit of each stage."""
    (work_dir, bound), (span, digests), (vocabulary, encode) = place, rows, words
    draw = np.random.default_rng([2, unit])
    num_words = np.maximum(5, draw.normal(words_an_answer, 25, len(span) * NUM_ANSWERS)).astype(int)
    keys = {
        "idx": pa.array(np.repeat([_idx(row) for row in span], NUM_ANSWERS), pa.string()),
        "sample_index": pa.array(np.tile(np.arange(NUM_ANSWERS), len(span)), pa.int32()),
    }
    starts = np.concatenate([[0], np.cumsum(num_words * TOKENS_A_WORD)]).astype(np.int32)
    values = draw.integers(3, 32000, starts[-1])
    answers = [vocabulary.answer(draw, number) for number in num_words]
    if encode is not None:
        asked = np.repeat([_question(row) for row in span], NUM_ANSWERS)
        encoded = [encode(question, answer) for question, answer in zip(asked, answers, strict=True)]
        starts = np.concatenate([[0], np.cumsum([len(one) for one in encoded])]).astype(np.int32)
        values = np.concatenate(encoded)
    ids = pa.ListArray.from_arrays(starts, pa.array(values, pa.int32()))
    finish = ["stop"] * len(answers)
    schema = schemas.sampled_answer(pa.string())
    table = pa.table({**keys, "answer": answers, "token_ids": ids, "finish_reason": finish}, schema)
    publish(work_dir, "sampled_answer", unit, UnitResult(table, [], rows=digests), bound)
    instruct = -draw.exponential(1, starts[-1])
    for stage, values in (
        ("instruct_logps", instruct),
        # Longer answers are better on average, as they often are, so that the length balance has work to do.
        ("reward_logps", instruct + draw.normal(0.02, 0.3, len(instruct))),
    ):
        logps = pa.ListArray.from_arrays(starts, pa.array(values, pa.float32()))
        sums = np.add.reduceat(values, starts[:-1])
        columns = {**keys, "token_logps": logps, "sum": sums, "mean": sums / np.diff(starts)}
        publish(work_dir, stage, unit, UnitResult(pa.table(columns, schemas.logps(pa.string())), []), bound)


def _question(row: int) -> str:
    return f"What is to be seen in picture {row}?"


def _idx(row: int) -> str:
    return f"question-{row:07d}"


def _picture(number: int) -> bytes:
    """A JPEG of about 2 kB."""
    file = io.BytesIO()
    noise = np.random.default_rng(number).integers(0, 256, (24, 32, 3), np.uint8)
    Image.fromarray(noise).resize((96, 72)).save(file, "JPEG")
    return file.getvalue()


def watched(command: list[str], **options: object) -> int:
    """Run a command to its end; the most bytes that its processes held together."""
    process, peak = subprocess.Popen(command, **options), 0
    while process.poll() is None:
        peak = max(peak, sum(resident(process.pid)))
        time.sleep(POLL_S)
    if process.returncode:
        raise SystemExit(f"{' '.join(command[2:5])} ended with exit code {process.returncode}")
    return peak


def measure(folder: Path, num_questions: int) -> Measured:
    """Prepare, run stage 2, and measure it."""
    dataset, work_dir = prepare(folder, num_questions, for_a_run=True)
    command = [sys.executable, "-m", "data_engine", "run", "--continue_from_stage", "2", "--threads", "1"]
    for flag, value in flags(dataset, work_dir).items():
        command += [f"--{flag}", value]
    start, cpu_start = time.perf_counter(), _children_s()
    peak = watched(command, start_new_session=True)
    seconds = time.perf_counter() - start
    written = sum(pq.read_metadata(file).num_rows for file in (work_dir / "dataset").iterdir())
    return Measured(num_questions, seconds, _children_s() - cpu_start, peak, written)


def _children_s() -> float:
    """Processor time of all processes that were waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def resident(session: int) -> list[int]:
    """Resident bytes of every process of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        # Fields 6 and 24 of proc(5): session, and resident pages.
        if int(fields[3]) == session:
            found.append(int(fields[21]) * 4096)
    return found


def main() -> str | None:
    """Measure each size asked for; what is wrong with the result, None if all is well."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("num_questions", type=int, nargs="+")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    options = parser.parse_args()
    results: list[Measured] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for number in options.num_questions:
            results.append(measure(Path(folder, str(number)), number))
            shutil.rmtree(Path(folder, str(number)), ignore_errors=True)
            print(results[-1], flush=True)
    faults = [f"{one.num_questions} questions took more than 2 GB" for one in results if one.peak_bytes > LIMIT_BYTES]
    for one, other in itertools.pairwise(results):
        more = other.num_questions - one.num_questions
        first_ms = one.cpu_seconds / one.num_questions * 1e3
        more_ms = (other.cpu_seconds - one.cpu_seconds) / more * 1e3
        print(
            f"each question from {one.num_questions} to {other.num_questions}: "
            f"{(other.peak_bytes - one.peak_bytes) / more:.0f} bytes of memory, {more_ms:.2f} ms of processor time "
            f"(before: {first_ms:.2f} ms)"
        )
        if more_ms > STEEPEST * first_ms:
            faults.append(f"time is not linear from {one.num_questions} to {other.num_questions} questions")
    return "; ".join(faults) or None


if __name__ == "__main__":
    sys.exit(main())
