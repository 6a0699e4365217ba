"""`validate` on the work_dir of a run that has begun: what it tells of another one, as the run itself refuses it."""

import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from validated import told, told_by, words

from data_engine.commands import main
from data_engine.store import file_hashes


def test_a_work_dir_of_another_run_names_every_setting_that_differs(job, tmp_path, capsys):
    assert main.main(["run", *words(job, sample_k="2", rank="1", max_new_tokens="4", unit_size="4")]) in (0, 4)
    capsys.readouterr()
    changed = words(job, sample_k="3", rank="1", max_new_tokens="5", seed="7", unit_size="4")
    [problem] = told(capsys, *changed)["problems"]
    assert "holds another run" in problem["message"]
    assert all(name in problem["message"] for name in ("sample_k", "max_new_tokens", "seed"))
    assert "units of sampled_answer were computed with it" in problem["message"]
    # As many as there are by the settings of the run, with another dataset.
    table = pq.read_table(job["dataset_path"])
    pq.write_table(pa.concat_tables([table, table.slice(0, 1).set_column(
        table.schema.get_field_index("idx"), "idx", pa.array(["one more"])
    )]), tmp_path / "more.parquet")  # fmt: skip
    more = {"dataset_path": str(tmp_path / "more.parquet"), "sample_k": "2", "rank": "1", "max_new_tokens": "4"}
    [problem] = told(capsys, *words(job, unit_size="4", **more))["problems"]
    assert f"its dataset has {len(table)} questions, this one {len(table) + 1}" in problem["message"]
    # One that is no value is held against nothing: neither it, nor the default that stands in its place.
    [problem] = told(capsys, *words(job, sample_k="2", rank="1", max_new_tokens="0", unit_size="4"))["problems"]
    assert problem["message"] == "max_new_tokens must be at least 1, got 0"


def refused_by_both(capsys, *arguments: str) -> str:
    """The one message of validate, which that of the run has in it; both exit with 2."""
    [problem] = told(capsys, *arguments)["problems"]
    assert any(problem["message"] in line for line in told_by("run", capsys, *arguments))
    return problem["message"]


@pytest.fixture
def begun(job, capsys):
    """Flags of a run that has units."""
    job |= {"sample_k": "2", "rank": "1", "max_new_tokens": "4", "unit_size": "4", "threads": "1"}
    assert main.main(["run", *words(job)]) in (0, 4)
    capsys.readouterr()
    return job


def test_a_smaller_limit_is_told_once_and_no_other_one(begun, capsys):
    message = refused_by_both(capsys, *words(begun, limit="1"))
    assert "has answers to the first 2 questions, and this start asks 1: limit may grow and not shrink" in message
    for number in ("2", "9"):
        found = told(capsys, *words(begun, limit=number))
        assert found["problems"] == []
        assert [stage["questions"] for stage in found["plan"]["stages"][:3]] == [0, 0, 0]


def test_the_plan_of_a_larger_limit_has_the_unit_that_the_smaller_one_cut_short(job, capsys):
    flags = job | {"sample_k": "2", "rank": "1", "max_new_tokens": "4", "unit_size": "2", "threads": "1"}
    assert main.main(["run", *words(flags, limit="1")]) in (0, 4)
    capsys.readouterr()
    found = told(capsys, *words(flags, limit="2"))
    assert [(stage["units"], stage["questions"]) for stage in found["plan"]["stages"][:3]] == [(1, 2)] * 3
    # It is the first shard's.
    found = told(capsys, *words(flags, limit="2", num_shards="2", shard_index="1"))
    assert [stage["units"] for stage in found["plan"]["stages"][:3]] == [0] * 3


def test_a_work_dir_of_other_questions_as_many_is_refused_as_the_run_refuses_it(begun, tmp_path, capsys):
    assert told(capsys, *words(begun))["problems"] == []
    table = pq.read_table(begun["dataset_path"])
    at = table.schema.get_field_index("question")
    other = table.set_column(at, "question", pa.array(["What else?"] * len(table)))
    pq.write_table(other, tmp_path / "other.parquet")
    message = refused_by_both(capsys, *words(begun, dataset_path=str(tmp_path / "other.parquet")))
    assert re.search(r"holds another run: dataset was \w{12}, now \w{12}; units of sampled_answer, .* were", message)
    # Beside a mistake that has nothing to do with it.
    both = words(begun, dataset_path=str(tmp_path / "other.parquet"), beta="0", dtype="int8", top_p="2")
    messages = [problem["message"] for problem in told(capsys, *both)["problems"]]
    assert message in messages
    assert len(messages) == 4, messages
    # The same bytes in another place are the same dataset.
    shutil.copy(begun["dataset_path"], tmp_path / "copy.parquet")
    assert told(capsys, *words(begun, dataset_path=str(tmp_path / "copy.parquet")))["problems"] == []


def test_a_work_dir_of_another_model_is_refused_as_the_run_refuses_it(begun, goldens, tmp_path, capsys):
    shutil.copytree(goldens / "llava", tmp_path / "llava")
    changed = words(begun, reward_model_path=str(tmp_path / "llava/reward"))
    assert told(capsys, *changed)["problems"] == []
    config = tmp_path / "llava/reward/config.json"
    config.write_text(config.read_text() + " ")
    message = refused_by_both(capsys, *changed)
    wrong = told(capsys, *changed, "--beta=0", "--device=tpu")["problems"]
    assert message in [problem["message"] for problem in wrong]
    assert len(wrong) == 3, wrong
    assert re.search(r"holds another run: reward_model was \w+, now \w+; units of reward_logps were", message)


def test_a_machine_without_a_gpu_refuses_no_run_that_has_one(begun, capsys):
    """Such as a login node, from which the rest of it is submitted."""
    path = Path(begun["work_dir"]) / "run.json"
    found = json.loads(path.read_text())
    found["bound"] |= {"device": "cuda", "dtype": "bfloat16"}
    path.write_text(json.dumps(found))
    flags = begun | {"device": "auto", "dtype": "auto"}
    assert told(capsys, *words(flags))["problems"] == []
    [problem] = told(capsys, *words(flags | {"device": "cpu"}))["problems"]
    assert "device was 'cuda', now 'cpu'" in problem["message"]
    [problem] = told(capsys, *words(flags | {"dtype": "float32"}))["problems"]
    assert "dtype was 'bfloat16', now 'float32'" in problem["message"]
    # Pairs need none.
    alone = words(flags | {"continue_from_stage": "2", "device": "cuda"})
    assert told(capsys, *alone)["problems"] == []


def test_content_that_is_too_large_to_be_read_by_a_check_is_warned_of(begun, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(file_hashes, "TOLD_BYTES", 1000)
    # Remembered by the run.
    assert not any("looked at" in one for one in told(capsys, *words(begun))["warnings"])
    copy = shutil.copy(begun["dataset_path"], tmp_path / "copy.parquet")
    found = told(capsys, *words(begun, dataset_path=copy))
    assert found["problems"] == []
    [warning] = (one for one in found["warnings"] if "looked at" in one)
    assert warning.startswith(f'whether dataset and answers are those of the units in "{begun["work_dir"]}" was not')
