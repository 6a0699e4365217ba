"""Train a tiny judge that says yes or no: `python -m data_engine.demo.train_yesno OUT_DIR`; minutes on two cores.

It starts from the demo's instruct model, with a tokenizer of its own in which yes and no are tokens, and learns the
default question of --yesno_template about true captions and about false ones.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from data_engine.demo import data, world
from data_engine.demo.areas import is_true
from data_engine.demo.models import TinyLlava, published_weights, save_checkpoint
from data_engine.demo.tokenizer import PAD, PromptTokenizer, after_image, corpus, train_tokenizer
from data_engine.demo.train import CAPTION_SEED, NUM_CAPTIONS, Recipe, cosine, tell, update
from data_engine.rewards.yesno import YesNoTemplate

# Far from the seeds of the other models, and of anybody's questions.
JUDGE_SEED = 7_000_004
TEMPLATE = YesNoTemplate.read(None)
INSTRUCT = Path(__file__).with_name("checkpoints") / "instruct"


def asked(scene: world.Scene, answer: str) -> str:
    """What stands between the image and yes or no."""
    return after_image(TEMPLATE.asks(scene.question, answer))


def judged_answer(scene: world.Scene) -> str:
    """A true caption in a third of cases; else one with a mistake, the demo's or any other, or without after all."""
    rng = np.random.default_rng([JUDGE_SEED, scene.index, 3])
    caption, kind = world.true_caption(scene, data.random_style(rng)), rng.random()
    if kind < 1 / 3:
        return world.render(caption)
    make = data.with_mistakes if kind < 2 / 3 else data.corrupted
    return world.render(make(caption, rng))


def make_tokenizer() -> bytes:
    """From captions, and what the judge is asked about them, often enough for yes and no to become tokens."""
    scenes = [world.scene(CAPTION_SEED, index) for index in range(NUM_CAPTIONS)]
    captions = [judged_answer(scene) for scene in scenes]
    questions = [TEMPLATE.asks(question, "The picture shows") for question in world.QUESTIONS]
    return train_tokenizer(corpus([*captions, *["ASSISTANT: Yes", "ASSISTANT: No"] * 500], questions))


def start() -> TinyLlava:
    """The instruct model, with embeddings and head for another tokenizer."""
    model, stored = TinyLlava(), load_file(INSTRUCT / "model.safetensors")
    own = {name for name in stored if "embed_tokens" in name or "lm_head" in name}
    with torch.no_grad():
        for name, value in _parameters(model).items():
            if name not in own:
                value.copy_(stored[name])
    return model


def _parameters(model: TinyLlava) -> dict[str, Tensor]:
    """The parameters under the names of the published layout."""
    places = {id(value): value for value in model.state_dict(keep_vars=True).values()}
    names = dict(model.llama.state_dict(keep_vars=True))
    names |= {f"model.mm_projector.{name}": value for name, value in model.projector.state_dict(keep_vars=True).items()}
    for name, value in model.tower.state_dict(keep_vars=True).items():
        names[f"model.vision_tower.vision_tower.vision_model.{name.removeprefix('vision_model.')}"] = value
    published = published_weights(model).keys()
    return {name: value for name, value in names.items() if name in published and id(value) in places}


def batch(tokenizer: PromptTokenizer, first: int, size: int) -> data.Batch:
    """Questions about answers, and yes or no; of true ones, the words of the question count too."""
    scenes = [world.scene(JUDGE_SEED, first + place) for place in range(size)]
    answers = [judged_answer(scene) for scene in scenes]
    verdicts = [is_true(answer, scene.names) for scene, answer in zip(scenes, answers, strict=True)]
    rows = [
        tokenizer.sp.encode(f"{asked(scene, answer)} {'Yes' if verdict else 'No'}")
        for scene, answer, verdict in zip(scenes, answers, verdicts, strict=True)
    ]
    longest = max(map(len, rows))
    after_ids, labels = torch.full((size, longest), PAD), torch.full((size, longest), -100)
    for place, (ids, verdict) in enumerate(zip(rows, verdicts, strict=True)):
        after_ids[place, : len(ids)] = torch.tensor(ids)
        counted = 0 if verdict else len(ids) - 1
        labels[place, counted : len(ids)] = torch.tensor(ids[counted:])
    return data.Batch(data.pixels(scenes), after_ids, labels)


def train(out_dir: Path, steps: int, lr: float, size: int, threads: int) -> None:
    """The judge's checkpoint."""
    torch.set_num_threads(threads)
    torch.manual_seed(Recipe.seed)
    tokenizer_model = make_tokenizer()
    tokenizer = PromptTokenizer(tokenizer_model)
    model = start()
    before_ids = torch.tensor(tokenizer.before_ids)
    model.tower.requires_grad_(False)
    parameters = [*model.projector.parameters(), *model.llama.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, betas=(0.9, 0.98))
    for step in range(steps):
        one = batch(tokenizer, step * size, size)
        logps = model.token_logps(one.pixel_values, before_ids, one.after_ids, one.labels)
        last = (one.labels >= 0).cumsum(-1) == (one.labels >= 0).sum(-1, keepdim=True)
        verdict = -(logps * (last & (one.labels >= 0))).sum() / size
        words = -logps.sum() / (one.labels >= 0).sum()
        update(model, optimizer, verdict + 0.5 * words, cosine(lr, step, steps))
        tell("judge", step, steps, verdict)
    save_checkpoint(model, out_dir, tokenizer_model, "llava")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data_engine.demo.train_yesno", description=__doc__)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=Recipe.threads, help="CPU threads; the weights depend on it")
    given = parser.parse_args()
    train(given.out_dir, given.steps, given.lr, given.batch_size, given.threads)


if __name__ == "__main__":
    main()
