"""`validate` tells all that is wrong with a run at once, each thing once, and nothing that only follows from it."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_files import hostile_rows, write
from validated import PLANTED, told, told_by, words

from data_engine.commands import main, validate
from data_engine.config import RunConfig
from data_engine.errors import UserError
from data_engine.job.earlier import incomplete
from data_engine.models.sharding import placement
from data_engine.planning import weights
from data_engine.planning.found import FirstRows, Found, Problem
from data_engine.processes import ranks
from data_engine.processes.ranks import Ranks
from data_engine.questions.dataset import open_questions
from data_engine.stages import RunStages

CPU = Path(__file__).parents[2] / "launch/accelerate/cpu.yaml"


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


def test_each_is_a_line_of_standard_error_and_the_last_one_counts_them(planted, capsys, monkeypatch):
    # As where a process looks at the weights, and what is known before it has is told meanwhile.
    monkeypatch.setattr(weights.Looking, "is_slow", True)
    assert main.main(["validate", "--config", str(planted), "--temprature", "0.5"]) == 2
    out, err = capsys.readouterr()
    *lines, last = err.splitlines()
    assert out == ""
    mistakes = [line for line in lines if line.startswith("data-engine: error: ")]
    assert len(set(mistakes)) == len(mistakes) == len(PLANTED) + 2
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
        ("dataset", 'dataset "data/answers/q.parquet": every idx must be unique; repeated: ', "dataset_path"),
        ("dataset", 'no file or folder at dataset_path "data/limit/q.parquet"', "dataset_path"),
        ("same_run", '"runs/max_pairs/run.json" is of another run', "work_dir"),
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


def test_rows_that_cannot_be_used_are_counted_among_those_that_there_are(job):
    config = RunConfig(**job)
    found = Found(config, questions=open_questions(config), first_rows=FirstRows(2, ("broken",)))
    found.families, found.heavy = dict.fromkeys(config.roles, "llava"), {"models": {}}
    assert "; of the first 2 rows 1 cannot be used" in validate.describe(found)


def test_a_missing_dataset_lets_checkpoints_be_checked_and_the_other_way_round(job, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    found = told(capsys, *words(job, dataset_path="nowhere.parquet", reward_model_path=str(tmp_path / "empty")))
    assert [problem["check"] for problem in found["problems"]] == ["dataset", "checkpoints"]


def test_a_blank_question_is_told_alone(job, tmp_path, capsys):
    """Without it, a folder of pictures is told to need one."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.png").write_bytes(b"")
    found = told(capsys, *words(job, dataset_path=str(tmp_path / "pictures"), question=" "))
    assert [problem["message"] for problem in found["problems"]] == ["question is empty; is a shell variable unset?"]


@pytest.mark.parametrize("rewards", ["rule", "implicit,rule", "critic"])
def test_a_source_of_reward_without_its_own_flag_is_told_by_that_flag_alone(job, capsys, rewards):
    found = told(capsys, *words(job, rewards=rewards))
    assert [problem["check"] for problem in found["problems"]] == ["configuration"]
    flag = "--critic_model_path" if rewards == "critic" else "--rule"
    assert flag in found["problems"][0]["message"]


def test_all_first_rows_being_unusable_is_told_beside_a_broken_checkpoint(job, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "q.parquet", [row for row in hostile_rows() if row[0] in ("undecodable", "empty")])
    found = told(capsys, *words(job, instruct_model_path=str(tmp_path / "empty")))
    assert [problem["check"] for problem in found["problems"]] == ["first_rows", "checkpoints"]
    assert "none of the first 2 rows of --dataset_path can be used" in found["problems"][0]["message"]


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


def test_rewards_that_are_none_do_not_hide_what_is_wrong_with_the_models(job, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    wrong = {"reward_model_path": str(tmp_path / "empty"), "critic_model_path": str(tmp_path / "nothing")}
    found = told(capsys, *words(job, rewards="implict", **wrong))
    rewards, reward, critic = sorted((problem["message"] for problem in found["problems"]), key=len)
    assert 'rewards has "implict"' in rewards
    assert "empty has no config.json" in reward
    assert critic.startswith("--critic_model_path")


@pytest.mark.parametrize(
    "wrong",
    [
        {"limit": ("0", "limit must be"), "dataset_path": ("no.parquet", "no file or folder at dataset_path")},
        {"image_root": ("", "image_root is empty"), "dataset_path": ("no.parquet", "no file or folder")},
        {"columns": ("x", "columns must be"), "rule": ("no.py:score", "cannot be read"), "rewards": ("rule", None)},
        {"zero3": ("maybe", "zero3 must be"), "zero3_config": ("no.json", 'zero3_config "no.json" cannot be read')},
        {"dataset_path": ("no.parquet", "no file or folder"), "answers": ("no.jsonl", 'answers "no.jsonl" cannot be')},
        {"rewards": ("rul", 'rewards has "rul"'), "rule": ("no.py:score", 'rule "no.py:score": no.py cannot be read')},
        {
            "rewards": ("yesno", None),
            "yesno_model_path": ("./no", "./no"),
            "export": ("rlaif-v-logps", "rlaif-v-logps"),
        },
    ],
)
def test_a_mistake_hides_no_other_that_does_not_follow_from_it(job, tmp_path, capsys, wrong):
    found = told(capsys, *words(job, **{name: value for name, (value, _) in wrong.items()}))
    expected = [says for _, says in wrong.values() if says is not None]
    messages = [problem["message"] for problem in found["problems"]]
    assert len(messages) == len(expected), messages
    for says in expected:
        assert sum(says in message for message in messages) == 1, (says, messages)


def test_warnings_do_not_change_the_exit_code(job, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NUM_PROCESSES", "3")
    found = told(capsys, *words(job, temperature="0", yesno_model_path="somewhere", zero3="off", num_shards="2"))
    assert found["problems"] == []
    warned = "\n".join(found["warnings"])
    assert "1 of the first 2 rows cannot be used; most often: " in warned
    assert "temperature 0 gives the same answer k times" in warned
    assert "yesno_model_path has no effect" in warned
    assert "3 ranks have 1 unit to share: 2 will be idle" in warned
    assert "2 shards have 1 unit to share: shard 1 has nothing to compute; use fewer shards" in warned


@pytest.mark.parametrize(
    ("flags", "setting"), [({"top_k": "1"}, "top_k 1"), ({"temperature": "0", "top_k": "0"}, "temperature 0"),
                           ({"top_k": "2", "temperature": "0.01"}, None)]
)  # fmt: skip
def test_settings_by_which_all_answers_are_one_are_warned_of(job, capsys, flags, setting):
    """generation_config.json of Qwen2-VL has top_k 1."""
    warned = [one for one in told(capsys, *words(job, **flags))["warnings"] if "no pair can come of it" in one]
    assert warned == ([] if setting is None else [f"{setting} gives the same answer k times: no pair can come of it"])


def test_as_many_ranks_as_answers_are_warned_of_since_no_pair_can_come_of_them(job, capsys):
    says = (
        "rank is sample_k, 4: each answer is both among the best and among the worst then, and no pair can come of it"
    )
    warned = lambda **flags: [one for one in told(capsys, *words(job, **flags))["warnings"] if says in one]  # noqa: E731
    assert len(warned(sample_k="4", rank="4")) == 1
    assert warned(sample_k="4", rank="3") == []
    assert warned(sample_k="4", rank="4", strategy="best_worst") == []


def test_a_folder_that_lacks_files_of_its_dataset_is_warned_of(job, tmp_path, capsys):
    folder = tmp_path / "half"
    folder.mkdir()
    write(folder / "train-00001-of-00002.parquet", hostile_rows()[1:2])
    found = told(capsys, *words(job, dataset_path=str(folder)))
    told_of = f'"{folder}" has 1 of the 2 files train-#####-of-00002: what the others hold is not asked'
    assert told_of in found["warnings"]


def test_flags_of_pairing_that_change_nothing_are_warned_of(job, tmp_path, capsys):
    """The rank of a strategy that goes by none may be any, even one of more answers than there are."""
    rule = tmp_path / "rule.py"
    rule.write_text("def score(row, answers):\n    return [0.0] * len(answers)\n")
    flags = {"strategy": "best_worst", "rank": "9", "sample_k": "4", "beta": "0.5"}
    found = told(capsys, *words(job, **flags, rewards="rule", rule=f"{rule}:score"))
    assert found["problems"] == []
    warned = "\n".join(found["warnings"])
    assert "rank has no effect: strategy best_worst does not go by it" in warned
    assert "beta has no effect: it scales the reward implicit, which is not among the run's" in warned
    found = told(capsys, *words(job, **flags | {"rank": "3"}))
    assert not any("effect" in warning for warning in found["warnings"])
    [problem] = told(capsys, *words(job, **flags | {"strategy": "aligned"}))["problems"]
    assert problem["message"] == "rank must be at most sample_k, 4, got 9"


def test_flags_that_change_nothing_beside_others_are_warned_of(job, tmp_path, capsys):
    answers = tmp_path / "answers.jsonl"
    rows = ({"idx": row[0], "answer": letter} for row in hostile_rows()[:2] for letter in "abcd")
    answers.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    config = tmp_path / "zero3.json"
    config.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    flags = {"answers": str(answers), "rank": "1", "temperature": "0", "zero3": "off", "zero3_config": str(config)}
    flags |= {"exif": "ignore", "export": "trl"}
    found = told(capsys, *words(job, **flags))
    assert found["problems"] == []
    effects = [warning for warning in found["warnings"] if "effect" in warning or "temperature" in warning]
    assert effects == [
        "temperature has no effect on the answers of --answers, which are not drawn",
        "zero3_config has no effect: zero3 is off",
    ]
    found = told(capsys, *words(job, export="trl", stop_after_stage="1"))
    assert "export has no effect: this start stops after stage 1, before pairs are made" in found["warnings"]


def test_a_model_that_leaves_no_room_to_work_in_is_warned_of(job, capsys, monkeypatch):
    """On a CPU half of the memory, at most, which the ranks of a machine share: not those of another one."""
    size = told(capsys, *words(job))["plan"]["memory"]["weights_bytes"]
    for machines, memory, is_told in (("1", 3 * size // 2, True), ("1", 2 * size, False), ("2", 2 * size, False)):
        monkeypatch.setenv("NUM_MACHINES", machines)
        monkeypatch.setattr(placement, "total_memory_bytes", lambda device, memory=memory: memory)
        found = told(capsys, *words(job))
        assert found["plan"]["memory"]["world_size"] == found["plan"]["world_size"] == int(machines)
        assert found["plan"]["memory"]["split"] is False
        assert any("the largest model may not fit: zero3 auto" in one for one in found["warnings"]) == is_told


def test_models_of_different_tokenizers_are_warned_of(job, goldens, capsys):
    found = told(capsys, *words(job, reward_model_path=str(goldens / "omnilmm/reward")))
    told_of = "instruct and reward model have different tokenizers: answers go over as text, rewards compare sums"
    assert [warning for warning in found["warnings"] if warning.startswith(told_of)]


def test_blank_questions_are_warned_of(job, tmp_path, capsys):
    table = pq.read_table(job["dataset_path"])
    at = table.schema.get_field_index("question")
    asked = pa.array([" \n", *table["question"].to_pylist()[1:]])
    pq.write_table(table.set_column(at, table.schema.field(at), asked), tmp_path / "blank.parquet")
    found = told(capsys, *words(job, dataset_path=str(tmp_path / "blank.parquet"), limit="2"))
    blank = [warning for warning in found["warnings"] if "blank" in warning]
    assert blank == ["1 of the first 2 rows: the question is blank; it is asked all the same"]


def test_stages_that_are_left_out_and_not_complete_are_warned_of(job, tmp_path, capsys):
    """`run` ends with 3 there, and says the same of the first of them."""
    flags = words(job, continue_from_stage="2", unit_size="1", threads="1")
    found = told(capsys, *flags)
    total = pq.read_metadata(job["dataset_path"]).num_rows
    assert main.main(["run", *flags]) == 3
    assert found["warnings"][0] in capsys.readouterr().err
    for stage in ("sampled_answer", "instruct_logps", "reward_logps"):
        says = f"continue_from_stage 2 needs all units of {stage}, missing {total} of {total}: 0-{total - 1}; run the"
        assert any(warning.startswith(says) for warning in found["warnings"]), found["warnings"]
    assert not any("continue_from_stage" in warning for warning in told(capsys, *words(job))["warnings"])


def test_scoring_needs_the_units_of_its_shard_and_pairing_those_of_all(tmp_path):
    (tmp_path / "sampled_answer").mkdir()
    for number in (1, 3):
        (tmp_path / f"sampled_answer/unit-{number:05d}.parquet").touch()
    unit_rows = [range(2 * number, 2 * number + 2) for number in range(6)]
    of_shard = partial(incomplete, tmp_path, RunStages(), unit_rows=unit_rows, mine=range(1, 6, 2))
    assert of_shard(0) == []
    needs = "continue_from_stage {} needs all units of {}, missing {}; run the earlier stages first".format
    assert of_shard(1) == [needs(1, "sampled_answer", "1 of 3: 5")]
    scores = [needs(2, name, "6 of 6: 0-5") for name in ("instruct_logps", "reward_logps")]
    assert of_shard(2) == [needs(2, "sampled_answer", "4 of 6: 0, 2, 4-5"), *scores]


@pytest.mark.slow
def test_the_launch_script_shows_all_of_it_once(planted):
    environment = os.environ | {"PYTHON": sys.executable, "NUM_PROCESSES": "2", "ACCELERATE_CONFIG": str(CPU)}
    command = [str(Path(__file__).parents[2] / "launch/run_engine.sh"), "--config", str(planted)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    lines = [line for line in done.stderr.splitlines() if line.startswith("data-engine: error: ")]
    assert len(lines) == len(set(lines)) == len(PLANTED) + 1
    assert "Traceback" not in done.stderr


def test_ranks_are_those_that_the_launch_script_would_start(monkeypatch):
    for name, machines, expected in (("8", "2", (16, 8)), ("2", "", (2, 2)), ("", "", (1, 1)), ("no", "3", (3, 1))):
        monkeypatch.setenv("NUM_PROCESSES", name)
        monkeypatch.setenv("NUM_MACHINES", machines)
        assert ranks.asked_ranks() == Ranks(0, expected[0], 0, expected[1])
