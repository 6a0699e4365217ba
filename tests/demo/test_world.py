"""The tiny world: the same pictures everywhere, captions and parser that undo each other, verdicts by hand."""

import io
import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_engine.demo import data, world
from data_engine.demo.__main__ import main
from data_engine.demo.judge import tally, truth_path, write_questions
from data_engine.demo.world import Caption, Verdict
from data_engine.schemas import IMAGE


def test_a_picture_depends_on_seed_and_index_alone():
    alone = world.draw(world.scene(3, 7)).tobytes()
    np.random.seed(1)
    after_others = [world.draw(world.scene(3, index)).tobytes() for index in (8, 6, 7)]
    assert after_others[2] == alone
    assert len({alone, *after_others, world.draw(world.scene(4, 7)).tobytes()}) == 4


def test_a_picture_is_what_it_was_when_the_checkpoints_were_trained():
    scene = world.scene(0, 0)
    assert scene.question == "What is in the picture?"
    assert scene.names == ("red circle", "purple circle", "red cross")


def test_every_object_is_painted_in_its_colour_at_its_place():
    for index in range(50):
        scene = world.scene(0, index)
        pixels = np.asarray(world.draw(scene), dtype=float)
        for shape in scene.shapes:
            x, y = round(shape.x), round(shape.y)
            painted = pixels[y - 1 : y + 2, x - 1 : x + 2].mean(axis=(0, 1))
            nearest = min(world.COLOURS, key=lambda name: np.abs(painted - world.COLOURS[name]).sum())
            assert nearest == shape.colour


def test_no_scene_shows_an_object_twice_and_every_number_of_objects_occurs():
    scenes = [world.scene(0, index) for index in range(300)]
    assert all(len(set(scene.names)) == len(scene.names) for scene in scenes)
    assert {len(scene.names) for scene in scenes} == {1, 2, 3, 4}
    assert {scene.question for scene in scenes} == set(world.QUESTIONS)


def test_objects_are_told_in_reading_order():
    for index in range(50):
        cells = [(shape.y >= world.CELL, shape.x >= world.CELL) for shape in world.scene(1, index).shapes]
        assert cells == sorted(cells)


@pytest.mark.parametrize("count", [None, 1, 3])
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_the_parser_undoes_every_template_and_filler(count, number):
    names = () if count else world.NAMES[:number]
    for template, filler in itertools.product(range(len(world.DESCRIBE_TEMPLATES)), range(len(world.FILLERS))):
        caption = Caption(template, filler, names, count)
        assert world.parse(world.render(caption)) == caption


def test_captions_read_as_english():
    names = ("red circle", "blue square", "green cross")
    assert world.render(Caption(1, 0, names)) == "I can see a red circle, a blue square and a green cross."
    assert world.render(Caption(2, 0, names[:1])) == "There is a red circle in the picture."
    assert world.render(Caption(2, 1, count=1)) == "There is one object in the picture. The background is grey."
    assert world.render(Caption(2, 0, count=2)) == "There are two objects in the picture."


@pytest.mark.parametrize("text", ["", "Hello.", "I can see a red circle", "I can see a red circle. Nothing else."])
def test_the_parser_refuses_what_no_template_writes(text):
    assert world.parse(text) is None


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("I can see a red circle and a blue cross.", Verdict(claims=2, wrong=0, found=2)),
        ("I can see a red circle and a blue square.", Verdict(claims=2, wrong=1, found=1)),
        ("I can see a red circle and a red circle.", Verdict(claims=2, wrong=1, found=1)),
        ("I can see a red circle.", Verdict(claims=1, wrong=0, found=1)),
        ("I can count two objects.", Verdict(claims=1, wrong=0, found=2)),
        ("I can count three objects.", Verdict(claims=1, wrong=1, found=0)),
        ("The background is grey.", Verdict(claims=0, wrong=0, found=0)),
        ("a red red blue cross circle", Verdict(claims=1, wrong=0, found=1)),
    ],
)
def test_an_answer_is_judged_as_by_hand(text, verdict):
    assert world.judge(text, ("red circle", "blue cross")) == verdict


def test_a_true_caption_is_free_of_mistakes_and_tells_all():
    for index in range(100):
        scene = world.scene(2, index)
        verdict = world.judge(world.render(world.true_caption(scene, Caption(index % 3, 0))), scene.names)
        assert (verdict.wrong, verdict.found) == (0, len(scene.names))


def test_a_corrupted_caption_is_never_the_true_one():
    rng = np.random.default_rng(0)
    for index in range(100):
        scene = world.scene(2, index)
        truth = world.true_caption(scene, Caption(0, 0))
        assert data.corrupted(truth, rng) != truth


def test_careless_captions_are_wrong_about_as_often_as_meant():
    rng = np.random.default_rng(0)
    scenes = [world.scene(2, index) for index in range(1000)]
    truths = [world.true_caption(scene, Caption(0, 0)) for scene in scenes]
    wrong = sum(data.with_mistakes(truth, rng) != truth for truth in truths)
    assert 300 < wrong < 500


def test_totals_count_objects_and_answers():
    answers = [("a red circle", ("red circle",)), ("a red cross and a red circle", ("red circle", "blue cross"))]
    total = tally(answers)
    assert (total.wrong_share, total.mistake_share, total.recall) == (1 / 3, 1 / 2, 2 / 3)


def test_questions_are_written_in_the_input_format_with_the_truth_beside_them(tmp_path):
    path = tmp_path / "new" / "questions.parquet"
    write_questions(path, num=5, seed=9)
    rows = pq.read_table(path).to_pylist()
    assert [list(row) for row in rows] == [["idx", "question", "image"]] * 5
    truth = pq.read_table(truth_path(path)).to_pylist()
    for index, row in enumerate(rows):
        scene = world.scene(9, index)
        picture = Image.open(io.BytesIO(row["image"]["bytes"]))
        assert (picture.mode, picture.size, picture.tobytes()) == ("RGB", (56, 56), world.draw(scene).tobytes())
        assert (row["idx"], row["question"]) == (index, scene.question)
        assert truth[index] == {"idx": index, "objects": list(scene.names)}


def run_with_pairs(folder, chosen, rejected):
    """A finished run's dataset: one pair on the first picture of seed 0, three objects."""
    questions = folder / "questions.parquet"
    assert main(["questions", str(questions), "--num", "1"]) == 0
    (folder / "work" / "dataset").mkdir(parents=True)
    columns = {"idx": [0], "question": ["What?"], "chosen": [chosen], "rejected": [rejected]}
    table = pa.table({**columns, "image": pa.array([None], IMAGE)})
    pq.write_table(table, folder / "work" / "dataset" / "dpo_dataset.parquet")
    return main(["judge", str(folder / "work"), str(questions)])


def test_the_judge_passes_a_run_whose_chosen_answers_are_clearly_better(tmp_path, capsys):
    assert run_with_pairs(tmp_path, "I can see a red circle.", "I can see a blue circle.") == 0
    printed = capsys.readouterr().out
    assert "red circle, purple circle, red cross" in printed
    assert "[1 of 1 hallucinated]" in printed
    assert "100.0%" in printed


def test_the_judge_fails_a_run_whose_chosen_answers_are_not_better(tmp_path, capsys):
    assert run_with_pairs(tmp_path, "a red circle and a blue cross", "a blue circle") == 1
    assert "FAILED" in capsys.readouterr().out


def test_the_judge_fails_a_run_in_which_nothing_is_hallucinated(tmp_path):
    assert run_with_pairs(tmp_path, "a red circle", "a red cross") == 1


def test_a_missing_run_is_a_clear_mistake_of_the_user(tmp_path, capsys):
    assert main(["judge", str(tmp_path), str(tmp_path / "questions.parquet")]) == 2
    assert "run the engine first" in capsys.readouterr().err
