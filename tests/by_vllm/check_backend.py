"""Does vLLM draw from what the engine scores? In its environment: check_backend.py FOLDER FAMILY QUESTIONS WORKERS.

One engine of vLLM, split over so many workers, draws units of answers, which are scored by the same model here. Then it
is given, unit by unit, other prompts, other pictures, and ids that do not make the family's prompt: each has to be
refused. Prints all that.
"""

import json
import logging
import multiprocessing
import sys
from pathlib import Path

import torch
import vllm.envs
from PIL import ImageOps

from data_engine.config import RunConfig
from data_engine.errors import UserError
from data_engine.models import family_class, load_model
from data_engine.models.prompt_maker import TokenPrompt
from data_engine.pipeline import sample, score
from data_engine.pipeline.runner import UnitWork
from data_engine.questions.conversation import Conversation
from data_engine.questions.dataset import open_questions
from data_engine.sampling.backend import BackendSettings, make_backend
from data_engine.sampling.vllm_engine import ENVIRONMENT
from data_engine.scoring.drawn_check import check_drawn
from data_engine.scoring.logprobs import Scored, score_pass

K, LENGTH, ROWS = 4, 24, 8
# Of eight prompts, no step has room for all: some are computed in pieces.
ARGS = {"enforce_eager": True, "max_model_len": 1024, "max_num_seqs": 16, "max_num_batched_tokens": 256}


class Planted:
    """A PromptMaker with something wrong in what it makes."""

    def __init__(self, maker, change) -> None:
        self._maker, self._change = maker, change

    def __getattr__(self, name):
        return getattr(self._maker, name)

    def prompt(self, *asked) -> TokenPrompt:
        return self._change(self._maker, *asked)


def another_template(maker, conversation, images, *settings) -> TokenPrompt:
    [image, question] = conversation.messages[-1].content
    assert image == 0
    return maker.prompt(Conversation.of(f"Human: {question} Assistant:"), images, *settings)


def another_picture(maker, conversation, images, *settings) -> TokenPrompt:
    return maker.prompt(conversation, [ImageOps.invert(ImageOps.flip(image)) for image in images], *settings)


def other_ids(maker, *asked) -> TokenPrompt:
    made = maker.prompt(*asked)
    return TokenPrompt([*made.ids[:-1], made.ids[-1] - 1], made.images, made.expanded)


class Check:
    def __init__(self, folder: Path, family: str, questions: Path, workers: int) -> None:
        args = json.dumps(ARGS | {"tensor_parallel_size": workers})
        self.config = RunConfig(
            instruct_model_path=str(folder), reward_model_path=str(folder), dataset_path=str(questions),
            work_dir="unused", sampler="vllm", vllm_args=args, sample_k=K, rank=2, max_new_tokens=LENGTH,
            same_pixels=True,
        )  # fmt: skip
        self.questions = open_questions(self.config)
        self.maker = family_class(family).prompt_maker(folder)
        self.model = load_model("auto" if family == "auto" else None, str(folder), device="cpu", dtype="float32")
        self.settings = sample.settings_of(self.config)
        options = {"args": self.config.vllm_options, "dtype": "float32", "seed": 0}
        made = BackendSettings(self.maker, self.settings.params, K, 0, 0, options=options)
        self.backend = make_backend("vllm", made)
        self.taken = 0

    def rows(self):
        return list(self.questions.rows(range(ROWS)))

    def drawn(self, maker):
        """A unit of answers, and what the back end said of each."""
        completions, poll = [], self.backend.poll

        def noting():
            found = poll()
            completions.extend(found)
            return found

        self.backend.poll = noting
        runner = sample.SamplingRunner(
            self.backend, maker, self.questions.idx_type, self.settings, told=self.backend.told
        )
        # The back end counts all requests that it was ever given.
        runner._num_requests = self.taken
        runner.submit(UnitWork(0, self.rows(), {}))
        try:
            while not (finished := runner.poll()):
                pass
        finally:
            self.backend.poll = poll
        self.taken += ROWS
        [(_, unit)] = finished
        return unit, completions

    def difference(self, unit) -> float:
        """Mean difference, nat a token; raises UserError where a run would."""
        settings = score.ScoreSettings(as_text=False, max_megapixels=64)
        scored = score.score_unit(self.model, self.rows(), unit.table, settings)
        return check_drawn(unit.table, unit.drawn["logps"], scored.table, self.model.dtype).mean

    def largest(self, completions) -> float:
        """Largest difference of a token's log-prob."""
        found = sorted(completions, key=lambda one: (one.request, one.sample_index))
        most = 0.0
        for number, question in enumerate(self.rows()):
            answers = found[number * K : (number + 1) * K]
            images = sample.read_images(question, 64, sample.images.decode)
            prompt = self.model.prompt(question.conversation, images, True, 64)
            ours = score_pass(self.model, [Scored(prompt, [one.token_ids for one in answers])])[0]
            for one, logps in zip(answers, ours, strict=True):
                most = max(most, float((logps - torch.tensor(one.logps)).abs().max()))
        return most

    def refusal(self, change) -> str:
        try:
            return f"nothing was refused: {self.difference(self.drawn(Planted(self.maker, change))[0])}"
        except UserError as error:
            return str(error)


def main(folder: str, family: str, questions: str, workers: str) -> None:
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    check = Check(Path(folder), family, Path(questions), int(workers))
    unit, completions = check.drawn(check.maker)
    found = {
        "mean": check.difference(unit), "largest": check.largest(completions), "seeded": unit.drawn["seeded"],
        "left_out": unit.quarantined,
        "ends": sorted(check.maker.eos_token_ids), "banned": sorted(check.maker.banned_token_ids),
        "answers": [[one["finish_reason"], one["token_ids"]] for one in unit.table.to_pylist()],
        "template": check.refusal(another_template), "picture": check.refusal(another_picture),
        # Last: the others of its unit are still in the engine.
        "ids": check.refusal(other_ids),
    }  # fmt: skip
    alive = len(multiprocessing.active_children())
    check.backend.close()
    found["workers"] = [alive, len(multiprocessing.active_children())]
    found["unknown_variables"] = sorted(set(ENVIRONMENT) - set(vllm.envs.environment_variables))
    print("FOUND " + json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
