"""What is told of the parts of a run that take long at size and compute nothing: a line each, with the time left."""

import re
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from export_world import square
from given_rule import ANSWERS, RIGHT

from data_engine.commands.main import main
from data_engine.exports import EXPORTS
from data_engine.planning.weights import NOT_LOOKED_AT
from data_engine.processes import counting
from data_engine.store import units

NUM_ANSWERS = sum(map(len, ANSWERS.values()))
NEEDS_LOG_PROBS = {"rlaif-v-logps"}


@pytest.fixture
def pictures(tmp_path) -> Path:
    """The questions with a picture each, which some formats need."""
    image = {"bytes": square("red"), "path": "red.png"}
    rows = [{"idx": idx, "question": "How many?", "answer": right, "image": image} for idx, right in RIGHT.items()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pictures.parquet")
    return tmp_path / "pictures.parquet"


@pytest.fixture
def every_line(monkeypatch):
    """A line an item."""
    monkeypatch.setattr(counting, "FIRST_LINE_S", 0.0)
    monkeypatch.setattr(counting, "LINE_S", 0.0)


def counted(text: str) -> dict[str, int]:
    """What was counted, and how many there are of it; the last line of each tells the time left."""
    found = re.findall(r"^(?:.*: )?(\d+) of (\d+) ([a-z ]+)(?:, (\d+ s) left)?$", text, re.MULTILINE)
    last = {what: (int(total), left) for _, total, what, left in found}
    assert all(left for total, left in last.values() if total > 1)
    return {what: total for what, (total, _) in last.items()}


def test_reading_answers_pairing_and_writing_are_counted(given, pictures, every_line, tmp_path, capsys):
    assert given("final_answer", pictures) == 0
    told = counted(capsys.readouterr().err)
    # The pairs of two questions: each right answer with each wrong one is one at most.
    assert 1 < told.pop("pairs") == told.pop("rows written")
    assert told == {"answers": NUM_ANSWERS, "units": 2}


def told_by(*command: str) -> list[str]:
    """The lines on stderr of a command in a process of its own, which sets up how it logs, without the time left.

    As where torch is not installed: `validate` would have a further process import it, in seconds.
    """
    code = (
        "from data_engine.processes import counting; counting.FIRST_LINE_S = counting.LINE_S = 0.0; "
        "from data_engine.planning import weights; weights.is_installed = lambda: False; "
        f"from data_engine.commands.main import main; raise SystemExit(main({list(command)}))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return re.sub(r", \d+ s left$", "", printed.stderr, flags=re.MULTILINE).splitlines()


def test_another_pairing_counts_the_units(given, pictures, tmp_path):
    assert given("final_answer", pictures) == 0
    lines = told_by("pairs", str(tmp_path / "work"), "--name", "other", "--length_alpha", "auto")
    # Answers are read once to find alpha, and once to pair them.
    assert lines == ["0 of 2 units", "1 of 2 units"] * 2


def test_validate_counts_the_answers_that_it_reads(given, pictures, tmp_path):
    flags = {"dataset_path": pictures, "answers": tmp_path / "answers.jsonl", "work_dir": tmp_path / "work"}
    flags |= {"rewards": "rule", "rule": "final_answer", "rank": 1}
    lines = told_by("validate", *(f"--{name}={value}" for name, value in flags.items()))
    assert lines.pop() == f"data-engine: warning: {NOT_LOOKED_AT}"
    assert lines == [f"{number} of {NUM_ANSWERS} answers" for number in range(NUM_ANSWERS)]


def test_every_export_counts_what_it_reads(given, pictures, every_line, tmp_path, capsys):
    assert given("final_answer", pictures) == 0
    for name in EXPORTS.keys() - NEEDS_LOG_PROBS:
        capsys.readouterr()
        assert main(["export", str(tmp_path / "work"), "--format", name, "--output", str(tmp_path / name)]) == 0
        told = counted(capsys.readouterr().err)
        if name == "scored":
            assert told == {"units of answers": 2}
        else:
            assert told.pop("rows written") > 1, name
            assert told.keys() == ({"units of answers"} if name.endswith("sft") else {"pairs"}), name


def test_a_start_reads_the_footers_of_several_units_at_once(given, pictures, monkeypatch):
    """A shared disk takes its time for each file: of two units, a footer comes only when the other is asked for too."""
    flags = {"unit_size": 1, "limit": 2, "stop_after_stage": 1}
    assert given("final_answer", pictures, **flags) == 0
    both, read, num_read = threading.Barrier(2), units.read_facts, []

    def read_late(path: Path) -> tuple[dict, str]:
        num_read.append(path)
        both.wait(timeout=20)
        return read(path)

    monkeypatch.setattr(units, "read_facts", read_late)
    assert given("final_answer", pictures, **flags) == 0
    # Two stages, by the look at the start and for the rows left out, which are told at the end.
    assert len(num_read) == 2 * 2 * 2
