"""`validate` tells all that is wrong with a run at once, each thing once, and nothing that only follows from it."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from run_files import hostile_rows, write

from data_engine.commands import main, validate
from data_engine.config import RunConfig
from data_engine.errors import UserError
from data_engine.models.registry import resolve
from data_engine.models.roles import naming_flag
from data_engine.planning import checks
from data_engine.planning.found import FirstRows, Found, Problem
from data_engine.processes import ranks
from data_engine.questions.dataset import open_questions

ROOT = Path(__file__).parents[1]
SOURCES = (ROOT / "engine", ROOT / "kernels")
# A mistake in the YAML, and what is said of it; FOLDER stands for the test's own.
PLANTED = {
    "topp_k": (7, 'has the unknown key topp_k; did you mean top_k?'),
    "beta": (0, "beta must be above 0, got 0.0"),
    "top_p": (1.5, "top_p must be above 0 and at most 1 (1 is off), got 1.5"),
    "memory_fraction": (0, "memory_fraction must be above 0 and at most 1, got 0.0"),
    "seed": (-1, "seed must be between 0 and 2**63 - 1, got -1"),
    "sample_k": (1, "sample_k must be at least 2 to form a pair, got 1"),
    "distance": (0, "distance must be at least 1, got 0"),
    "max_pairs": (0, "max_pairs must be at least 1, got 0"),
    "threads": (0, "threads must be at least 1, got 0"),
    "dtype": ("int8", 'dtype must be auto, float32, bfloat16 or float16, got "int8"'),
    "unit_size": ("many", 'unit_size must be a whole number, got "many"'),
    "debug": ("yes", 'debug must be true or false, got "yes"'),
    "device": ("tpu", 'device must be auto, cpu, cuda or cuda:N, got "tpu"'),
    "grace_s": (-1, "grace_s must be at least 0, got -1.0"),
    "shard_index": (5, "shard_index must be between 0 and num_shards - 1, 0, got 5"),
    "near_duplicates": (2, "near_duplicates must be above 0 and at most 1, got 2.0"),
    "length_alpha": ("long", 'length_alpha must be a number or auto, got "long"'),
    "max_megapixels": (-1, "max_megapixels must be above 0, got -1.0"),
    "chat_template": ("FOLDER/no.jinja", 'chat_template "FOLDER/no.jinja" cannot be read: No such file or directory'),
    "chat_template_kwargs": ("[1]", "chat_template_kwargs must be a JSON object like"),
    "strategy": ("crosss", 'crosss'),
    "rank_by": ("implicit.summ", 'rank_by names "implicit.summ", which no source of reward of this run has'),
    "export": ("trl,llama-factry", '--export names the unknown format "llama-factry"; did you mean llama-factory?'),
    "zero3_config": ("FOLDER/no.json", "no.json"),
    "yesno_template": ("FOLDER/no.txt", 'yesno_template "FOLDER/no.txt" cannot be read: No such file or directory'),
    "rule": ("objectss", "objectss"),
    "work_dir": ("FOLDER/q.parquet", 'work_dir "FOLDER/q.parquet": "FOLDER/q.parquet" is a file'),
    "dataset_path": ("FOLDER/no.parquet", 'no file or folder at dataset_path "FOLDER/no.parquet"'),
    "instruct_model_path": ("FOLDER/instruct", "and 5 more weights like these"),
    "reward_model_path": ("FOLDER/empty", '--reward_model_path "FOLDER/empty": FOLDER/empty has no config.json'),
    "min_margin": (2, "min_margin 2.0 is above max_margin 1.0: no pair could be kept"),
}  # fmt: skip


@pytest.fixture
def planted(goldens, tmp_path) -> Path:
    """A YAML with all of it."""
    write(tmp_path / "q.parquet", hostile_rows()[:2])
    shutil.copytree(goldens / "llava/instruct", tmp_path / "instruct")
    shutil.copytree(goldens / "llava/openai", tmp_path / "openai")
    (tmp_path / "empty").mkdir()
    config = json.loads((tmp_path / "instruct/config.json").read_text())
    # An MLP of another width: three weights of each layer have another shape.
    config["intermediate_size"] += 8
    (tmp_path / "instruct/config.json").write_text(json.dumps(config))
    values = {name: value for name, (value, _) in PLANTED.items()}
    values |= {"rewards": "implicit,yesno,rule", "max_margin": 1}
    here = {name: value.replace("FOLDER", str(tmp_path)) if isinstance(value, str) else value
            for name, value in values.items()}  # fmt: skip
    (tmp_path / "planted.yaml").write_text(json.dumps(here))
    return tmp_path / "planted.yaml"


def told(capsys, *arguments: str) -> dict:
    code = main.main(["validate", "--json", *arguments])
    found = json.loads(capsys.readouterr().out)
    assert code == (2 if found["problems"] else 0)
    return found


def test_every_planted_mistake_is_told_once(planted, tmp_path, capsys):
    found = told(capsys, "--config", str(planted), "--temprature", "0.5")
    messages = [problem["message"] for problem in found["problems"]]
    for name, (_, says) in PLANTED.items():
        says = says.replace("FOLDER", str(tmp_path))
        number = 1 if name not in ("instruct_model_path",) else None
        naming = [message for message in messages if says in message]
        assert len(naming) == (number or len(naming)) == len(set(naming)), (name, naming)
        assert naming or name == "instruct_model_path", (name, messages)
    shapes = [message for message in messages if "config.json makes it" in message]
    assert len(shapes) == 1
    assert "mlp" in shapes[0]
    assert "unknown flag --temprature; did you mean --temperature?" in messages
    assert "missing: --yesno_model_path; give each as a flag, or by its name in the YAML of --config" in messages
    # Those, and nothing that only follows from them.
    assert len(messages) == len(PLANTED) + 2, messages


def test_each_is_a_line_of_standard_error_and_the_last_one_counts_them(planted, capsys):
    assert main.main(["validate", "--config", str(planted), "--temprature", "0.5"]) == 2
    out, err = capsys.readouterr()
    *lines, last = err.splitlines()
    assert out == ""
    mistakes = [line for line in lines if line.startswith("data-engine: error: ")]
    assert len(mistakes) == len(PLANTED) + 2
    assert last == f"data-engine: {len(mistakes)} mistakes; nothing was started"


def test_a_problem_tells_its_flag(planted, capsys):
    found = told(capsys, "--config", str(planted))["problems"]
    by_flag = {problem["flag"] for problem in found}
    assert {"beta", "seed", "dataset_path", "work_dir", "reward_model_path", "rank_by", "export"} <= by_flag


@pytest.mark.parametrize(
    ("check", "message", "flag"),
    [
        ("configuration", "beta must be above 0, got 0.0", "beta"),
        ("configuration", "unknown flag --temprature; did you mean --temperature?", "temperature"),
        ("configuration", 'config "configs/answers.yaml" cannot be read: No such file or directory', None),
        ("dataset", 'dataset "data/answers/q.parquet": every idx must be unique, but 2 are repeated', "dataset_path"),
        ("dataset", 'no file or folder at dataset_path "data/limit/q.parquet"', "dataset_path"),
        ("strategy", 'unknown strategy "crosss"; known: cross', "strategy"),
        ("zero3", "splitting a model over the ranks (zero3) needs DeepSpeed: set zero3_config", "zero3_config"),
        ("weights", '--reward_model_path "models/system": models/system lacks 3 weights', "reward_model_path"),
    ],
)
def test_a_flag_is_not_taken_from_a_path_or_a_sentence(check, message, flag):
    assert Problem(check, UserError(message)).as_json() == {"check": check, "flag": flag, "message": message}


@pytest.mark.parametrize("word", ["--measure=30", "--json=1"])
def test_an_option_of_validate_that_is_given_a_value_says_that_it_takes_none(word, capsys):
    assert main.main(["validate", word]) == 2
    name, _, value = word.partition("=")
    assert capsys.readouterr().err == f'data-engine: error: {name} takes no value, got "{value}"\n'


@pytest.fixture
def job(goldens, tmp_path) -> dict[str, str]:
    """Flags of a run without a mistake."""
    flags = {f"{role}_model_path": str(goldens / "llava" / role) for role in ("instruct", "reward")}
    return flags | {
        "dataset_path": str(write(tmp_path / "q.parquet", hostile_rows()[:2])), "work_dir": str(tmp_path / "work"),
        "device": "cpu",
    }  # fmt: skip


def words(job: dict[str, str], **changed: str) -> list[str]:
    return [f"--{name}={value}" for name, value in (job | changed).items()]


@pytest.fixture
def places(tmp_path) -> dict[str, Path]:
    """Paths at which there can be no folder."""
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "file").touch()
    return {name: tmp_path / name for name in ("n" * 300, "circle", "nowhere", "file")}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("n" * 300, 'work_dir "PLACE" cannot be looked up: File name too long'),
        ("circle", 'work_dir "PLACE" cannot be looked up: Too many levels of symbolic links'),
        ("nowhere", 'work_dir "PLACE": "PLACE" is a link to nothing; make the folder that it names'),
        ("file", 'work_dir "PLACE": "PLACE" is a file; name a folder, or a place for one'),
    ],
)
def test_a_place_at_which_no_work_dir_can_be_is_refused(places, name, says):
    with pytest.raises(UserError) as refused:
        checks.check_writable(places[name])
    assert str(refused.value) == says.replace("PLACE", str(places[name]))


@pytest.mark.parametrize("name", ["reward_logps", "dataset", "claims", "hashes", "logs", "report"])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_file_in_the_place_of_a_folder_of_the_run_is_refused_before_any_work(tmp_path, name, kind):
    place = tmp_path / name
    place.touch() if kind == "file" else place.symlink_to("nowhere")
    with pytest.raises(UserError) as refused:
        checks.check_place(tmp_path)
    told = f'"{place}" is no folder, and the run keeps one of that name: move it away, or choose another work_dir'
    assert str(refused.value) == f'work_dir "{tmp_path}": {told}'


def test_a_folder_in_the_place_of_run_json_is_refused(tmp_path):
    (tmp_path / "run.json").mkdir()
    with pytest.raises(UserError, match=r'run.json" is no file, and the run keeps one of that name'):
        checks.check_place(tmp_path)


@pytest.mark.slow
def test_a_work_dir_that_cannot_be_is_told_by_run_once(job, places, capsys):
    file = str(places["file"])
    told = told_by("run", capsys, *words(job, work_dir=file))
    [line] = [line for line in told if "warning: " not in line]
    assert line == f'data-engine: error: work_dir "{file}": "{file}" is a file; name a folder, or a place for one'


def test_questions_and_pictures_that_cannot_be_looked_up_are_refused(job, places):
    for name, place in itertools.product(("n" * 300, "circle"), ("dataset_path", "image_root")):
        config = RunConfig(**job | {place: str(places[name])})
        with pytest.raises(UserError, match=f'^{place} ".*" cannot be looked up: '):
            open_questions(config)


def test_a_model_that_cannot_be_looked_up_is_told_so_and_is_no_hub_id(job, places):
    for name, why in (("n" * 300, "File name too long"), ("circle", "Too many levels of symbolic links")):
        place = str(places[name])
        with (
            pytest.raises(UserError) as refused,
            naming_flag(RunConfig(**job | {"reward_model_path": place}), "reward"),
        ):
            resolve(place)
        told = str(refused.value)
        assert told == f'--reward_model_path "{place}": model path "{place}" cannot be looked up: {why}'


@pytest.mark.parametrize("command", [["status"], ["report"], ["pairs", "--name", "other"]])
def test_a_work_dir_that_cannot_be_looked_up_is_told_by_the_commands_about_one(command, tmp_path, capsys):
    place = str(tmp_path / ("n" * 300))
    assert main.main([*command, place]) == 2
    assert (
        capsys.readouterr().err == f'data-engine: error: WORK_DIR "{place}" cannot be looked up: File name too long\n'
    )


def test_rows_that_cannot_be_used_are_counted_among_those_that_there_are(job):
    config = RunConfig(**job)
    found = Found(config, questions=open_questions(config), first_rows=FirstRows(2, ("broken",)))
    found.families, found.heavy = dict.fromkeys(config.roles, "llava"), {"models": {}}
    assert "; of the first 2 rows 1 cannot be used" in validate.describe(found)


def test_a_missing_dataset_lets_checkpoints_be_checked_and_the_other_way_round(job, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    found = told(capsys, *words(job, dataset_path="nowhere.parquet", reward_model_path=str(tmp_path / "empty")))
    assert [problem["check"] for problem in found["problems"]] == ["dataset", "checkpoints"]


def test_all_first_rows_being_unusable_is_told_beside_a_broken_checkpoint(job, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "q.parquet", [row for row in hostile_rows() if row[0] in ("undecodable", "empty")])
    found = told(capsys, *words(job, instruct_model_path=str(tmp_path / "empty")))
    assert [problem["check"] for problem in found["problems"]] == ["first_rows", "checkpoints"]
    assert "none of the first 2 rows of --dataset_path can be used" in found["problems"][0]["message"]


def told_by(command: str, capsys, *arguments: str) -> list[str]:
    """The lines of standard error of a command that is refused."""
    assert main.main([command, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err.splitlines()


def test_run_tells_mistakes_of_flags_and_of_files_at_once_as_validate_does(planted, tmp_path, capsys):
    *lines, last = told_by("run", capsys, "--config", str(planted), "--temprature", "0.5")
    assert len(set(lines)) == len(lines) == len(PLANTED) + 2
    for says in ("unknown flag --temprature", "beta must be", "no file or folder at dataset_path", "more weights like"):
        assert sum(says in line for line in lines) == 1, (says, lines)
    assert last == f"data-engine: {len(lines)} mistakes; nothing was started"


def test_run_tells_all_mistakes_of_files_each_once(job, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    wrong = {"dataset_path": "nowhere.parquet", "reward_model_path": str(tmp_path / "empty"), "strategy": "crosss"}
    lines = told_by("run", capsys, *words(job, work_dir=str(tmp_path / "file"), **wrong))
    told = [line for line in lines if line.startswith("data-engine: error: ")]
    assert len(told) == 4, lines
    for word in ("nowhere.parquet", "empty has no config.json", "crosss", "file; name a folder"):
        assert sum(word in line for line in told) == 1, (word, told)


@pytest.mark.parametrize("has_units", [False, True])
def test_a_run_refused_once_it_began_tells_of_units_instead_of_saying_that_nothing_was_started(
    job, tmp_path, capsys, monkeypatch, has_units
):
    """The ranks may have worked for hours when a row or a file is refused. One of a launcher's tells its own alone."""
    monkeypatch.setenv("RANK", "0")
    for name in ("empty", "bare"):
        (tmp_path / name).mkdir()
    work = tmp_path / "work"
    if has_units:
        (work / "reward_logps").mkdir(parents=True)
        (work / "reward_logps/unit-00003.parquet").touch()
    wrong = {"instruct_model_path": str(tmp_path / "bare"), "reward_model_path": str(tmp_path / "empty")}
    *lines, last = told_by("run", capsys, *words(job, work_dir=str(work), **wrong))
    outcome = f'the units that are published in "{work}" stay there' if has_units else "no unit was published"
    assert last == f"data-engine: {len(lines)} mistakes; {outcome}"
    assert len(lines) == 2


def test_warnings_do_not_change_the_exit_code(job, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NUM_PROCESSES", "3")
    found = told(capsys, *words(job, temperature="0", yesno_model_path="somewhere", zero3="off", num_shards="2"))
    assert found["problems"] == []
    warned = "\n".join(found["warnings"])
    assert "1 of the first 2 rows cannot be used; most often: " in warned
    assert "temperature 0 gives the same answer k times" in warned
    assert "yesno_model_path has no effect" in warned
    assert "3 ranks have 1 units to share: 2 are idle" in warned
    assert "2 shards have 1 unit to share: shard 1 has nothing to compute; use fewer shards" in warned


def test_a_work_dir_of_another_run_names_every_setting_that_differs(job, tmp_path, capsys):
    assert main.main(["run", *words(job, sample_k="2", rank="1", max_new_tokens="4")]) in (0, 4)
    capsys.readouterr()
    changed = words(job, sample_k="3", rank="1", max_new_tokens="5", seed="7")
    [problem] = told(capsys, *changed)["problems"]
    assert "holds another run" in problem["message"]
    assert all(name in problem["message"] for name in ("sample_k", "max_new_tokens", "seed"))


@pytest.mark.slow
def test_validate_imports_no_torch_where_nothing_is_wrong_either(job, tmp_path):
    code = f"import sys; from data_engine.commands.main import main; code = main({['validate', *words(job)]!r})"
    code += "; print(code, [m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


def without_torch(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`data-engine validate` where every package of this environment is installed, but torch."""
    packages = folder / "packages"
    packages.mkdir(exist_ok=True)
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        place = packages / package.name
        if not place.exists() and not package.name.startswith(("torch", "__pycache__")) and package.suffix != ".pth":
            place.symlink_to(package)
    # -S: the environment's own packages are not found.
    command = [sys.executable, "-S", "-m", "data_engine.commands.main", "validate", *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(packages), *map(str, SOURCES)])}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)


def test_without_torch_the_other_checks_and_the_plan_are_there_and_what_was_not_looked_at_is_said(job, tmp_path):
    done = without_torch(tmp_path, "--json", *words(job))
    found = json.loads(done.stdout)
    assert (done.returncode, found["problems"], found["models"], done.stderr) == (0, [], {}, "")
    [warning] = [told for told in found["warnings"] if "torch" in told]
    assert warning.startswith("torch is not installed here: names and shapes of weights")
    [sampling] = [stage for stage in found["plan"]["stages"] if stage["name"] == "sampled_answer"]
    assert (sampling["questions"], sampling["prompt_tokens"], sampling["answer_tokens"]) == (2, None, 2 * 10 * 512)
    done = without_torch(tmp_path, *words(job))
    assert done.returncode == 0
    assert done.stdout.startswith("valid: 2 questions, 10 answers each; instruct and reward model: llava and llava; ")
    assert "data-engine: warning: torch is not installed here" in done.stderr


def test_without_torch_mistakes_are_told_all_the_same(planted, tmp_path):
    done = without_torch(tmp_path, "--config", str(planted))
    assert (done.returncode, done.stdout) == (2, "")
    lines = [line for line in done.stderr.splitlines() if line.startswith("data-engine: error: ")]
    # All, but the shapes of weights.
    assert len(lines) == len(PLANTED)
    assert "Traceback" not in done.stderr


def test_without_torch_a_work_dir_of_another_run_is_told(job, tmp_path, capsys):
    assert main.main(["run", *words(job, sample_k="2", rank="1", max_new_tokens="4")]) in (0, 4)
    capsys.readouterr()
    # The device is named; the dtype was left to it then, and is another now.
    changed = words(job, sample_k="3", rank="1", dtype="bfloat16")
    [problem] = json.loads(without_torch(tmp_path, "--json", *changed).stdout)["problems"]
    assert "holds another run" in problem["message"]
    assert all(f"{name} " in problem["message"] for name in ("sample_k", "max_new_tokens", "dtype"))
    assert "device" not in problem["message"]
    # What is left to the device is not held against anything.
    same = words(job, sample_k="2", rank="1", max_new_tokens="4", device="auto")
    assert json.loads(without_torch(tmp_path, "--json", *same).stdout)["problems"] == []


def test_without_torch_answers_that_make_no_pair_are_told(job, tmp_path):
    (tmp_path / "answers.jsonl").write_text(json.dumps({"idx": hostile_rows()[0][0], "answer": "one"}))
    done = without_torch(tmp_path, *words(job, rank="1", answers=str(tmp_path / "answers.jsonl")))
    assert done.returncode == 2
    assert "has one answer a question; a pair needs two" in done.stderr


def test_without_torch_measuring_is_refused(job, tmp_path):
    done = without_torch(tmp_path, "--measure", *words(job))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("data-engine: error: --measure runs the models, and torch is not")
    done = without_torch(tmp_path, "--measure", "--json", *words(job))
    found = json.loads(done.stdout)
    assert (done.returncode, found["measured"]) == (2, None)
    [problem] = found["problems"]
    assert (problem["check"], problem["flag"]) == ("measure", None)
    assert found["plan"]["num_questions"] == 2


@pytest.mark.slow
def test_the_launch_script_shows_all_of_it_once(planted):
    environment = os.environ | {"PYTHON": sys.executable, "NUM_PROCESSES": "2", "ACCELERATE_CONFIG": "none.yaml"}
    command = [str(ROOT / "launch/run_engine.sh"), "--config", str(planted)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    lines = [line for line in done.stderr.splitlines() if line.startswith("data-engine: error: ")]
    assert len(lines) == len(set(lines)) == len(PLANTED) + 1
    assert "Traceback" not in done.stderr


def test_ranks_are_those_that_the_launch_script_would_start(monkeypatch):
    for name, machines, expected in (("8", "2", 16), ("2", "", 2), ("", "", 1), ("no", "3", 3)):
        monkeypatch.setenv("NUM_PROCESSES", name)
        monkeypatch.setenv("NUM_MACHINES", machines)
        assert ranks.asked_ranks() == expected
