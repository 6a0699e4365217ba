"""`run --export`: exports beside the dataset, those of the command, and what a later pairing says of older ones."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stage2_world import digest

from data_engine.commands import main
from data_engine.config import RunConfig
from data_engine.job import last_step, worker

SETTINGS = {"sample_k": 4, "rank": 2, "distance": 1000, "max_new_tokens": 8, "threads": 1}


@pytest.fixture(scope="module")
def run(goldens, tmp_path_factory, one_thread):
    """Runs, or goes on with, one work directory on the golden questions, with a control token in each."""
    work_dir = tmp_path_factory.mktemp("run") / "work"
    table = pq.read_table(goldens / "llava/dataset/questions.parquet")
    asked = pa.array([f"{question} </s>?" for question in table["question"].to_pylist()])
    questions = work_dir.with_name("questions.parquet")
    pq.write_table(table.set_column(table.schema.get_field_index("question"), "question", asked), questions)
    paths = {"instruct_model_path": goldens / "llava/instruct", "reward_model_path": goldens / "llava/reward"}
    paths |= {"dataset_path": questions, "work_dir": work_dir}

    def start(**settings):
        config = RunConfig(**{name: str(path) for name, path in paths.items()} | SETTINGS | settings)
        assert worker.run(config) == 0
        return work_dir

    return start


def test_a_run_writes_what_the_command_writes_and_a_later_one_says_what_is_older(run, tmp_path, capsys):
    work_dir = run(export="rlaif-v,trl", seed=7)
    told = capsys.readouterr().out
    assert "export rlaif-v: " in told
    assert "export trl: " in told
    report = work_dir / "report/index.html"
    assert f"\ndataset: {work_dir}/dataset\nexports: {work_dir}/exports\nreport: {report}\n" in told
    asked = pq.read_table(work_dir / "dataset/dpo_dataset.parquet")["question"].to_pylist()
    assert asked
    assert all(question.endswith(" < /s>?") for question in asked)
    dataset = (work_dir / "dataset/dpo_dataset.parquet").read_bytes()
    assert (work_dir / "exports/rlaif-v/dpo_dataset.parquet").read_bytes() == dataset
    arguments = ["export", str(work_dir), "--format", "rlaif-v,trl", "--output", str(tmp_path / "out")]
    assert main.main(arguments) == 0
    assert digest(work_dir / "exports") == digest(tmp_path / "out")
    before = digest(work_dir / "exports/rlaif-v")
    (work_dir / "exports/mine").mkdir()
    messages = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(last_step.log, "warning", lambda text, *values: messages.append(text % values))
        run(export="trl", rank=1, seed=7, continue_from_stage=2)
    assert messages == [f"{work_dir}/exports has exports of an earlier pairing; --export rlaif-v writes them anew"]
    assert digest(work_dir / "exports/rlaif-v") == before
    assert digest(work_dir / "exports/trl") != digest(tmp_path / "out/trl")


@pytest.mark.parametrize("command", ["run", "validate"])
@pytest.mark.parametrize(
    ("family", "formats", "message"),
    [
        ("llava", "trl,tlr", '--export names the unknown format "tlr"; did you mean trl?'),
        ("omnilmm", "rlaif-v-logps", "is for instruct models of the family llava"),
    ],
)
def test_a_format_that_cannot_be_written_is_refused_before_any_work(
    command, goldens, tmp_path, capsys, family, formats, message
):
    arguments = {f"{role}_model_path": goldens / family / role for role in ("instruct", "reward")}
    arguments |= {"dataset_path": goldens / "llava/dataset/questions.parquet", "work_dir": tmp_path / "work"}
    arguments["export"] = formats
    assert main.main([command, *(word for name, value in arguments.items() for word in (f"--{name}", str(value)))]) == 2
    assert message in capsys.readouterr().err
    # A run that was refused leaves its exit code in logs/ alone.
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != "logs"]


def test_a_run_prints_the_alpha_that_auto_came_to(run, capsys):
    work_dir = run(length_alpha="auto", seed=7, continue_from_stage=0)
    found = json.loads(pq.read_schema(work_dir / "pairs/pairs.parquet").metadata[b"length_alpha"])
    assert f"\nlength_alpha auto came to {found}, by which answers ranked\n" in capsys.readouterr().out
