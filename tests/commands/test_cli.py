"""The command line as a user meets it: exit code, stdout and stderr, of real processes where those could differ."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stage2_world import World, make_world, picture

from data_engine.commands import main, run
from data_engine.errors import IncompleteError, UserError
from data_engine.planning.checks import check_writable
from data_engine.schemas import IMAGE

HEAVY = ("torch", "transformers", "datasets", "accelerate")


def call(*arguments: str, cwd: Path | None = None) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "data_engine", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    return result.returncode, result.stdout, result.stderr


@pytest.fixture
def here(monkeypatch, capsys):
    """As `call`, in this process, which has torch already: for what a process of its own would not tell apart."""

    def run(*arguments: str, cwd: Path) -> tuple[int, str, str]:
        monkeypatch.chdir(cwd)
        return main.main(arguments), *capsys.readouterr()

    return run


def refused(message: str) -> tuple[int, str, str]:
    """Exit code 2, and the message alone: no traceback, no usage."""
    return 2, "", f"data-engine: error: {message}\n"


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


def flags(job: dict[str, str], **changed: str) -> list[str]:
    return [f"--{name}={value}" for name, value in (job | changed).items()]


# Commands


def test_help_lists_the_commands_and_imports_nothing_heavy():
    code = "import sys; from data_engine.commands.main import main; main(['--help'])"
    code += f"; print([m for m in {HEAVY} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *lines, heavy = result.stdout.splitlines()
    assert heavy == "[]"
    assert all(any(line.startswith(f"  {name} ") for line in lines) for name in main.COMMANDS)


def test_the_help_of_run_shows_every_flag_and_imports_nothing_heavy():
    code = "import sys, atexit; from data_engine.commands.main import main"
    code += f"; atexit.register(lambda: print([m for m in {HEAVY} if m in sys.modules])); main(['run', '--help'])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
    assert "  --sample_k N " in result.stdout
    assert "answers a question (default: 10)" in result.stdout


def test_no_command_and_an_unknown_one_are_refused():
    assert call() == refused("which command? usage: data-engine {" + ",".join(main.COMMANDS) + "} ...")
    assert call("vaildate") == refused('unknown command "vaildate"; did you mean validate?')


def test_the_version_is_told(capsys):
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("data-engine 0.")


def test_every_command_of_the_table_exists():
    import importlib

    for target, text in main.COMMANDS.values():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
        assert text


# Exit codes


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UserError("sample_k is odd"), 2, "data-engine: error: sample_k is odd\n"),
        (IncompleteError("units missing: 3"), 3, "data-engine: error: units missing: 3\n"),
        (KeyboardInterrupt(), 75, "data-engine: error: interrupted; run the same command again to go on\n"),
    ],
)
def test_an_error_ends_with_its_exit_code_and_its_message_alone(monkeypatch, capsys, error, code, says):
    def fail(argv):
        raise error

    monkeypatch.setattr(run, "main", fail)
    assert main.main(["run"]) == code
    assert capsys.readouterr() == ("", says)


def test_a_bug_ends_with_one_and_a_traceback(monkeypatch, capsys):
    monkeypatch.setattr(run, "main", lambda argv: 1 // 0)
    assert main.main(["run"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_the_exit_code_of_a_command_is_passed_on(monkeypatch):
    monkeypatch.setattr(run, "main", lambda argv: 75)
    assert main.main(["run"]) == 75


# validate, and what run refuses before any model


@pytest.mark.parametrize("in_its_own_process", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_validate_says_what_it_found_and_writes_nothing(here, job, tmp_path, in_its_own_process):
    says = "valid: 2 questions, 10 answers each; instruct and reward model: llava and llava; work_dir runs/one"
    # 2 layers of keys and values, 4 heads 16 wide: 256 numbers of 4 bytes. The weights are less than 50 MB.
    told = "0.0 GB of weights and 1.0 kB of cache a token in float32; answers share their prompt"
    models = [f"  {role} model: llava (LLaVA-1.5, attention alone), {told}" for role in ("instruct", "reward")]
    code, out, err = (call if in_its_own_process else here)("validate", *flags(job), cwd=tmp_path)
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
    code = f"import sys; from data_engine.commands.main import main; code = main({['validate', *flags(job)]!r})"
    code += f"; print([m for m in {HEAVY} if m in sys.modules], code)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert result.stdout == "[] 2\n"
    assert result.stderr.startswith('data-engine: error: --reward_model_path "reward": ')
    assert "model.safetensors is empty" in result.stderr


def test_a_job_may_stand_in_a_yaml_whose_paths_are_relative_to_the_working_directory(here, job, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/job.yaml").write_text(json.dumps(job | {"sample_k": 4}))
    code, out, _ = here("validate", "--config", "configs/job.yaml", "--limit", "1", cwd=tmp_path)
    assert (code, out[:33]) == (0, "valid: 1 questions, 4 answers eac")


def test_defect_34_a_missing_path_is_an_error_and_no_placeholder(here, job, tmp_path):
    del job["instruct_model_path"]
    assert here("run", *flags(job), cwd=tmp_path) == refused(
        "missing: --instruct_model_path; give each as a flag, or by its name in the YAML of --config"
    )


def test_run_refuses_a_wrong_value_before_anything_heavy_is_imported(job, tmp_path):
    # What is looked at by torch, in a process beside this one, takes for ever.
    (tmp_path / "torch.py").write_text("import time; time.sleep(600)")
    code = f"import sys; from data_engine.commands.main import main; main({['run', *flags(job, sample_k='1')]!r})"
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
    code = main.main(["validate", *flags(job, **changed)])
    assert (code, *capsys.readouterr()) == refused(says)


def test_duplicate_idx_exit_with_2_and_are_listed(here, job, tmp_path):
    write_questions(tmp_path, ["a", "b", "a"])
    assert here("validate", *flags(job), cwd=tmp_path) == refused(
        'dataset "q.parquet": every idx must be unique, but 1 are repeated: "a" (2 times)'
    )


def test_a_missing_column_exits_with_2_and_those_that_exist_are_listed(here, job, tmp_path):
    pq.write_table(pa.table({"idx": ["a"], "prompt": ["q"]}), tmp_path / "q.parquet")
    assert here("validate", *flags(job), cwd=tmp_path) == refused(
        'dataset "q.parquet" has no column "question"; columns: idx, prompt; if so meant, say --columns question=prompt'
    )


@pytest.mark.parametrize("file", ["config.json", "tokenizer.model", "model.safetensors"])
def test_a_model_folder_without_a_file_exits_with_2_and_names_it(job, tmp_path, monkeypatch, capsys, file):
    (tmp_path / "reward" / file).unlink()
    monkeypatch.chdir(tmp_path)
    assert main.main(["validate", *flags(job)]) == 2
    error = capsys.readouterr().err
    assert "reward" in error
    assert (Path(file).suffix if file.startswith("model") else file) in error


def test_defect_27_an_unknown_model_name_exits_with_2(job, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.main(["validate", *flags(job, instruct_model_name="lava-1.5")]) == 2
    assert "lava-1.5" in capsys.readouterr().err


def test_report_of_a_run_without_pairs_exits_with_2(here, tmp_path):
    (tmp_path / "run.json").write_text("{}")
    code, _, error = here("report", str(tmp_path), cwd=tmp_path)
    assert (code, error[-62:]) == (2, "has no pairs/pairs.parquet yet: let the run finish stage 2 first\n"[-62:])


@pytest.fixture
def finished(tmp_path) -> tuple[World, Path]:
    """A world whose answers are paired, and its work_dir with a run.json."""
    world, work_dir = make_world(tmp_path / "world", num_questions=8), tmp_path / "run"
    world.publish(work_dir)
    world.pair(work_dir)
    world.write_run_file(work_dir)
    return world, work_dir


def test_report_writes_the_page_again_from_the_work_dir(finished):
    _, work_dir = finished
    assert call("report", str(work_dir)) == (0, f"{work_dir}/report/index.html\n", "")
    assert (work_dir / "report/index.html").stat().st_size > 1000


def test_report_refuses_a_dataset_that_has_changed(finished, capsys):
    world, work_dir = finished
    make_world(world.folder, num_questions=9)
    assert main.main(["report", str(work_dir)]) == 2
    assert capsys.readouterr().err.endswith(f'is not the dataset that "{work_dir}" was made from; it has changed\n')


def test_report_says_of_another_dataset_than_the_runs_that_it_is_another(finished, here, tmp_path):
    """Nothing has changed: the flag names a wrong file."""
    world, work_dir = finished
    other = make_world(tmp_path / "other", num_questions=9).dataset_path
    told = f'"{other}" is not the dataset that "{work_dir}" was made from; that was "{world.dataset_path}", or the same'
    assert here("report", str(work_dir), "--dataset_path", str(other), cwd=tmp_path) == refused(
        f"{told} content elsewhere"
    )
    # Who gives the flag is not told to give it.
    told = f'no file or folder at dataset_path "{tmp_path}/nothing"'
    assert here("report", str(work_dir), f"--dataset_path={tmp_path}/nothing", cwd=tmp_path) == refused(told)


def test_homes_are_found_in_the_paths_of_every_command(finished, monkeypatch, here):
    """Quotes and --name=~/path keep the shell from it."""
    world, work_dir = finished
    monkeypatch.setenv("HOME", str(work_dir.parent))
    told = world.dataset_path.relative_to(work_dir.parent)
    page = f"{work_dir}/report/index.html\n"
    assert here("report", "~/run", f"--dataset_path=~/{told}", cwd=world.folder) == (0, page, "")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("$SCRATCH/new", "$SCRATCH is filled in by a shell alone, not in a configuration and not in single quotes"),
        ("~no-such-user/new", "there is no home of that name: ~no-such-user"),
    ],
)
def test_no_folder_is_made_that_has_the_name_of_a_variable_or_of_another_home(finished, here, given, says):
    _, work_dir = finished
    where, before = work_dir.parent, {*work_dir.parent.iterdir()}
    told = f'--output "{given}" cannot be meant; {says}'
    assert here("export", str(work_dir), "--format", "trl", "--output", given, cwd=where) == refused(told)
    with pytest.raises(UserError) as error:
        check_writable(Path(given))
    assert str(error.value) == f'work_dir "{given}" cannot be meant; {says}'
    assert {*where.iterdir()} == before
    # A folder that has such a name is another matter.
    (where / given).mkdir(parents=True)
    check_writable(Path(given))


def test_a_command_about_a_work_dir_takes_one(capsys):
    for arguments in ([], ["a", "b"], ["--watch"]):
        assert main.main(["status", *arguments]) == 2
        assert "usage: data-engine status WORK_DIR" in capsys.readouterr().err
    assert main.main(["status", "--help"]) == 0
    for arguments, says in (([], "arguments are required: WORK_DIR"), (["a", "b"], "unrecognized arguments: b")):
        assert main.main(["report", *arguments]) == 2
        assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["report", "a", "--nmae", "x"], "--nmae x; did you mean --name?"),
        (["status", "--wtach", "a"], "unknown flag --wtach; did you mean --watch?"),
        (["status", "a", "--watch", "3", "--watch=4"], "--watch is given twice"),
        (["status", "a", "--json=yes"], "--json takes no value"),
        (["report", "a", "--open=yes"], "argument --open: ignored explicit argument 'yes'"),
        (["export", "a", "--format", "trl", "--outptu", "b"], "--outptu b; did you mean --output?"),
        (["export", "a", "--fromat", "trl", "--output", "b"], "unknown flag --fromat; did you mean --format?; the fo"),
        (["export", "a", "--output", "b"], "error: the following arguments are required: --format"),
        (["export", "a", "--format", "trl", "--output", ""], "--output is empty; is a shell variable unset?"),
        (["bench", "--modle", "a"], "--modle a; did you mean --model?"),
        (["validate", "--mesure"], "unknown flag --mesure; did you mean --measure?"),
        *((words, "WORK_DIR is empty; is a shell variable unset?") for words in (
            ["status", ""], ["report", ""], ["pairs", "", "--name", "a"], ["export", "", "--format", "trl"],
        )),
    ],
)  # fmt: skip
def test_a_mistake_in_the_flags_of_any_command_is_named_with_what_is_meant(capsys, arguments, says):
    assert main.main(arguments) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("command", ["status", "report", "pairs", "export"])
def test_a_file_is_said_to_be_no_work_dir(here, tmp_path, command):
    (tmp_path / "file").write_text("")
    more = {"pairs": ["--name", "x"], "export": ["--format", "trl", "--output", "out"]}.get(command, [])
    told = '"file" is a file; name the work_dir of a run, a folder'
    assert here(command, "file", *more, cwd=tmp_path) == refused(told)


def test_output_that_a_full_disk_loses_is_no_success():
    command = [sys.executable, "-m", "data_engine", "--help"]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    told = "data-engine: error: standard output cannot be written: No space left on device\n"
    assert (result.returncode, result.stderr) == (2, told)


def test_a_reader_that_has_read_enough_is_no_fault():
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as closed:
        command = [sys.executable, "-m", "data_engine", "--help"]
        result = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_help_may_stand_behind_a_work_dir(tmp_path, capsys):
    assert main.main(["status", str(tmp_path), "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: data-engine status WORK_DIR")


def test_status_of_a_folder_that_is_no_work_dir_exits_with_2(here, tmp_path):
    assert here("status", "none", cwd=tmp_path) == refused('no folder "none"')
