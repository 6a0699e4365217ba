"""The order of a loop's work, by a stand-in for run_engine.sh that notes its start and ends as it is told."""

import json
import logging

import pytest

from data_engine.config import RunConfig
from data_engine.errors import TrainerError, UserError
from data_engine.rounds import page, work
from data_engine.rounds.places import Round

ENGINE = """
echo "run $2" >> "$0.starts"
exit "$(cat "$0.code")"
"""
TRAINER = "sh {trainer} {{model}} {{dataset}} {{output}}"


class World:
    """A loop of three rounds, and the stand-ins."""

    def __init__(self, folder, monkeypatch) -> None:
        self.folder = folder / "loop"
        self.script, self.trainer = folder / "run_engine.sh", folder / "train.sh"
        self.script.write_text(ENGINE)
        self.trainer.write_text(f'echo "train $3" >> "{self.script}.starts"; cp -r "$1" "$3"')
        self.engine_ends_with(0)
        monkeypatch.setattr(work, "launch_folder", lambda: folder)
        self.pages = []
        monkeypatch.setattr(page, "write", lambda loop, folder: self.pages.append(self.states(folder)))
        monkeypatch.setattr(work.training, "check_folder", lambda folder, name: "llava")
        self.model = folder / "sft"
        self.model.mkdir()
        (self.model / "config.json").write_text("{}")

    def states(self, folder) -> str:
        """What there is of each round when a page is written: r of its run, t of its training."""
        assert folder == self.folder
        rounds = [Round(folder, number) for number in (1, 2, 3)]
        return " ".join("r" * one.config.exists() + "t" * one.is_done for one in rounds).rstrip()

    def engine_ends_with(self, code: int) -> None:
        (self.script.parent / f"{self.script.name}.code").write_text(str(code))

    def start(self, rounds: int, train: str | None = None, **more: object) -> int:
        flags = {"instruct_model_path": str(self.model), "reward_model_path": "dpo", "dataset_path": "q"}
        loop = RunConfig(**flags | {"work_dir": str(self.folder)} | more)
        return work.work(loop, rounds, train or TRAINER.format(trainer=self.trainer))

    def starts(self) -> list[str]:
        """What was started since it was last asked."""
        file = self.script.parent / f"{self.script.name}.starts"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return [line.replace(f"{self.folder}/", "") for line in lines]


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    return World(tmp_path, monkeypatch)


def both(number: int) -> list[str]:
    return [f"run round-{number}/config.yaml", f"train round-{number}/model"]


def test_each_round_is_run_then_trained_and_never_again(world, caplog):
    caplog.set_level(logging.INFO)
    assert world.start(2) == 0
    assert world.starts() == both(1) + both(2)
    assert world.start(2) == 0
    assert world.starts() == []
    assert f"The last model: {world.folder}/round-2/model" in caplog.text
    assert world.start(3) == 0
    assert world.starts() == both(3)
    told = json.loads(Round(world.folder, 2).trained.read_text())
    assert told["model"] == str(world.folder / "round-1/model")
    assert told["command"] == ["sh", str(world.trainer), told["model"], f"{world.folder}/round-2/run/dataset",
                               f"{world.folder}/round-2/model"]  # fmt: skip


def test_the_page_is_written_behind_each_run_and_each_training_and_by_a_start_that_has_nothing_to_do(world):
    assert world.start(2) == 0
    assert list(dict.fromkeys(world.pages)) == ["r", "rt", "rt r", "rt rt"]
    world.pages.clear()
    assert world.start(1) == 0
    assert world.pages == ["rt rt"]


def test_trainers_are_told_whole_paths(world, monkeypatch):
    """They may go to another folder before they open what they are told of."""
    monkeypatch.chdir(world.folder.parent)
    train = f"sh -c 'cd / && sh \"$@\"' x {world.trainer} {{model}} {{dataset}} {{output}}"
    assert world.start(1, train, work_dir=world.folder.name) == 0
    assert (world.folder / "round-1/model/config.json").exists()


@pytest.mark.parametrize("code", [1, 2, 3, 4, 75])
def test_a_run_that_does_not_end_well_ends_the_loop_with_its_code(world, code):
    world.engine_ends_with(code)
    assert world.start(2) == code
    assert world.starts() == [both(1)[0]]
    world.engine_ends_with(0)
    assert world.start(1) == 0
    assert world.starts() == both(1)


def test_a_run_that_is_killed_ends_the_loop_with_1(world):
    world.script.write_text(f"{ENGINE.splitlines()[1]}\nkill -9 $$")
    assert world.start(2) == 1
    assert world.starts() == [both(1)[0]]


def test_what_a_trainer_left_is_looked_at_as_the_model_of_the_next_round(world, monkeypatch):
    found = []
    monkeypatch.setattr(work.training, "check_folder", lambda folder, name: found.append((folder, name)))
    assert world.start(2, instruct_model_name="llava") == 0
    assert found == [(Round(world.folder, number).model, None) for number in (1, 2)]


def test_a_round_is_done_when_its_trainer_has_ended_and_left_a_model(world, monkeypatch):
    with pytest.raises(TrainerError):
        world.start(2, "sh -c 'exit 3' {dataset} {output}")
    assert not Round(world.folder, 1).is_done
    monkeypatch.undo()
    monkeypatch.setattr(work, "launch_folder", lambda: world.script.parent)
    with pytest.raises(UserError, match="left no model"):
        world.start(2)
    assert not Round(world.folder, 1).is_done


def test_a_model_that_an_earlier_start_of_a_trainer_left_is_told_as_that(world, caplog):
    with pytest.raises(TrainerError):
        world.start(1, f"sh -c 'sh {world.trainer} {{model}} {{dataset}} {{output}}; exit 1'")
    told = f"this trainer wrote nothing to {world.folder}/round-1/model; the model there was left by an earlier start"
    assert world.start(1, "sh -c 'echo elsewhere' {dataset} {output}") == 0
    assert f"round 1 of 1: {told}" in caplog.text
    caplog.clear()
    Round(world.folder, 1).trained.unlink()
    assert world.start(1, f"{TRAINER.format(trainer=world.trainer)}/again") == 0
    assert "wrote nothing" not in caplog.text


def test_rounds_that_are_done_with_other_flags_are_refused(world):
    assert world.start(1) == 0
    world.starts()
    with pytest.raises(UserError, match="seed was not set, now 3"):
        world.start(2, seed=3)
    assert world.starts() == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"seconds": 1}', '{"train": "sh", "seconds": "long"}'])
def test_a_damaged_note_of_a_training_is_told(world, text):
    assert world.start(1) == 0
    Round(world.folder, 1).trained.write_text(text)
    with pytest.raises(UserError, match=r"trained\.json\" is not what a loop wrote .*: remove it, and the round is"):
        world.start(2)


@pytest.mark.parametrize("text", [None, "", "a: [", "- 1"])
def test_damaged_flags_of_a_done_round_are_told(world, text):
    assert world.start(2) == 0
    config = Round(world.folder, 2).config
    config.unlink() if text is None else config.write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml\" has no flags .*, and round 2 is done: give the file back"):
        world.start(2)


def test_a_done_round_by_another_trainer_is_told(world, caplog):
    assert world.start(1) == 0
    assert world.start(2, f"sh {world.trainer} {{model}} {{dataset}} {{output}} more") == 0
    assert "round 1 was trained by another command: sh" in caplog.text
