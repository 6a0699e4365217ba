"""Memory and start-up as questions and units grow; the sizes that take minutes are those of `make prove-size`."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import size_proof
from size_proof import measure, prepare

from data_engine.config import RunConfig
from data_engine.job import last_step, worker
from data_engine.job.plan import Plan
from data_engine.processes.ranks import Ranks
from data_engine.schemas import IMAGE
from data_engine.stages import RunStages
from data_engine.store import units
from data_engine.store.made_from import made_from
from data_engine.store.units import UnitResult

STAGES = tuple(RunStages().by_name)

CHECKPOINTS = Path(__file__).parents[2] / "engine/data_engine/demo/checkpoints"

PAIRING = """
import sys, tracemalloc
from pathlib import Path
import pyarrow as pa
from data_engine.pipeline import pair, pairing
from data_engine.pipeline.pair_settings import Settings
from data_engine.pipeline.rewarded import Stored
from data_engine.preferences import candidates
from data_engine.questions.dataset import load_questions
from data_engine.store.folders import scratch_folder
from data_engine.store.units import split_units

# What is held until there is enough of it to write is not what grows.
candidates.BUFFER_ROWS = 100
pairing.count_words = lambda text: text.count(" ")
tracemalloc.start()
questions = load_questions(sys.argv[1])
ranges = split_units(len(questions), 10)
stored = Stored(Path(sys.argv[2]), len(ranges), questions.idx_type, {}, ("</s>",), same_tokenizer=True)
with scratch_folder(stored.work_dir, "pairing") as scratch:
    pair.run(stored, Settings(), pair.DatasetSource(questions, ranges), scratch)
print(tracemalloc.get_traced_memory()[1], pa.default_memory_pool().max_memory())
"""


def peaks_of_pairing(folder: Path, num_questions: int, monkeypatch) -> tuple[int, int]:
    """Bytes that Python and Arrow held at most; units are small, so that which of them is the largest counts little."""
    monkeypatch.setattr(units, "auto_unit_size", lambda num: 10)
    dataset, work_dir = prepare(folder, num_questions)
    command = [sys.executable, "-c", PAIRING, str(dataset), str(work_dir)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    python, arrow = map(int, done.stdout.split())
    return python, arrow


@pytest.mark.slow
def test_a_further_question_costs_pairing_a_few_hundred_bytes(tmp_path, monkeypatch):
    small, large = (peaks_of_pairing(tmp_path / str(num), num, monkeypatch) for num in (300, 1500))
    # A question is 85 kB of answers and log-probs on disk, and 4 kB of picture. Held are 660 bytes, those of its unit
    # included.
    python, arrow = ((after - before) / 1200 for before, after in zip(small, large, strict=True))
    assert python < 750
    assert arrow < 1000


@pytest.mark.long
@pytest.mark.slow
def test_the_proof_at_size_measures_a_real_run_with_all_its_processes(tmp_path):
    measured = measure(tmp_path, 60)
    assert measured.num_questions == 60
    assert 0 < measured.num_pairs <= 3 * 60
    # Python with torch cannot do with less.
    assert measured.peak_bytes > 100e6
    assert "60 questions x 10 answers" in str(measured)


@pytest.mark.parametrize(
    ("cpu_seconds", "peak_bytes", "verdict"),
    [
        # 2 ms a question, then as much or a little more for each further one, or half as much again.
        ((20, 80), (1e9, 1.1e9), None),
        ((20, 95), (1e9, 1.1e9), None),
        ((20, 110), (1e9, 1.1e9), "time is not linear from 10000 to 40000 questions"),
        ((20, 80), (1e9, 2.1e9), "40000 questions took more than 2 GB"),
    ],
)
def test_the_proof_at_size_fails_beyond_2_gb_or_where_time_is_not_linear(
    monkeypatch, capsys, cpu_seconds, peak_bytes, verdict
):
    given = dict(zip((10_000, 40_000), zip(cpu_seconds, peak_bytes, strict=True), strict=True))
    monkeypatch.setattr(size_proof, "measure", lambda folder, num: size_proof.Measured(num, 1, *given[num], 9))
    monkeypatch.setattr(sys, "argv", ["size_proof.py", "10000", "40000"])
    assert size_proof.main() == verdict
    assert "10000 questions x 10 answers: 1 s (20 s of processor time)" in capsys.readouterr().out


def test_the_memory_of_a_session_is_that_of_its_processes_together():
    hold = "import time; data = bytearray(50_000_000); print(1, flush=True); time.sleep(600)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True) as process:
        process.stdout.readline()
        resident = size_proof.resident(process.pid)
        os.killpg(process.pid, 9)
    assert len(resident) == 2
    assert 50e6 < max(resident) < 100e6


@pytest.mark.slow
def test_a_start_with_ten_thousand_units_reads_a_footer_of_each_and_lists_each_stage_a_few_times(tmp_path, monkeypatch):
    rows = {"idx": range(20_000), "question": ["?"] * 20_000, "image": pa.nulls(20_000, IMAGE)}
    pq.write_table(pa.table(rows), tmp_path / "questions.parquet")
    config = RunConfig(
        instruct_model_path=str(CHECKPOINTS / "instruct"), reward_model_path=str(CHECKPOINTS / "reward"),
        dataset_path=str(tmp_path / "questions.parquet"), work_dir=str(tmp_path / "work"), unit_size=2, threads=1,
        stop_after_stage=1, device="cpu", dtype="float32",
    )  # fmt: skip
    work_dir = tmp_path / "work"
    bound, inputs, first = Plan.of(config, Ranks()).bound, {}, {}
    for name, stage in RunStages().by_name.items():
        result = UnitResult(stage.schema(pa.int64()).empty_table(), [], rows=[None, None])
        facts = made_from(stage, bound, {needed: inputs[needed] for needed in stage.needs})
        units.publish_result(work_dir, name, 0, result, facts)
        inputs[name], first[name] = units.read_unit(work_dir, name, 0), units.unit_path(work_dir, name, 0)
        for unit in range(1, 10_000):
            os.link(first[name], units.unit_path(work_dir, name, unit))
    listed, listing, footers, read_facts = [], os.listdir, [], units.read_facts
    monkeypatch.setattr(units.os, "listdir", lambda folder: listed.append(Path(folder).name) or listing(folder))
    monkeypatch.setattr(units, "read_sealed", lambda path: pytest.fail("no unit is read as a whole"))
    monkeypatch.setattr(units, "read_facts", lambda path: footers.append(path) or read_facts(path))
    # Of the time at the end: what was left out is told from the same footers.
    summary = SimpleNamespace(table=lambda: "", reasons={})
    monkeypatch.setattr(last_step, "Summary", SimpleNamespace(read=lambda work_dir: summary))
    assert worker.run(config) == 0
    assert len(footers) == len(set(footers)) == 30_000
    # By the job, and once a second by the bar.
    assert all(2 <= listed.count(stage) < 30 for stage in STAGES)
