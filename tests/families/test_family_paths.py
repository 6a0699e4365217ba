"""Whether a model shares its prompts: decided once a run, on its first usable question, written down and followed."""

import json
import shutil
from unittest.mock import patch

import mutations
import pytest
from runs import Pair, answers_of, change_weights, few, largest_difference, question, read, write
from tiny_parts import picture

from data_engine.commands.main import main
from data_engine.config import RunConfig
from data_engine.job import model_holder, path_choice, worker
from data_engine.store import units

# In make test, test_family_sampling and test_family_scoring stand for the families.
pytestmark = pytest.mark.families

PLAIN = "model runs on the plain path"


@pytest.fixture(scope="module")
def gemma(checkpoints, tmp_path_factory):
    """Answers see windows of its prompts, and pictures in both directions."""
    return Pair(checkpoints("gemma3"), tmp_path_factory.mktemp("gemma3"))


@pytest.fixture(scope="module")
def fast(gemma, tmp_path_factory):
    """The work_dir of its run without any fault."""
    folder = tmp_path_factory.mktemp("fast")
    assert worker.run(RunConfig(**gemma.flags(dataset_path=few(folder), work_dir=str(folder / "work")))) == 0
    return folder / "work"


@pytest.fixture
def start(gemma, tmp_path, monkeypatch):
    """Start the run of a pair; the models that it loaded, in turn."""
    loaded = []
    load = model_holder.load_model
    monkeypatch.setattr(model_holder, "load_model", lambda *a, **b: loaded.append(load(*a, **b)) or loaded[-1])

    def run(pair: Pair = gemma, **more: object) -> list:
        loaded.clear()
        flags = {"dataset_path": str(tmp_path / "questions.parquet"), "work_dir": str(tmp_path / "work")} | more
        if not (tmp_path / "questions.parquet").exists():
            few(tmp_path)
        assert worker.run(RunConfig(**pair.flags(**flags))) == 0
        return list(loaded)

    return run


def decided(work_dir) -> dict[str, str | None]:
    """By role, why it is on the plain path."""
    files = sorted((work_dir / "paths").glob("*.json"))
    return {file.name.split("-")[0]: json.loads(file.read_text())["why_plain"] for file in files}


def test_a_model_that_does_not_fit_runs_on_the_plain_path_with_the_same_result(start, fast, tmp_path, capsys):
    published = {}
    decision = path_choice._decision

    def noted(plan, model, decode):
        published[len(published)] = [units.published(tmp_path / "work", "sampled_answer")] if not published else []
        return decision(plan, model, decode)

    with mutations.windows_off(), patch.object(path_choice, "_decision", noted):
        models = start()
    told = capsys.readouterr().err
    assert published[0] == [set()], "an answer was there before the decision"
    assert [bool(model.why_plain) for model in models] == [True, True]
    assert decided(tmp_path / "work").keys() == {"instruct", "reward"}
    assert told.count(f"the instruct {PLAIN}") == told.count(f"the reward {PLAIN}") == 1
    assert "log-probs behind a shared prompt are" in told
    assert answers_of(tmp_path / "work") == answers_of(fast)
    for stage in ("instruct_logps", "reward_logps"):
        assert largest_difference(read(tmp_path / "work" / stage), read(fast / stage)) < 1e-4
    assert decided(fast) == {"instruct": None, "reward": None}
    assert read(tmp_path / "work/dataset") == read(fast / "dataset")


@pytest.mark.families
def test_later_starts_follow_what_was_decided_whatever_they_would_say(start, fast, tmp_path, capsys):
    with mutations.windows_off():
        start(stop_after_stage=0)
    assert decided(tmp_path / "work").keys() == {"instruct"}
    with patch.object(path_choice, "why_not_shared", side_effect=[None]):
        instruct, reward = start()
    assert instruct.why_plain
    # Of its own first start, with nothing wrong.
    assert reward.why_plain is None
    assert f"the instruct {PLAIN}" in capsys.readouterr().err
    assert largest_difference(*(read(work / "instruct_logps") for work in (tmp_path / "work", fast))) < 1e-4


@pytest.mark.families
def test_a_later_start_shares_prompts_where_that_was_decided(start, tmp_path):
    start(stop_after_stage=0)
    # Asked once, of the reward model.
    with patch.object(path_choice, "why_not_shared", side_effect=["its layers are strange"]):
        instruct, reward = start(stop_after_stage=1)
    assert instruct.why_plain is None
    assert reward.why_plain == "its layers are strange"


@pytest.mark.families
def test_another_shard_of_the_run_follows_too(start, tmp_path, fast):
    halves = {"num_shards": 2, "unit_size": 2, "stop_after_stage": 0}
    with mutations.windows_off():
        [first] = start(shard_index=0, **halves)
    with patch.object(path_choice, "why_not_shared", side_effect=AssertionError("decided twice")):
        [second] = start(shard_index=1, **halves)
    assert first.why_plain == second.why_plain != None  # noqa: E711
    assert answers_of(tmp_path / "work") == answers_of(fast)


def test_a_run_that_must_be_fast_ends_with_the_reason(gemma, tmp_path, capsys):
    words = gemma.words("run", dataset_path=few(tmp_path), work_dir=tmp_path / "work", require_fast=True)
    with mutations.windows_off():
        assert main(words) == 2
    told = capsys.readouterr().err
    assert "--require_fast is set, and the instruct model cannot share its prompts: log-probs behind" in told
    assert "Traceback" not in told
    assert not units.published(tmp_path / "work", "sampled_answer")


@pytest.mark.families
def test_another_model_or_other_settings_are_decided_on_anew_while_no_unit_is_there(gemma, start, tmp_path):
    few(tmp_path)
    with mutations.windows_off(), pytest.raises(ValueError, match="require_fast"):
        start(require_fast=True)
    [instruct] = start(stop_after_stage=0, temperature=0.9)
    assert instruct.why_plain is None
    shutil.rmtree(tmp_path / "work/sampled_answer")
    [instruct] = start(stop_after_stage=0)
    assert instruct.why_plain, "the same start as the first one"
    shutil.rmtree(tmp_path / "work/sampled_answer")
    other = tmp_path / "other"
    shutil.copytree(gemma.instruct, other)
    change_weights(other)
    [instruct] = start(stop_after_stage=0, instruct_model_path=str(other))
    assert instruct.why_plain is None


@pytest.mark.families
def test_a_decision_that_cannot_be_read_is_made_again(start, tmp_path):
    start(stop_after_stage=0)
    [file] = (tmp_path / "work/paths").glob("*.json")
    file.write_text('{"why_pl')
    start(stop_after_stage=1)
    assert decided(tmp_path / "work") == {"instruct": None, "reward": None}


def test_the_first_question_that_can_be_used_decides(start, gemma, tmp_path):
    """Not one that is left out on any path: a broken picture, or a text beyond the model's context."""
    good = picture(100, 130, seed=0)
    long = question("long", "why " * 2000, good)
    broken = question("broken", "What is it?", good) | {"images": [{"bytes": b"no picture", "path": None}]}
    rows = [broken, long, question("good", "What is it?", good)]
    with patch.object(path_choice, "why_not_shared", wraps=path_choice.why_not_shared) as asked:
        [model, _] = start(dataset_path=write(tmp_path / "questions.parquet", rows))
    assert model.why_plain is None
    assert asked.call_count == 2
    [file] = (tmp_path / "work/paths").glob("instruct-*.json")
    assert json.loads(file.read_text())["question"] == "good"
    left_out = {row["idx"]: row["reason"] for row in units.left_out(tmp_path / "work")}
    assert left_out.keys() == {"broken", "long"}
    assert "question too long" in left_out["long"]


def test_questions_of_which_none_can_be_used_decide_nothing_for_a_larger_limit(start, gemma, tmp_path):
    long, good = question("long", "why " * 2000), question("good", "What is it?", picture(100, 130, seed=0))
    dataset = write(tmp_path / "questions.parquet", [long, good])
    with mutations.windows_off():
        with pytest.raises(ValueError, match="question too long"):
            start(dataset_path=dataset, limit=1, stop_after_stage=0)
        [model] = start(dataset_path=dataset, stop_after_stage=0)
    assert model.why_plain
    [file] = (tmp_path / "work/paths").glob("instruct-*.json")
    assert json.loads(file.read_text())["question"] == "good"


LIMIT = 110


@pytest.fixture(scope="module")
def limited(checkpoints, tmp_path_factory):
    """A rotary table that depends on the largest position of the pass, beyond LIMIT."""
    pair = Pair(checkpoints("internvl"), tmp_path_factory.mktemp("dynamic"))
    for folder in (pair.instruct, pair.reward):
        config = json.loads((folder / "config.json").read_text())
        rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0, "original_max_position_embeddings": LIMIT}
        config["text_config"]["rope_parameters"] = rope
        (folder / "config.json").write_text(json.dumps(config))
    return pair


def rows_of(*lengths: int) -> list[dict]:
    return [question(f"q{n}", "x" * length, picture(100, 130, seed=n)) for n, length in enumerate(lengths)]


@pytest.mark.families
def test_a_model_whose_first_question_is_beyond_its_limit_goes_plain(start, limited, tmp_path, capsys):
    dataset = write(tmp_path / "questions.parquet", rows_of(80, 2))
    models = start(limited, dataset_path=dataset)
    assert [f"up to {LIMIT}" in model.why_plain for model in models] == [True, True]
    assert capsys.readouterr().err.count(f"the instruct {PLAIN}") == 1
    assert {idx for idx, _ in answers_of(tmp_path / "work")} == {"q0", "q1"}
    assert not list(units.left_out(tmp_path / "work"))


def test_a_model_whose_first_question_is_shorter_leaves_longer_ones_out(start, limited, tmp_path):
    dataset = write(tmp_path / "questions.parquet", rows_of(2, 80, 3))
    models = start(limited, dataset_path=dataset)
    assert [model.why_plain for model in models] == [None, None]
    assert {idx for idx, _ in answers_of(tmp_path / "work")} == {"q0", "q2"}
    [row] = units.left_out(tmp_path / "work")
    assert row["idx"] == "q1"
    assert f"8 to generate, room for {LIMIT}" in row["reason"]
