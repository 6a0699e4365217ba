"""Pictures go through the vision tower once a question and stage; what comes on top of it is told here."""

import contextlib
from collections import Counter
from unittest.mock import patch

import mutations
import pytest
from runs import Pair, few

from data_engine.config import RunConfig
from data_engine.job import path_choice, worker
from data_engine.job.model_holder import ModelHolder
from data_engine.models.auto.model import Auto
from data_engine.pipeline import score

NUM_QUESTIONS, NUM_ANSWERS = 3, 4
# The small prompt that shows what a model's layers are, once a model.
LOADING = {"loading": 2}
# Its tower again, held against that, where it takes numbers that the host makes.
PACKED_LOADING = {"loading": 4}


class Tower:
    """Calls of the vision towers of a run, by what the engine was doing."""

    def __init__(self) -> None:
        self.doing, self.calls = "", Counter()

    @contextlib.contextmanager
    def watched(self):
        note, runner = Auto._note_encoded, ModelHolder.runner

        def noted(model, *arguments):
            self.calls[self.doing] += 1
            return note(model, *arguments)

        def entered(holder, stage, coordination):
            self.doing = stage.name
            return runner(holder, stage, coordination)

        with (
            patch.object(Auto, "_note_encoded", noted),
            patch.object(ModelHolder, "runner", entered),
            self._told(Auto, "find_layers", "loading"),
            self._told(path_choice, "why_not_shared", "deciding"),
            self._told(score, "self_check", "checking"),
        ):
            yield self.calls

    def _told(self, owner: object, name: str, told: str):
        """Calls inside a function are counted as `told`."""
        function = getattr(owner, name)

        def doing(*args, **options):
            before, self.doing = self.doing, told
            try:
                return function(*args, **options)
            finally:
                self.doing = before

        return patch.object(owner, name, doing)


@pytest.fixture
def count(tmp_path):

    def run(checkpoint) -> Counter:
        """The calls of a run on the checkpoint."""
        pair = Pair(checkpoint, tmp_path / "models")
        flags = pair.flags(dataset_path=few(tmp_path, NUM_QUESTIONS), work_dir=str(tmp_path / "work"), unit_size=2)
        with Tower().watched() as calls:
            assert worker.run(RunConfig(**flags)) == 0
        return calls

    return run


def by_stage(calls: Counter) -> dict[str, int]:
    return {
        name: number for name, number in calls.items() if name in ("sampled_answer", "instruct_logps", "reward_logps")
    }


@pytest.mark.parametrize(
    "name",
    ["qwen2_5_vl", *(pytest.param(name, marks=pytest.mark.families) for name in ("qwen3_vl", "qwen3_5", "internvl"))],
)
def test_a_picture_is_encoded_once_a_question_and_stage(checkpoints, count, name):
    calls = count(checkpoints(name))
    assert by_stage(calls) == dict.fromkeys(("sampled_answer", "instruct_logps", "reward_logps"), NUM_QUESTIONS)
    loading = LOADING if name == "internvl" else PACKED_LOADING
    # A model's decision: behind one shared prompt, and a whole row for each of two made-up answers. Then, of each
    # scoring stage, the answers to the first question, each in a whole row.
    assert {name: calls[name] for name in calls.keys() - by_stage(calls).keys()} == loading | {
        "deciding": 2 * (1 + 2), "checking": 2 * NUM_ANSWERS,
    }  # fmt: skip


@pytest.mark.families
def test_the_plain_path_encodes_once_a_question_where_it_samples_and_once_an_answer_where_it_scores(checkpoints, count):
    with mutations.windows_off():
        calls = count(checkpoints("gemma3"))
    assert by_stage(calls) == {
        "sampled_answer": NUM_QUESTIONS,
        "instruct_logps": NUM_QUESTIONS * NUM_ANSWERS, "reward_logps": NUM_QUESTIONS * NUM_ANSWERS,
    }  # fmt: skip
    # Besides, for each of two made-up answers: the model's own decoding, since the other two differ, and a whole row
    # whose layers round once more, by which it is told that the difference is no rounding.
    assert {name: calls[name] for name in calls.keys() - by_stage(calls).keys()} == LOADING | {"deciding": 2 * 7}
