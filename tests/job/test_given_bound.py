"""What a run of given answers is bound to: lines of docs/bound.md."""

import json
import shutil

import pytest
from bound_run import change_a_weight
from test_bound import SAMPLING

from data_engine.commands import main
from data_engine.job import model_holder
from data_engine.store import units

ANSWERS = [{"idx": f"q{n}", "answer": answer} for n in range(5) for answer in ("A cat.", "A dog.", "A bird.")]


def write(run, *rows: dict, name: str = "answers.jsonl") -> dict[str, object]:
    """The flags that name a file of these rows."""
    (run.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"answers": str(run.folder / name), "rank": 1}


@pytest.fixture(scope="module")
def made(finished, tmp_path_factory):
    """A finished run of given answers."""

    run = finished.copy(tmp_path_factory.mktemp("given") / "given")
    shutil.rmtree(run.work)
    assert run.start(**write(run, *ANSWERS)) == 0
    return run


@pytest.fixture
def given(made, tmp_path):
    """A copy of it, and the flags that name the file of answers."""

    run = made.copy(tmp_path / "given")
    return run, {"answers": str(run.folder / "answers.jsonl"), "rank": 1}


def test_another_file_of_answers_is_refused_by_name(given):
    run, _ = given
    then, units_before = json.loads((run.work / "run.json").read_text())["bound"]["answers"], run.times()
    told = run.refusal(**write(run, *ANSWERS[:-1], name="other.jsonl"))
    assert f"answers was {then[:12]}, now " in told
    assert "units of sampled_answer were computed with it" in told
    # The same file with other content.
    assert f"answers was {then[:12]}, now " in run.refusal(**write(run, *ANSWERS, {"idx": "q0", "answer": "No."}))
    assert run.times() == units_before
    assert [path.name for path in (run.work / "answers").iterdir() if not path.is_dir()] == []
    assert len(list((run.work / "answers").iterdir())) == 1


def test_sampling_where_answers_were_given_is_refused_and_the_other_way_round(given, finished, tmp_path):
    run, flags = given
    assert "answers was " in run.refusal()
    assert ", now not set; units of sampled_answer" in run.refusal()
    sampled = finished.copy(tmp_path / "sampled")
    for more in ({}, {"continue_from_stage": 1}, {"continue_from_stage": 2}):
        told = sampled.refusal(**flags, **more)
        assert "holds another run: answers was not set, now " in told
        assert "temperature" not in told
    assert not (sampled.work / "answers").exists()


def test_the_same_answers_elsewhere_change_nothing(given):
    run, flags = given
    moved = shutil.move(run.folder / "answers.jsonl", run.folder / "moved.jsonl")
    assert run.computed_again(**flags | {"answers": str(moved)}) == set()


# Each takes a whole run.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if at > 1 else ()) for at, name in enumerate(SAMPLING)]
)
def test_settings_of_drawing_do_not_matter_to_given_answers(given, name):
    run, flags = given
    assert run.computed_again(**flags, **{name: SAMPLING[name]}) == set()


def test_rows_and_pictures_matter_to_given_answers_too(given):
    run, flags = given
    assert "has answers to the first 5 questions, and this start asks 3" in run.refusal(**flags, limit=3)
    for name, value in {"exif": "ignore", "max_megapixels": 32.0, "unit_size": 3}.items():
        assert f"{name} was " in run.refusal(**flags, **{name: value})


def test_the_instruct_model_may_change_under_given_texts(given):
    run, flags = given
    for stage in ("instruct_logps", "reward_logps"):
        shutil.rmtree(run.work / stage)
    change_a_weight(run.folder / "instruct")
    again = run.computed_again(**flags)
    assert {name.partition("/")[0] for name in again} == {"instruct_logps", "reward_logps"}


def test_an_export_tells_the_model_that_has_taken_the_place_of_another(given, tmp_path):
    run, flags = given
    for stage in ("instruct_logps", "reward_logps"):
        shutil.rmtree(run.work / stage)
    for role in ("instruct", "reward"):
        (run.folder / role).rename(run.folder / f"another-{role}")
        change_a_weight(run.folder / f"another-{role}")
    models = {f"{role}_model_path": str(run.folder / f"another-{role}") for role in ("instruct", "reward")}
    assert run.start(**flags, **models) == 0
    found = json.loads((run.work / "run.json").read_text())
    assert [found["models"][role]["folders"][0] for role in ("instruct", "reward")] == list(models.values())
    assert main.main(["export", str(run.work), "--format", "trl", "--output", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out/trl/README.md").read_text()
    for role in ("instruct", "reward"):
        assert f"| {role} | another-{role} | local folder | llava | {found['bound'][f'{role}_model']} |" in card
        assert f"--{role}_model_path another-{role}" in card


def test_given_ids_are_bound_to_the_tokenizer_that_they_are_of(given, tmp_path, monkeypatch):
    run, _ = given
    shutil.rmtree(run.work)
    flags = write(run, *({"idx": row["idx"], "token_ids": [5 + place % 3, 9]} for place, row in enumerate(ANSWERS)))
    assert run.start(**flags, stop_after_stage=0) == 0
    change_a_weight(run.folder / "instruct")
    assert run.computed_again(**flags, stop_after_stage=0) == set()
    from data_engine.models.native.llava import Llava

    side = Llava.text_side
    monkeypatch.setattr(Llava, "text_side", lambda *a, **b: side(*a, **b)._replace(vocabulary="another"))
    assert "answers_vocabulary was " in run.refusal(**flags)


def test_a_copy_of_the_answers_that_was_removed_is_made_again(given, monkeypatch):
    run, flags = given
    units.unit_path(run.work, "sampled_answer", 1).unlink()
    shutil.rmtree(run.work / "answers")
    monkeypatch.setattr(model_holder, "load_model", lambda *a, **b: pytest.fail("no model is needed"))
    assert run.computed_again(**flags) == {"sampled_answer/1"}


def test_a_file_that_changes_while_it_is_read_is_not_taken(finished, tmp_path, monkeypatch):
    from data_engine.questions.given_rows import GivenFile

    run = finished.copy(tmp_path / "given")
    shutil.rmtree(run.work)
    flags, rows = write(run, *ANSWERS), GivenFile.rows

    def meanwhile(file):
        write(run, *ANSWERS, {"idx": "q0", "answer": "A word more."})
        return rows(file)

    monkeypatch.setattr(GivenFile, "rows", meanwhile)
    assert "changed while it was read: run again when it is complete" in run.refusal(**flags)
    # Not for a moment, in which another rank could have opened the copy.
    assert not (run.work / "answers").exists()
    monkeypatch.setattr(GivenFile, "rows", rows)
    assert run.start(**flags) == 0
    assert len(run.answers()) == len(ANSWERS) + 1
