"""Whole runs with judges and contrast: what is loaded, computed, refused and told."""

import json
import shutil

import pytest
from run_files import hostile_rows, read, write
from validated import checked
from watched_run import described

from data_engine.commands import report
from data_engine.config import RunConfig
from data_engine.demo.train_yesno import INSTRUCT
from data_engine.errors import UserError
from data_engine.job import model_holder, worker
from data_engine.pipeline import pair
from data_engine.rewards.yesno import DEFAULT, YesNoTemplate


@pytest.fixture
def questions(tmp_path):
    return write(tmp_path / "questions.parquet", hostile_rows()[:3])


@pytest.fixture
def judge(goldens) -> dict[str, str]:
    """A judge whose tokenizer has "▁Yes", "▁No" and "No"."""
    return {"yesno_model_path": str(goldens / "llava/reward")}


@pytest.fixture
def loaded(monkeypatch) -> list[str]:
    """The folders that were loaded, in their order."""
    found, load = [], model_holder.load_model
    monkeypatch.setattr(
        model_holder, "load_model", lambda name, path, **more: found.append(path) or load(name, path, **more)
    )
    return found


def units_of(work) -> dict:
    return {path: path.stat().st_mtime_ns for path in work.glob("*/unit-*.parquet")}


def test_three_sources_load_a_model_at_a_time_and_each_has_its_numbers(
    config, questions, judge, loaded, tmp_path, reward
):
    settings = config(questions, rewards="implicit,contrast,yesno", **judge)
    assert worker.run(settings) == 0
    work = tmp_path / "work"
    # The instruct model samples, scores with the image and without; then the reward model, which is the judge as well.
    assert loaded == [settings.instruct_model_path, settings.reward_model_path]
    assert settings.yesno_model_path == settings.reward_model_path
    keys = [(row["idx"], row["sample_index"]) for row in read(work / "sampled_answer")]
    for stage in ("instruct_logps", "contrast_logps", "reward_logps", "yesno"):
        assert [(row["idx"], row["sample_index"]) for row in read(work / stage)] == keys
    shown = described(work, 0)
    assert all(stage in shown for stage in ("contrast_logps", "yesno"))
    # Against one whole prompt an answer, and all probabilities.
    from data_engine.questions.conversation import Conversation
    from data_engine.questions.images import open_image

    text, data = next((text, data) for idx, text, data in hostile_rows() if idx == "good")
    tokens = {name: reward.word_ids(words) for name, words in (("yes", ("Yes",)), ("no", ("No",)))}
    assert [len(tokens["yes"]), len(tokens["no"])] == [1, 2]
    for row, answer in zip(read(work / "yesno"), read(work / "sampled_answer"), strict=True):
        asked = DEFAULT.replace("{question}", text).replace("{answer}", answer["answer"])
        prompt = reward.prompt(Conversation.of(asked), [open_image(data, 64)], True, 64)
        probabilities = reward.plain_logits(prompt, [1])[0].softmax(-1)
        yes, no = (probabilities[ids].sum().log().item() for ids in tokens.values())
        assert row["score"] == pytest.approx(yes - no, abs=1e-4)


def test_a_judge_that_is_another_folder_is_loaded_and_says_the_same(
    config, questions, judge, loaded, tmp_path, goldens
):
    """Bytes of the scores are those of the run whose judge was there already."""
    shutil.copytree(goldens / "llava/reward", tmp_path / "copy/judge")
    (tmp_path / "copy/openai").symlink_to(goldens / "llava/openai")
    found = []
    for name, path in (("same", judge["yesno_model_path"]), ("copy", str(tmp_path / "copy/judge"))):
        settings = config(questions, rewards="implicit,yesno", yesno_model_path=path, work_dir=str(tmp_path / name))
        loaded.clear()
        assert worker.run(settings) == 0
        found.append((len(loaded), read(tmp_path / name / "yesno")))
    assert [number for number, _ in found] == [2, 3]
    assert found[0][1] == found[1][1]


def test_a_model_that_judges_its_own_answers_is_loaded_once_although_another_ones_stage_stands_between(
    config, questions, judge, loaded, tmp_path, goldens
):
    """Its units and pairs are, byte for byte, those of a run whose judge is a copy of it, which is loaded by itself."""
    shutil.copytree(goldens / "llava/instruct", tmp_path / "copy/judge")
    (tmp_path / "copy/openai").symlink_to(goldens / "llava/openai")
    found = []
    for name, path in (("own", str(goldens / "llava/instruct")), ("copy", str(tmp_path / "copy/judge"))):
        settings = config(questions, rewards="implicit,yesno", yesno_model_path=path, work_dir=str(tmp_path / name))
        loaded.clear()
        assert worker.run(settings) == 0
        written = sorted((tmp_path / name).glob("*/*.parquet"))
        assert {"yesno", "pairs", "dataset"} <= {file.parent.name for file in written}
        found.append((list(loaded), {file.relative_to(tmp_path / name): file.read_bytes() for file in written}))
    own, copy = (folders for folders, _ in found)
    assert own == [settings.instruct_model_path, settings.reward_model_path]
    assert copy == [*own, settings.yesno_model_path]
    assert found[0][1] == found[1][1]


def test_a_source_that_is_added_to_a_finished_run_computes_itself_alone(config, questions, judge, loaded, tmp_path):
    work = tmp_path / "work"
    assert worker.run(config(questions)) == 0
    before = units_of(work)
    loaded.clear()
    (tmp_path / "asked.txt").write_text("{question} {answer} Right?")
    asked = {"yesno_template": str(tmp_path / "asked.txt")}
    settings = config(questions, rewards="contrast,implicit,yesno", **judge, **asked)
    assert worker.run(settings) == 0
    after = units_of(work)
    assert before.items() <= after.items()
    assert {path.parent.name for path in after.keys() - before.keys()} == {"contrast_logps", "yesno"}
    assert loaded == [settings.instruct_model_path, settings.yesno_model_path]
    told = json.loads((work / "run.json").read_text())
    assert told["config"]["yesno_model_path"] == settings.yesno_model_path
    assert told["config"]["rewards"] == "contrast,implicit,yesno"
    assert told["config"].items() >= asked.items()


def test_given_answers_are_judged_without_an_instruct_model(config, questions, judge, loaded, tmp_path):
    answers = tmp_path / "answers.jsonl"
    rows = [{"idx": "good", "answer": f"It is {word}."} for word in ("red", "blue", "a cat", "small")]
    answers.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    settings = config(
        questions, answers=str(answers), rewards="yesno", instruct_model_path=None, reward_model_path=None, **judge
    )
    assert worker.run(settings) == 0
    assert loaded == [settings.yesno_model_path]
    scores = [row["score"] for row in read(tmp_path / "work/yesno")]
    assert len(set(scores)) == 4
    [best] = {row["chosen_index"] for row in read(tmp_path / "work/pairs") if row["chosen_yesno"] == max(scores)}
    assert scores[best] == max(scores)


def test_the_question_that_was_asked_is_bound_by_its_content(config, questions, judge, tmp_path):
    one, same, other = (tmp_path / name for name in ("one.txt", "same.txt", "other.txt"))
    one.write_text("{question} {answer} Right?")
    # An editor's line feed is no part of it.
    same.write_text("{question} {answer} Right?\n")
    other.write_text("{question} {answer} True?")

    def settings(template) -> RunConfig:
        return config(questions, rewards="implicit,yesno", yesno_template=template and str(template), **judge)

    assert worker.run(settings(one)) == 0
    before = units_of(tmp_path / "work")
    assert worker.run(settings(same)) == 0
    assert units_of(tmp_path / "work") == before
    for template in (other, None):
        with pytest.raises(UserError, match=r"yesno_template was [0-9a-f]{12}, now [0-9a-f]{12}"):
            worker.run(settings(template))
    # What is not judged is not concerned.
    shutil.rmtree(tmp_path / "work/yesno")
    assert worker.run(settings(other)) == 0
    assert before.keys() == units_of(tmp_path / "work").keys()
    # The files of templates are not needed for what is written from the run.
    other.unlink()
    assert report.main([str(tmp_path / "work")]) == 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Is {answer} right?", r"must have {question} once, where the question is to stand, and has it 0 times"),
        ("{question} {answer} {answer}", r"must have {answer} once, where the answer is to stand, and has it 2 times"),
        ("{question} {answer} {image}", r"has {image}, in whose place nothing would be put"),
        ("  \n", "is empty; without the flag, the default one is used"),
        (b"\xff\xfe{question}", "is not text in UTF-8; name a file with a text that has {question} and {answer}"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_file_that_is_no_template_is_refused_by_name(config, questions, judge, tmp_path, text, told):
    path = tmp_path / "asked.txt"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        _ = config(questions, rewards="yesno", yesno_template=str(path), **judge).source_flags
    assert str(error.value).startswith(f'yesno_template "{path}"')
    assert told in str(error.value)


def test_what_stands_in_question_and_answer_is_no_field():
    template = YesNoTemplate('{"q": "{question}", "a": "{answer}"}')
    assert template.asks("Why {answer}?", "{question} {x}") == '{"q": "Why {answer}?", "a": "{question} {x}"}'


def test_a_judge_that_cannot_say_yes_is_refused(config, questions, judge, monkeypatch):
    from data_engine.models.native.llava import Llava

    words = Llava.word_ids
    monkeypatch.setattr(Llava, "word_ids", lambda model, of: [] if "Yes" in of else words(model, of))
    with pytest.raises(UserError, match=r"no token that is yes in any spelling \(Yes, yes, YES\).*--yesno_model_path"):
        worker.run(config(questions, rewards="yesno", **judge))


def test_validate_refuses_a_judge_that_cannot_say_yes_or_no(config, questions):
    """The demo's words are colours, shapes and places."""
    with pytest.raises(UserError, match=r"no token that is yes in any spelling \(Yes, yes, YES\).*--yesno_model_path"):
        checked(config(questions, rewards="yesno", yesno_model_path=str(INSTRUCT)))


def test_a_judge_is_checked_before_any_work_and_told_of(config, questions, judge, tmp_path):
    settings = config(questions, rewards="yesno,contrast", reward_model_path=None, **judge)
    told = checked(settings)
    assert "instruct and yesno model: llava and llava" in told
    assert "  yesno model: llava (LLaVA-1.5, attention alone)" in told
    with pytest.raises(UserError, match="yesno_model_path is missing: --rewards yesno needs it"):
        config(questions, rewards="yesno")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r'--yesno_model_path ".*empty": .*has no config\.json'):
        checked(config(questions, rewards="yesno", yesno_model_path=str(tmp_path / "empty")))


def test_a_scalar_model_of_a_family_that_reads_no_head_is_refused(config, questions, goldens):
    settings = config(questions, rewards="scalar", scalar_model_path=str(goldens / "llava/reward"))
    with pytest.raises(UserError, match=r"--scalar_model_path .*the family llava reads no head of a reward model"):
        checked(settings)


@pytest.mark.parametrize("first", ["implicit", "implicit,yesno"])
def test_exports_have_the_rewards_of_their_pairs_whatever_another_start_brings_meanwhile(
    config, questions, judge, tmp_path, monkeypatch, first
):
    """The other start takes a source of reward in or out while this one pairs."""
    settings = config(questions, rewards=first, rank_by=first.rpartition(",")[2] + ".sum" * (first == "implicit"),
                      export="scored", **judge)  # fmt: skip
    [other] = {"implicit", "implicit,yesno"} - {first}
    run, starts = pair.run, []

    def meanwhile(*arguments, **options):
        starts.append(len(starts))
        assert len(starts) == 1, "paired again, since units of the other start are not there"
        funnel = run(*arguments, **options)
        with monkeypatch.context() as patch:
            patch.setattr(worker, "log_to_stderr", lambda ranks: None)
            assert worker.run(config(questions, rewards=other, stop_after_stage=0, **judge)) == 0
        return funnel

    monkeypatch.setattr(pair, "run", meanwhile)
    assert worker.run(settings) == 0
    [row, *_] = read(tmp_path / "work/exports/scored")
    assert ("yesno" in row) == ("yesno" in first)
