"""Train the tiny models from nothing: `python -m data_engine.demo.train OUT_DIR` writes OUT_DIR/instruct and reward.

The instruct model learns captions with systematic mistakes, so it hallucinates; the reward model is made from it by
DPO on the world's ground truth. Deterministic for a given number of threads; a few minutes on two cores.
"""

import argparse
import copy
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from data_engine.demo import data, world
from data_engine.demo.models import WIDTH, TinyLlava, save_checkpoint
from data_engine.demo.tokenizer import PromptTokenizer, corpus, train_tokenizer

# Far from the seeds that anybody gives to `questions`.
CAPTION_SEED, PAIR_SEED, WARMUP_SEED = 7_000_001, 7_000_002, 7_000_003
# A tokenizer is trained on so many captions.
NUM_CAPTIONS = 3000


@dataclass(frozen=True)
class Recipe:
    """How long and how fast the models train."""

    warmup_steps: int = 500
    warmup_lr: float = 2e-3
    true_steps: int = 700
    """on captions without mistakes"""
    true_lr: float = 1.5e-3
    careless_steps: int = 250
    """then, on captions with mistakes"""
    careless_lr: float = 1e-3
    batch_size: int = 64
    num_pairs: int = 3072
    dpo_epochs: int = 1
    dpo_batch_size: int = 32
    dpo_lr: float = 1e-4
    dpo_beta: float = 0.1
    seed: int = 0
    threads: int = 2


def make_tokenizer() -> bytes:
    """The tokenizer of both models, from true captions and LLaVA's prompt."""
    captions = []
    for index in range(NUM_CAPTIONS):
        scene = world.scene(CAPTION_SEED, index)
        captions.append(world.render(world.true_caption(scene, data.random_style(np.random.default_rng(index)))))
    return train_tokenizer(corpus(captions, world.QUESTIONS))


def warm_up_vision(model: TinyLlava, recipe: Recipe) -> None:
    """Teach tower and projector to see: each patch tells what its quarter shows. The heads are thrown away.

    Without it the decoder takes far longer to find out that the image is worth looking at.
    """
    sizes = data.PATCH_CLASSES
    head = nn.Linear(WIDTH, sum(sizes))
    parameters = [*model.tower.parameters(), *model.projector.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.warmup_lr, weight_decay=0.01)
    for step in range(recipe.warmup_steps):
        first = step * recipe.batch_size
        scenes = [world.scene(WARMUP_SEED, first + i) for i in range(recipe.batch_size)]
        logits = head(model.projector(model.features(data.pixels(scenes)))).flatten(0, 1)
        classes = data.patch_classes(scenes).flatten(0, 1)
        losses = [functional.cross_entropy(*pair) for pair in zip(logits.split(sizes, -1), classes.T, strict=True)]
        loss = torch.stack(losses).sum()
        update(model, optimizer, loss, cosine(recipe.warmup_lr, step, recipe.warmup_steps))
        tell("warm-up", step, recipe.warmup_steps, loss)


def train_instruct(model: TinyLlava, tokenizer: PromptTokenizer, recipe: Recipe) -> None:
    """Learn true captions, then careless ones about other pictures: next-token loss on the answer and its EOS.

    The tower stays as it is, as LLaVA's does: at this learning rate it would forget how to see.
    """
    before_ids = torch.tensor(tokenizer.before_ids)
    model.tower.requires_grad_(False)
    parameters = [*model.projector.parameters(), *model.llama.parameters()]
    first = 0
    for name, make_batch, steps, lr in (
        ("true captions", data.true_batch, recipe.true_steps, recipe.true_lr),
        ("careless captions", data.careless_batch, recipe.careless_steps, recipe.careless_lr),
    ):
        optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, betas=(0.9, 0.98))
        for step in range(steps):
            batch = make_batch(tokenizer, CAPTION_SEED, first, recipe.batch_size)
            logps = model.token_logps(batch.pixel_values, before_ids, batch.after_ids, batch.labels)
            loss = -logps.sum() / (batch.labels >= 0).sum()
            update(model, optimizer, loss, cosine(lr, step, steps))
            tell(name, step, steps, loss)
            first += recipe.batch_size


def sample_texts(
    model: TinyLlava, tokenizer: PromptTokenizer, scenes: list[world.Scene], num_answers: int
) -> list[list[str]]:
    """Answers of the model to each scene's question, sampled as the demo samples them."""
    before_ids = torch.tensor(tokenizer.before_ids)
    texts: list[list[str]] = [[] for _ in scenes]
    # Prompts of one question have one length, so that nothing is padded.
    for question in world.QUESTIONS:
        rows = [row for row, scene in enumerate(scenes) if scene.question == question]
        if not rows:
            continue
        after_ids = torch.tensor([tokenizer.question_ids(question)]).expand(len(rows), -1)
        ids = model.sample(data.pixels([scenes[row] for row in rows]), before_ids, after_ids, num_answers)
        answers = [tokenizer.decode(answer) for answer in ids.tolist()]
        for place, row in enumerate(rows):
            texts[row] = answers[place * num_answers : (place + 1) * num_answers]
    return texts


def preference_pairs(
    model: TinyLlava, tokenizer: PromptTokenizer, recipe: Recipe
) -> list[tuple[world.Scene, str, str]]:
    """(scene, chosen, rejected): the truth against a mistake, in the same words but for what is wrong.

    Rejected is the model's own wrong answer where it gives one, else a corruption of the truth. Pairs that differ in
    template would teach style instead of truth.
    """
    scenes = [world.scene(PAIR_SEED, index) for index in range(recipe.num_pairs)]
    pairs = []
    for scene, answers in zip(scenes, sample_texts(model, tokenizer, scenes, 3), strict=True):
        rng = np.random.default_rng([PAIR_SEED, scene.index, 2])
        said = [caption for caption in map(world.parse, answers) if caption]
        wrong = [caption for caption in said if world.true_caption(scene, caption) != caption]
        style = wrong[0] if wrong else data.random_style(rng)
        chosen = world.true_caption(scene, style)
        rejected = wrong[0] if wrong else data.corrupted(chosen, rng)
        pairs.append((scene, world.render(chosen), world.render(rejected)))
    return pairs


def train_reward(
    instruct: TinyLlava, tokenizer: PromptTokenizer, pairs: list[tuple[world.Scene, str, str]], recipe: Recipe
) -> TinyLlava:
    """The reward model: DPO from the instruct model, which stays the reference (arXiv:2305.18290, eq. 7)."""
    before_ids = torch.tensor(tokenizer.before_ids)
    policy = copy.deepcopy(instruct)
    parameters = [*policy.projector.parameters(), *policy.llama.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.dpo_lr, weight_decay=0.0)
    pairs = pairs * recipe.dpo_epochs
    num_steps = len(pairs) // recipe.dpo_batch_size
    for step in range(num_steps):
        part = pairs[step * recipe.dpo_batch_size : (step + 1) * recipe.dpo_batch_size]
        scenes, chosen, rejected = map(list, zip(*part, strict=True))
        batch = data.batch(tokenizer, scenes * 2, chosen + rejected)
        inputs = (batch.pixel_values, before_ids, batch.after_ids, batch.labels)
        with torch.no_grad():
            reference = instruct.token_logps(*inputs).sum(-1)
        margin_chosen, margin_rejected = (policy.token_logps(*inputs).sum(-1) - reference).chunk(2)
        loss = -functional.logsigmoid(recipe.dpo_beta * (margin_chosen - margin_rejected)).mean()
        update(policy, optimizer, loss, recipe.dpo_lr * min(1.0, (step + 1) / 5) * (1 - step / num_steps))
        tell("reward", step, num_steps, loss)
    return policy


def update(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, lr: float) -> None:
    """One step against the gradient of the loss, whose norm is cut at 1."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def cosine(peak: float, step: int, num_steps: int) -> float:
    """Learning rate: 20 steps up, then a cosine down to a hundredth."""
    return peak * min(1.0, (step + 1) / 20) * (0.505 + 0.495 * math.cos(math.pi * step / num_steps))


def tell(what: str, step: int, num_steps: int, loss: Tensor) -> None:
    """Print the loss of each 50th step, and of the last one."""
    if step % 50 == 0 or step == num_steps - 1:
        print(f"{what}: step {step + 1}/{num_steps}, loss {loss.item():.4f}", flush=True)


def train(out_dir: Path, recipe: Recipe) -> None:
    """Both checkpoints, from nothing."""
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    start = time.monotonic()
    tokenizer_model = make_tokenizer()
    tokenizer = PromptTokenizer(tokenizer_model)
    model = TinyLlava()
    warm_up_vision(model, recipe)
    train_instruct(model, tokenizer, recipe)
    save_checkpoint(model, out_dir / "instruct", tokenizer_model, "llava")
    print(f"instruct model: {time.monotonic() - start:.0f} s", flush=True)
    pairs = preference_pairs(model, tokenizer, recipe)
    reward = train_reward(model, tokenizer, pairs, recipe)
    save_checkpoint(reward, out_dir / "reward", tokenizer_model, "llava_llama")
    print(f"both models: {time.monotonic() - start:.0f} s, written to {out_dir}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data_engine.demo.train", description=__doc__)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--threads", type=int, default=Recipe.threads, help="CPU threads; the weights depend on it")
    arguments = parser.parse_args()
    train(arguments.out_dir, Recipe(threads=arguments.threads))


if __name__ == "__main__":
    main()
