"""Work directories with known answers and log-probs, for the tests of what comes after the models."""

import hashlib
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from run_files import png

from data_engine import schemas, stages
from data_engine.config import RunConfig
from data_engine.pipeline import pair
from data_engine.pipeline.pair_settings import Settings
from data_engine.pipeline.rewarded import Stored
from data_engine.preferences.funnel import Funnel
from data_engine.questions.dataset import Questions, load_questions
from data_engine.stages import RunStages
from data_engine.store import units
from data_engine.store.file_hashes import hash_files
from data_engine.store.folders import scratch_folder
from data_engine.store.made_from import made_from
from data_engine.store.units import UnitResult, split_units

MARKERS = ("<image>", "</s>", " ASSISTANT: ")
WORDS = ("a", "red", "blue", "small", "large", "cat", "dog", "bus", "sits", "on", "under", "near", "the", "house")
SETTINGS = {"rank": 2, "distance": 25, "beta": 0.1, "seed": 0, "markers": MARKERS, "same_tokenizer": True, "bound": {}}


@dataclass
class World:
    """A dataset of questions, and the answers that two models could have given and scored."""

    folder: Path
    rows: list[dict]
    """idx, sample_index, answer, instruct, reward (token log-probs), in the order of the questions"""
    unit_size: int = 8

    @property
    def dataset_path(self) -> Path:
        return self.folder / "questions.parquet"

    def questions(self) -> Questions:
        return load_questions(str(self.dataset_path))

    def units(self) -> list[range]:
        return split_units(len(self.questions()), self.unit_size)

    def publish(
        self,
        work_dir: Path,
        order: Callable[[list], None] = lambda rows: None,
        left_out: Mapping | None = None,
        missing: Mapping | None = None,
    ) -> None:
        """Publish every unit of the three stages; `order` may shuffle the rows of each file.

        `left_out` and `missing` are rows that units say they left out, by (stage, unit).
        """
        questions = self.questions()
        kinds = {"sampled_answer": schemas.sampled_answer, "instruct_logps": schemas.logps}
        kinds["reward_logps"] = schemas.logps
        for unit, span in enumerate(self.units()):
            idxs = set(questions.idx[span.start : span.stop])
            own = [row for row in self.rows if row["idx"] in idxs]
            digests = [question.digest for question in questions.rows(span)]
            for stage, schema in kinds.items():
                order(own)
                table = pa.Table.from_pylist([_record(stage, row) for row in own], schema(questions.idx_type))
                without = [(told or {}).get((stage, unit), []) for told in (left_out, missing)]
                publish(work_dir, stage, unit, UnitResult(table, *without, rows=digests))

    def pair(self, work_dir: Path, debug: bool = False, **settings) -> Funnel:
        """Stage 2, by SETTINGS and what is given here."""
        questions, ranges = self.questions(), self.units()
        named = SETTINGS | settings
        exif, same_tokenizer = named.pop("exif", "apply"), named.pop("same_tokenizer")
        control_tokens, bound, markers = named.pop("control_tokens", ()), named.pop("bound"), named.pop("markers")
        run_stages = named.pop("run_stages", RunStages())
        stored = Stored(
            work_dir, len(ranges), questions.idx_type, bound, markers, same_tokenizer, run_stages,
            lambda unit: questions.idx[ranges[unit].start : ranges[unit].stop],
        )  # fmt: skip
        source = pair.DatasetSource(questions, ranges, exif, control_tokens)
        with scratch_folder(work_dir, "pairing") as scratch:
            return pair.run(stored, Settings(**named), source, scratch, debug)

    def write_run_file(self, work_dir: Path) -> None:
        """The run.json of a run of this dataset, as far as commands about a work_dir read it."""
        paths = {"dataset_path": str(self.dataset_path), "work_dir": str(work_dir)}
        config = RunConfig(instruct_model_path="instruct", reward_model_path="reward", **paths)
        run_file = {"config": asdict(config), "bound": {"dataset": self.questions().fingerprint(hash_files)}}
        (work_dir / "run.json").write_text(json.dumps(run_file))


def publish(work_dir: Path, stage: str, unit: int, result: UnitResult, bound: Mapping | None = None) -> None:
    """Publish a unit that names the units that it needs, which are there, and the bound values."""
    known = stages.known()[stage]
    inputs = {name: units.read_unit(work_dir, name, unit) for name in known.needs}
    units.publish_result(work_dir, stage, unit, result, made_from(known, bound or {}, inputs))


def _record(stage: str, row: dict) -> dict:
    key = {"idx": row["idx"], "sample_index": row["sample_index"]}
    if stage == "sampled_answer":
        return {**key, "answer": row["answer"], "token_ids": [5, 6, 2], "finish_reason": "stop"}
    logps = row[stage.removesuffix("_logps")]
    # Nothing may read these two: they are wrong on purpose.
    return {**key, "token_logps": logps, "sum": 123.0, "mean": 456.0}


def picture(number: int) -> bytes:
    """A small PNG of a colour of its own."""
    return png(Image.new("RGB", (6, 4), (number % 256, number // 256 % 256, 77)))


def make_world(folder: Path, num_questions: int = 30, num_answers: int = 6, unit_size: int = 8, **columns) -> World:
    """Questions q000, q001, ... (other `columns` win), and random answers with random log-probs."""
    draw = random.Random(11)
    defaults = {
        "idx": [f"q{number:03d}" for number in range(num_questions)],
        "question": [f"What is in picture {number}?" for number in range(num_questions)],
        "image": [{"bytes": picture(number), "path": f"{number}.png"} for number in range(num_questions)],
    }
    table = pa.table(defaults | columns)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / "questions.parquet", row_group_size=10)
    rows = []
    for idx in table["idx"].to_pylist():
        for sample_index in range(num_answers):
            tokens, words = draw.randrange(3, 9), draw.randrange(4, 30)
            rows.append(
                {
                    "idx": idx,
                    "sample_index": sample_index,
                    "answer": " ".join(draw.choices(WORDS, k=words)),
                    "instruct": [-draw.random() for _ in range(tokens)],
                    # Longer answers are better on average, as they often are.
                    "reward": [-draw.random() * (1.5 - words / 30) for _ in range(tokens)],
                }
            )
    return World(folder, rows, unit_size)


def digest(folder: Path) -> str:
    """One sha256 of the names and bytes of a folder's files."""
    result = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            result.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return result.hexdigest()


def dataset_rows(work_dir: Path) -> list[dict]:
    """The rows of the dataset, in order."""
    files = sorted((work_dir / "dataset").iterdir())
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def pairs_rows(work_dir: Path) -> list[dict]:
    return pq.read_table(work_dir / "pairs/pairs.parquet").to_pylist()
