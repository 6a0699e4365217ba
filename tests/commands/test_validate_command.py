"""What `validate`, and `run` before any model, say of a job: exit code, stdout and stderr."""

import json
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import HEAVY, call, refused
from stage2_world import picture
from validated import words

from data_engine.commands import main
from data_engine.schemas import IMAGE


@pytest.fixture
def job(goldens, tmp_path) -> dict[str, str]:
    """Flags of a run that `validate` finds nothing wrong with."""
    for name in ("instruct", "reward", "openai"):
        shutil.copytree(goldens / "llava" / name, tmp_path / name)
    write_questions(tmp_path, ["a", "b"])
    flags = {"instruct_model_path": "instruct", "reward_model_path": "reward", "dataset_path": "q.parquet"}
    return flags | {"work_dir": "runs/one"}


def write_questions(folder: Path, ids: list[str]) -> None:
    image = pa.array([{"bytes": picture(0), "path": None}] * len(ids), IMAGE)
    pq.write_table(pa.table({"idx": ids, "question": ["q"] * len(ids), "image": image}), folder / "q.parquet")


@pytest.mark.parametrize("in_its_own_process", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_validate_says_what_it_found_and_writes_nothing(here, job, tmp_path, in_its_own_process):
    says = "valid: 2 questions, 10 answers each; instruct and reward model: llava and llava; work_dir runs/one"
    # 2 layers of keys and values, 4 heads 16 wide: 256 numbers of 4 bytes. The weights are less than 50 MB.
    told = "0.0 GB of weights and 1.0 kB of cache a token in float32; answers share their prompt"
    models = [f"  {role} model: llava (LLaVA-1.5, attention alone), {told}" for role in ("instruct", "reward")]
    code, out, err = (call if in_its_own_process else here)("validate", *words(job), cwd=tmp_path)
    # The plan comes behind an empty line.
    assert (code, out.partition("\n\n")[0]) == (0, "\n".join([says, *models]))
    assert err == ""
    # Defect 35: nothing is created in the working directory either.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["instruct", "openai", "q.parquet", "reward"]


# What it leaves to a process of its own imports torch, which takes most of the time here.
@pytest.mark.slow
def test_validate_imports_nothing_heavy_for_a_mistake_that_can_be_seen_without(job, tmp_path):
    """The last of the light checks is that of the second model's files."""
    (tmp_path / "reward/model.safetensors").write_bytes(b"")
    code = f"import sys; from data_engine.commands.main import main; code = main({['validate', *words(job)]!r})"
    code += f"; print([m for m in {HEAVY} if m in sys.modules], code)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert result.stdout == "[] 2\n"
    assert result.stderr.startswith('data-engine: error: --reward_model_path "reward": ')
    assert "model.safetensors is empty" in result.stderr


def test_a_job_may_stand_in_a_yaml_whose_paths_are_relative_to_the_working_directory(here, job, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/job.yaml").write_text(json.dumps(job | {"sample_k": 4}))
    code, out, _ = here("validate", "--config", "configs/job.yaml", "--limit", "1", cwd=tmp_path)
    assert (code, out[:33]) == (0, "valid: 1 question, 4 answers each")


def test_defect_34_a_missing_path_is_an_error_and_no_placeholder(here, job, tmp_path):
    del job["instruct_model_path"]
    assert here("run", *words(job), cwd=tmp_path) == refused(
        "missing: --instruct_model_path; give each as a flag, or by its name in the YAML of --config"
    )


@pytest.mark.parametrize("command", ["run", "validate"])
def test_a_mistyped_flag_without_a_model_is_refused_without_waiting_for_torch(tmp_path, command):
    (tmp_path / "torch.py").write_text("import time; time.sleep(600)")
    asked = [sys.executable, "-m", "data_engine", command, "--topp_k", "3"]
    done = subprocess.run(asked, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    first, *_, last = done.stderr.splitlines()
    assert first == "data-engine: error: unknown flag --topp_k; did you mean --top_k?"
    assert last == "data-engine: 2 mistakes; nothing was started"


def test_run_refuses_a_wrong_value_before_anything_heavy_is_imported(job, tmp_path):
    # What is looked at by torch, in a process beside this one, takes for ever.
    (tmp_path / "torch.py").write_text("import time; time.sleep(600)")
    code = f"import sys; from data_engine.commands.main import main; main({['run', *words(job, sample_k='1')]!r})"
    code += f"; print([m for m in {HEAVY} if m in sys.modules])"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        late = threading.Timer(60, process.kill)
        late.start()
        assert process.stderr.readline() == "data-engine: error: sample_k must be at least 2 to form a pair, got 1\n"
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate()
        late.cancel()
    assert out == "[]\n"
    assert errors == "data-engine: error: interrupted; run the same command again to go on\n"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"sampel_k": "3"}, "unknown flag --sampel_k; did you mean --sample_k?"),
        ({"rank": "11"}, "rank must be at most sample_k, 10, got 11"),
        ({"distance": "0"}, "distance must be at least 1, got 0"),
        ({"config": "no.yaml"}, 'config "no.yaml" cannot be read: No such file or directory'),
        ({"dataset_path": "no.parquet"}, 'no file or folder at dataset_path "no.parquet"'),
        ({"image_root": "no"}, 'image_root "no" is not a folder'),
        ({"work_dir": "q.parquet"}, 'work_dir "q.parquet": "q.parquet" is a file; name a folder, or a place for one'),
        (
            {"dataset_split": "test"},
            'dataset_split "test" is for a folder or a hub dataset; "q.parquet" is a file: leave --dataset_split out',
        ),
    ],
)
def test_bad_input_exits_with_2_and_says_what_to_mend(job, tmp_path, monkeypatch, capsys, changed, says):
    monkeypatch.chdir(tmp_path)
    code = main.main(["validate", *words(job, **changed)])
    assert (code, *capsys.readouterr()) == refused(says)


def test_duplicate_idx_exit_with_2_and_are_listed(here, job, tmp_path):
    write_questions(tmp_path, ["a", "b", "a"])
    assert here("validate", *words(job), cwd=tmp_path) == refused(
        'dataset "q.parquet": every idx must be unique; repeated: "a" (2 times); --columns idx= numbers the '
        "rows instead"
    )


def test_a_missing_column_exits_with_2_and_those_that_exist_are_listed(here, job, tmp_path):
    pq.write_table(pa.table({"idx": ["a"], "prompt": ["q"]}), tmp_path / "q.parquet")
    assert here("validate", *words(job), cwd=tmp_path) == refused(
        'dataset "q.parquet" has no column "question"; columns: idx, prompt; if so meant, say --columns question=prompt'
    )


@pytest.mark.parametrize("file", ["config.json", "tokenizer.model", "model.safetensors"])
def test_a_model_folder_without_a_file_exits_with_2_and_names_it(job, tmp_path, monkeypatch, capsys, file):
    (tmp_path / "reward" / file).unlink()
    monkeypatch.chdir(tmp_path)
    assert main.main(["validate", *words(job)]) == 2
    error = capsys.readouterr().err
    assert "reward" in error
    assert (Path(file).suffix if file.startswith("model") else file) in error


def test_defect_27_an_unknown_model_name_exits_with_2(job, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.main(["validate", *words(job, instruct_model_name="lava-1.5")]) == 2
    assert "lava-1.5" in capsys.readouterr().err
