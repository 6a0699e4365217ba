"""The whole job of `data-engine bench`: the stages on files, and the share of the time that no model call takes."""

import contextlib
import functools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq

from data_engine import stages
from data_engine.bench.model import QUESTION, Subject
from data_engine.bench.ways import sampling_params
from data_engine.models.layers.head import Head
from data_engine.pipeline import pair, sample, score
from data_engine.pipeline.pair_settings import Settings
from data_engine.pipeline.rewarded import Stored
from data_engine.questions.dataset import load_questions
from data_engine.sampling.backend import BackendSettings
from data_engine.sampling.native import model_runner
from data_engine.sampling.native.backend import NativeBackend
from data_engine.sampling.native.scheduler import SamplingEngine
from data_engine.sampling.requests import PromptRequest
from data_engine.schemas import IMAGE, sampled_answer
from data_engine.scoring import logprobs
from data_engine.stages import Stage
from data_engine.store import units
from data_engine.store.folders import scratch_folder
from data_engine.store.made_from import made_from
from data_engine.store.sealed import Sealed
from data_engine.store.units import UnitResult
from data_engine.store.writer import Writer

# What counts as the model's time: prompts with their images, the head, and drawing from its logits; and the model's own
# `run_answers`. Each is replaced under the name by which its caller finds it, so a call that moves to another module
# must move here too.
MODEL_CALLS = (
    (model_runner, "run_prefix"), (logprobs, "run_prefix"), (Head, "logits"), (Head, "token_logps"),
    (model_runner, "next_tokens"),
)  # fmt: skip
# A module or a class, and a name in it.
Place = tuple[ModuleType | type, str]


class _Forced(NativeBackend):
    """The native back end, whose answers get the bench's lengths, in the order in which questions come."""

    def __init__(self, sampler: SamplingEngine, settings: BackendSettings, lengths: list[list[int]]) -> None:
        super().__init__(sampler, settings)
        self.lengths = lengths

    def submit(self, requests: Iterable[PromptRequest]) -> None:
        super().submit(replace(one, lengths=own) for one, own in zip(requests, self.lengths, strict=False))


@dataclass
class JobFigures:
    """Seconds and bytes of the last run of the job."""

    seconds: float = 0.0
    model_seconds: float = 0.0
    bytes_on_disk: int = 0

    @property
    def overhead(self) -> float:
        """Share of the wall time that no model call takes."""
        return 1 - self.model_seconds / self.seconds


class TimedJob:
    """Questions with JPEG images on disk, and all that `run` does with them once the models are loaded."""

    def __init__(self, subject: Subject, sampler: SamplingEngine, folder: Path, tokens_a_pass: int) -> None:
        self.subject, self.sampler, self.folder, self.tokens_a_pass = subject, sampler, folder, tokens_a_pass
        self.figures = JobFigures()
        number = subject.sizes.drawn_questions
        rows = [
            {"idx": f"q{i}", "question": QUESTION, "image": {"bytes": subject.photos[i], "path": f"{i}.jpg"}}
            for i in range(number)
        ]
        schema = pa.schema([("idx", pa.string()), ("question", pa.string()), ("image", IMAGE)])
        pq.write_table(pa.Table.from_pylist(rows, schema), folder / "questions.parquet")
        self.unit_ranges = units.split_units(number, number)
        self.runs = 0

    def run(self) -> int:
        """Sample, score by two models (here the same weights), pair; tokens drawn."""
        self.runs += 1
        work_dir = self.folder / f"run-{self.runs}"
        start = time.perf_counter()
        with model_calls((*MODEL_CALLS, (type(self.subject.engine), "run_answers"))) as spent:
            tokens = self._run(work_dir)
        self.figures.seconds, self.figures.model_seconds = time.perf_counter() - start, sum(spent.values())
        uncalled = [f"{owner.__name__}.{name}" for (owner, name), seconds in spent.items() if not seconds]
        # A captured CUDA graph makes these calls once, in the first run; only the CPU's time is reported.
        if uncalled and self.subject.engine.device.type == "cpu":
            raise RuntimeError(
                f"the job has not called {', '.join(uncalled)}: bench/job.py must say who is timed instead"
            )
        files = [path for path in work_dir.rglob("*") if path.is_file()]
        self.figures.bytes_on_disk = sum(path.stat().st_size for path in files)
        return tokens

    def _run(self, work_dir: Path) -> int:
        questions = load_questions(str(self.folder / "questions.parquet"))
        writer, tokens, sizes = Writer(), 0, self.subject.sizes
        params = sampling_params(sizes)
        sampling = sample.SampleSettings(sizes.k, 0, params, crop=False, max_megapixels=64)
        settings = BackendSettings(self.subject.engine, params, sizes.k, self.sampler.num_rows, self.sampler.num_slots)
        scoring = score.ScoreSettings(as_text=False, max_megapixels=64, tokens_a_pass=self.tokens_a_pass)

        def publish(stage: Stage, unit: int, result: UnitResult, inputs: dict[str, Sealed]) -> None:
            facts = made_from(stage, {}, inputs)
            work = functools.partial(units.publish_result, work_dir, stage.name, unit, result, facts)
            writer.hand_over(work, contextlib.ExitStack())

        for unit, rows in enumerate(self.unit_ranges):
            backend = _Forced(self.sampler, settings, self.subject.lengths_BK[rows.start : rows.stop].tolist())
            runner = sample.SamplingRunner(backend, self.subject.engine, questions.idx_type, sampling)
            result = self._all_counted(sample.sample_unit(runner, questions.rows(rows)))
            tokens += sum(map(len, result.table["token_ids"].to_pylist()))
            publish(stages.SAMPLING, unit, result, {})
        writer.wait()
        for stage in stages.RunStages().between(stages.REWARD, stages.REWARD):
            for unit, rows in enumerate(self.unit_ranges):
                sampled = units.read_unit(work_dir, stages.SAMPLING.name, unit)
                result = score.score_unit(self.subject.engine, questions.rows(rows), sampled.table, scoring)
                publish(stage, unit, result, {stages.SAMPLING.name: sampled})
        writer.wait()
        stored = Stored(
            work_dir, len(self.unit_ranges), questions.idx_type, {}, self.subject.engine.markers, same_tokenizer=True
        )
        with scratch_folder(work_dir, "pairing") as scratch:
            pair.run(stored, Settings(), pair.DatasetSource(questions, self.unit_ranges), scratch)
        return tokens

    def _all_counted(self, result: UnitResult) -> UnitResult:
        """The same unit with no thought in it: of a model that thinks, answers of forced lengths finish none."""
        text, kind = self.subject.engine.text, result.table.schema.field("idx").type
        rows = [row | {"answer": text(row["token_ids"])} for row in result.table.to_pylist()]
        return replace(result, table=pa.Table.from_pylist(rows, sampled_answer(kind)))


@contextlib.contextmanager
def model_calls(places: Sequence[Place]) -> Iterator[dict[Place, float]]:
    """Seconds spent in each of these functions; right on CPU, where a call lasts as long as its work.

    Where one calls another, the time is that of the outer one.
    """
    spent = dict.fromkeys(places, 0.0)
    originals = [(owner, name, getattr(owner, name)) for owner, name in places]
    inside: list[Place] = []

    def timed(place, function):
        def call(*arguments, **options):
            if inside:
                return function(*arguments, **options)
            inside.append(place)
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                inside.pop()
                spent[place] += time.perf_counter() - start

        return call

    for owner, name, function in originals:
        setattr(owner, name, timed((owner, name), function))
    try:
        yield spent
    finally:
        for owner, name, function in originals:
            setattr(owner, name, function)
