"""How much a model hallucinates, by the truth of pictures that no training saw: judge.py MODEL OUT.json SEED NUM

The engine loads the model and draws one answer a picture at T = 0.7 and one greedy. Where the model was trained here,
the engine's ids of every prompt and answer must be those that the trainer trained on, else it stops.
"""

import json
import sys
from pathlib import Path

import torch

from data_engine import load_model
from data_engine.demo import world
from data_engine.models.base import VisionLanguageModel
from data_engine.pipeline.sample import SampleSettings, request_for
from data_engine.questions.conversation import Conversation
from data_engine.sampling.draw import SamplingParams
from data_engine.sampling.native.scheduler import sample

# Far from the seeds of every training and every run.
PICTURE_SEED = 8_000_001
TEMPERATURES = {"sampled": 0.7, "greedy": 0.0}
COUNTS = ("claims", "wrong", "found", "objects", "words")
NUM_ROWS = 160


class Differs(Exception):
    """The trainer trained on other ids than the engine asks and scores by."""


def require_same_ids(model: VisionLanguageModel, trained_on: Path, image_token: int) -> int:
    """The number of rows compared. Raises Differs at the first whose prompt or answer has other ids."""
    rows = json.loads(trained_on.read_text())
    known = {}
    for question in world.QUESTIONS:
        [at] = [place for place, token in enumerate(model.prompt_ids(question)) if token < 0]
        ids = model.prompt_ids(question)
        known[(*ids[:at], *[image_token] * model.image_tokens, *ids[at + 1 :])] = question
    for prompt, answer in rows:
        if tuple(prompt) not in known:
            raise Differs(
                f"no question has the prompt that was trained on: {prompt}; the engine's: {next(iter(known))}"
            )
        question = Conversation.of(known[tuple(prompt)])
        expected = model.encode_answer(question, model.text(answer[:-1]))
        if answer != expected:
            raise Differs(f"{model.text(answer)!r} was trained as {answer}, and is {expected} to the engine")
    return len(rows)


def judge(model: VisionLanguageModel, seed: int, num: int) -> dict[str, list[list[int]]]:
    """By way of drawing, COUNTS of each picture's answer."""
    scenes = [world.scene(PICTURE_SEED, index) for index in range(num)]
    found = {}
    for name, temperature in TEMPERATURES.items():
        params = SamplingParams(temperature=temperature, top_k=50, max_new_tokens=40)
        settings = SampleSettings(1, seed, params, crop=False, max_megapixels=64)
        requests = [
            request_for(model, Conversation.of(one.question), [world.draw(one)], one.index, settings) for one in scenes
        ]
        counts = {}
        for answer in sample(model, requests, params, NUM_ROWS):
            scene, text = scenes[answer.request], model.text(answer.token_ids)
            verdict = world.judge(text, scene.names)
            counts[answer.request] = [
                verdict.claims, verdict.wrong, verdict.found, len(scene.names), len(text.split()),
            ]  # fmt: skip
        found[name] = [counts[place] for place in range(num)]
    return found


def main() -> None:
    folder, out, seed, num = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    model = load_model("llava-1.5-7b", str(folder), device="cpu", dtype="float32")
    trained_on = folder / "trained_on.json"
    compared = 0
    if trained_on.exists():
        image_token = json.loads((folder / "config.json").read_text())["image_token_index"]
        compared = require_same_ids(model, trained_on, image_token)
    out.write_text(json.dumps({"rows_of_same_ids": compared, **judge(model, seed, num)}))


if __name__ == "__main__":
    main()
