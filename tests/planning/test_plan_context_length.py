"""`validate` tells of questions without room for their answers, which a run leaves out, or is refused for."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_files import noise, png, write
from validated import told, words

from data_engine.commands import main
from data_engine.config import RunConfig
from data_engine.job.plan import NO_IMAGES
from data_engine.models import load_model
from data_engine.planning.context_length import Room
from data_engine.planning.found import Found
from data_engine.questions.conversation import Conversation
from data_engine.questions.dataset import open_questions
from data_engine.store import units

# Of both families' models: by positions, or by the window that no answer may outgrow.
ROOM = 4096
WHOLE = png(noise((60, 60), 80))
SHORT, LONG = "What is it?", "why " * 5000


@pytest.fixture(scope="module", params=["llava", "omnilmm"])
def family(request) -> str:
    return request.param


@pytest.fixture
def asking(job, goldens, tmp_path):
    """The flags of a run of a family that asks these questions."""

    def of(*questions: str, family: str = "llava", **changed: str) -> list[str]:
        rows = [(f"q{number}", question, WHOLE) for number, question in enumerate(questions)]
        models = {f"{role}_model_path": str(goldens / family / role) for role in ("instruct", "reward")}
        path = str(write(tmp_path / "asked.parquet", rows))
        quick = {"sample_k": "2", "rank": "1", "max_new_tokens": "4", "threads": "1"}
        return words(job, **{**models, **quick, "dataset_path": path, **changed})

    return of


def tokens(folder, question: str) -> int:
    model = load_model(None, str(folder), device="cpu")
    return model.prompt(Conversation.of(question, 1), [noise((60, 60), 80)], False, 64).length


def refused(capsys, *arguments: str) -> str:
    assert main.main(["run", *arguments]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err


def test_where_no_question_leaves_room_validate_and_run_are_refused(asking, goldens, family, tmp_path, capsys):
    prompt = tokens(goldens / family / "instruct", SHORT)
    new = ROOM - prompt + 1
    arguments = asking(SHORT, SHORT, SHORT, family=family, max_new_tokens=str(new))
    [problem] = told(capsys, *arguments)["problems"]
    assert problem["flag"] == "max_new_tokens"
    assert problem["message"] == (
        f"max_new_tokens {new}: all of the first 3 questions that can be read are too long, and would be left out: "
        f"their prompts have {prompt} tokens, and the instruct model has room for {ROOM} with the answer; lower "
        f"--max_new_tokens to at most {new - 1}"
    )
    assert f"question too long: prompt of {prompt} tokens, {new} to generate, room for {ROOM}" in refused(
        capsys, *arguments
    )
    # What is said to mend it does.
    mended = told(capsys, *asking(SHORT, SHORT, SHORT, family=family, max_new_tokens=str(new - 1)))
    assert (mended["problems"], mended["warnings"]) == ([], [])


def test_questions_that_a_run_would_leave_out_are_counted_in_a_warning(asking, goldens, tmp_path, capsys):
    """Also where the first that fits stands behind those that are looked at: it is of the first unit."""
    arguments = asking(*[LONG] * 9, SHORT, unit_size="10")
    found = told(capsys, *arguments)
    assert found["problems"] == []
    [warning] = (one for one in found["warnings"] if "too long" in one)
    assert warning == (
        "max_new_tokens 4: 9 of the first 10 questions that can be read are too long, and would be left out: their "
        f"prompts have {tokens(goldens / 'llava/instruct', LONG)} tokens, and the instruct model has room for {ROOM} "
        "with the answer; shorten these questions or their pictures, or choose a model with more room"
    )
    assert main.main(["run", *arguments]) in (0, 4)
    assert {row["idx"] for row in units.left_out(tmp_path / "work")} == {f"q{number}" for number in range(9)}
    capsys.readouterr()
    # Of units that are there, a run has said so itself.
    assert not any("too long" in one for one in told(capsys, *arguments)["warnings"])


def test_questions_of_a_later_unit_do_not_keep_a_run_from_being_refused(asking, capsys):
    for count in (3, 9):
        arguments = asking(*[LONG] * count, SHORT, unit_size=str(count))
        [problem] = told(capsys, *arguments)["problems"]
        assert f"all of the first {count} questions" in problem["message"]
        assert f"none of the first {count} rows" in refused(capsys, *arguments)


def test_a_reward_model_without_room_for_the_prompts_is_told_by_its_flag(asking, goldens, tmp_path, capsys):
    shutil.copytree(goldens / "llava", tmp_path / "llava")
    path = tmp_path / "llava/reward/config.json"
    prompt = tokens(goldens / "llava/instruct", SHORT)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": prompt}))
    arguments = asking(SHORT, SHORT, reward_model_path=str(path.parent))
    [problem] = told(capsys, *arguments)["problems"]
    assert problem["flag"] == "reward_model_path"
    assert f"all of the first 2 questions that can be read are too long, and would be left out: their prompts have " \
        f"{prompt} tokens, and the reward model has room for {prompt}; shorten" in problem["message"]  # fmt: skip
    assert "reward_logps: none of the first 2 rows" in refused(capsys, *arguments)


def test_a_row_that_cannot_be_read_keeps_a_run_from_being_refused(asking, tmp_path, capsys):
    arguments = asking(LONG, LONG, SHORT, SHORT, unit_size="3")
    rows = [("q0", LONG, WHOLE), ("q1", LONG, WHOLE), ("q2", SHORT, b"no picture"), ("q3", SHORT, WHOLE)]
    write(tmp_path / "asked.parquet", rows)
    found = told(capsys, *arguments)
    assert found["problems"] == []
    assert any("all of the first 2 questions" in warning for warning in found["warnings"])
    assert main.main(["run", *arguments]) in (0, 4)


@pytest.mark.parametrize(
    "changed",
    [
        # The first unit is another job's.
        {"num_shards": "2", "shard_index": "1", "unit_size": "1", "stop_after_stage": "1"},
        # It is wrong, and what is in its place was not asked for.
        {"max_new_tokens": "0"},
        {"continue_from_stage": "1"},
    ],
)
def test_nothing_is_said_of_room_that_this_start_does_not_ask_for(asking, changed, capsys):
    found = told(capsys, *asking(SHORT, SHORT, **{"max_new_tokens": "4090"} | changed))
    messages = [problem["message"] for problem in found["problems"]]
    assert not any("too long" in one for one in (*messages, *found["warnings"])), found


def test_of_prompts_of_several_lengths_the_longest_one_says_what_is_left_for_answers():
    told = Room("instruct", "models/a", 95, 100, "the instruct model", may_refuse=True).told([50, 5, 60])
    assert "2 of the first 3 questions" in told
    assert "prompts have 50 to 60 tokens" in told
    assert told.endswith("lower --max_new_tokens to at most 40")


@pytest.mark.parametrize(
    ("changed", "counts", "positions"),
    [
        # The first question decides: where it is beyond what is shared, the model runs on the plain path.
        ({}, [50, 95], 100),
        ({}, [95, 50], 1000),
        # One that is left out on either path decides nothing.
        ({}, [995, 50], 100),
        ({}, [995], 100),
        ({"sampler": "vllm"}, [95], 100),
        ({"sampler": "vllm", "vllm_args": '{"max_model_len": 70}'}, [50], 70),
    ],
)
def test_the_room_is_that_of_the_path_which_the_first_question_decides_on(job, changed, counts, positions):
    config = RunConfig(**job, max_new_tokens=10, **changed)
    found = Found(config, questions=open_questions(config))
    model = SimpleNamespace(max_positions=1000, most_shared=100, why_plain=None)
    assert Room.of(found, "instruct", model, counts).positions == positions
    model.why_plain = "told by its configuration"
    if not changed:
        assert Room.of(found, "instruct", model, counts).positions == 1000


ONE_IMAGE = "takes one image and one question, and nothing else; the row has"


@pytest.mark.parametrize(
    ("flags", "has"),
    [({"system": "Be brief."}, "a system text"), ({"columns": "image="}, f"no image; {NO_IMAGES}")],
    ids=["system", "no image"],
)
def test_rows_that_the_family_does_not_take_are_refused_before_a_model_is_loaded(asking, family, flags, has, capsys):
    arguments = asking(SHORT, SHORT, SHORT, family=family, **flags)
    [problem] = told(capsys, *arguments)["problems"]
    assert problem["flag"] == "instruct_model_path"
    assert "none of the first 3 rows can be used, for this reason: " in problem["message"]
    assert problem["message"].endswith(f"the family {family} {ONE_IMAGE} {has}")
    # As a run says, which finds out behind the loading of the model.
    assert f"none of the first 3 rows of the dataset can be used, for this reason: the family {family}" in refused(
        capsys, *arguments
    )


def chats(path: Path, turns: list[int], question: str = SHORT, picture: bytes = WHOLE) -> str:
    """A dataset of conversations with so many turns before the last question; `picture` is that of the last one."""
    earlier = [{"role": "user", "content": SHORT}, {"role": "assistant", "content": "A dog."}]
    pq.write_table(
        pa.Table.from_pylist([
            {"idx": number, "messages": [*earlier * before, {"role": "user", "content": question}],
             "image": {"bytes": picture if number == len(turns) - 1 else WHOLE, "path": "a.png"}}
            for number, before in enumerate(turns)
        ]), path,
    )  # fmt: skip
    return str(path)


def test_where_some_rows_are_not_taken_they_are_counted(asking, tmp_path, capsys):
    found = told(capsys, *asking(SHORT, dataset_path=chats(tmp_path / "turns.parquet", [1, 1, 1, 0, 0])))
    assert found["problems"] == []
    # Of both models, once.
    [warning] = [one for one in found["warnings"] if "would be left out" in one]
    assert warning == (
        "3 of the first 5 rows that can be read would be left out for the instruct model; most often: the family llava "
        f"{ONE_IMAGE} earlier turns"
    )


def test_where_some_rows_are_left_out_for_another_reason_a_run_is_not_refused_and_nor_is_this(asking, tmp_path, capsys):
    found = told(capsys, *asking(SHORT, dataset_path=chats(tmp_path / "turns.parquet", [1, 1, 0], picture=b"none")))
    assert found["problems"] == []
    [warning] = [one for one in found["warnings"] if "would be left out" in one]
    assert warning.startswith("2 of the first 2 rows that can be read would be left out for the instruct model")


def test_rows_that_are_not_taken_hide_none_that_are_too_long(asking, tmp_path, capsys):
    found = told(capsys, *asking(SHORT, dataset_path=chats(tmp_path / "turns.parquet", [1, 0, 0], LONG)))
    assert found["problems"] == []
    one, other = (one for one in found["warnings"] if "would be left out" in one)
    assert "1 of the first 3 rows that can be read would be left out for the instruct model" in one
    assert "all of the first 2 questions that can be read are too long" in other


@pytest.mark.parametrize("judge", ["yesno", "critic"])
def test_a_judge_that_asks_in_its_own_words_is_not_shown_what_its_family_does_not_take(
    goldens, tmp_path, capsys, judge
):
    """What it is asked has no system text, and no turn before it."""
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps({"idx": 0, "answer": text}) + "\n" for text in "ab"))
    flags = {
        "dataset_path": chats(tmp_path / "turns.parquet", [1]), "answers": str(tmp_path / "answers.jsonl"),
        "rewards": judge, f"{judge}_model_path": str(goldens / "llava/reward"), "work_dir": str(tmp_path / "work"),
        "system": "Be brief.", "rank": "1", "threads": "1",
    }  # fmt: skip
    main.main(["validate", "--json", *(f"--{name}={value}" for name, value in flags.items())])
    found = json.loads(capsys.readouterr().out)
    assert not [one for one in found["problems"] if ONE_IMAGE in one["message"]]
    assert not [one for one in found["warnings"] if "would be left out" in one]
