"""Paths at which a run cannot keep or find what it needs are told before any work, by each command about them."""

import itertools
from pathlib import Path

import pytest
from validated import told_by, words

from data_engine.commands import main
from data_engine.config import RunConfig
from data_engine.errors import UserError
from data_engine.job import run_file
from data_engine.models.checkpoints.places import resolve
from data_engine.models.roles import naming_flag
from data_engine.planning import own_folders
from data_engine.questions.dataset import open_questions


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
        own_folders.check_writable(places[name])
    assert str(refused.value) == says.replace("PLACE", str(places[name]))


@pytest.mark.parametrize("name", ["reward_logps", "dataset", "claims", "hashes", "logs", "report"])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_file_in_the_place_of_a_folder_of_the_run_is_refused_before_any_work(tmp_path, name, kind):
    place = tmp_path / name
    place.touch() if kind == "file" else place.symlink_to("nowhere")
    with pytest.raises(UserError) as refused:
        own_folders.check_place(tmp_path)
    told = f'"{place}" is no folder, and the run keeps one of that name: move it away, or choose another work_dir'
    assert str(refused.value) == f'work_dir "{tmp_path}": {told}'


@pytest.mark.parametrize(
    ("work_dir", "says"),
    [
        ("loop", 'work_dir "PLACE/loop" is the folder of a loop: choose another one, or go on with the loop'),
        (
            "loop/round-2",
            'work_dir "PLACE/loop/round-2" is a round of a loop, whose run is in "PLACE/loop/round-2/run"',
        ),
        ("loop/round-2/run", None),
        ("loop/round-2/another", None),
        ("round-2", None),
    ],
)
def test_no_run_is_begun_among_the_rounds_of_a_loop(job, tmp_path, capsys, work_dir, says):
    """The loop would find it there, and not go on."""
    for number in (1, 2):
        (tmp_path / f"loop/round-{number}/run").mkdir(parents=True)
        (tmp_path / f"loop/round-{number}/config.yaml").touch()
    (tmp_path / "round-2").mkdir()
    place = tmp_path / work_dir
    if says is None:
        assert run_file.make_work_dir(place) == place
        assert main.main(["validate", *words(job, work_dir=str(place))]) == 0
        return
    says = says.replace("PLACE", str(tmp_path))
    with pytest.raises(UserError) as refused:
        run_file.make_work_dir(place)
    assert str(refused.value) == says
    assert f"data-engine: error: {says}" in told_by("validate", capsys, *words(job, work_dir=str(place)))


def test_a_folder_in_the_place_of_run_json_is_refused(tmp_path):
    (tmp_path / "run.json").mkdir()
    with pytest.raises(UserError, match=r'run.json" is no file, and the run keeps one of that name'):
        own_folders.check_place(tmp_path)


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
