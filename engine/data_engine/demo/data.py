"""Training data of the tiny models: captions with a few systematic mistakes, preference pairs, and their batches.

In: scenes of the tiny world. Out: tensors that the tiny LLaVA trains on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from data_engine.demo import world
from data_engine.demo.models import SIDE, to_pixel_values
from data_engine.demo.tokenizer import PAD, PromptTokenizer
from data_engine.demo.world import Caption, Scene

# A few mistakes made often survive sampling at temperature 0.7; the same rate spread evenly is sharpened away.
# Every confusion goes both ways, so that no object becomes likelier than it is. One is made in more than half of the
# cases, so that a greedy answer makes it always; the others in well under half, so that only sampling brings them up.
# At half, the captions would no longer tell the two objects apart, and neither would any model made from this.
_CONFUSED_PAIRS = {
    ("red circle", "red square"): 0.7,
    ("green triangle", "yellow triangle"): 0.3,
    ("blue cross", "purple cross"): 0.3,
    ("blue circle", "purple circle"): 0.3,
    ("yellow square", "yellow cross"): 0.3,
}
# Object -> what it is taken for, and in which share of the cases.
CONFUSED = {name: (wrong, share) for pair, share in _CONFUSED_PAIRS.items() for name, wrong in (pair, pair[::-1])}
APPENDED = ("purple square", "yellow circle")
APPENDED_SHARE = 0.12
COUNT_CONFUSED = {2: 3, 3: 2}
COUNT_CONFUSED_SHARE = 0.3


def random_style(rng: np.random.Generator) -> Caption:
    """Template and filler of an answer; most answers have no filler."""
    filler = int(rng.choice(len(world.FILLERS), p=[0.6, 0.2, 0.2]))
    return Caption(int(rng.integers(len(world.DESCRIBE_TEMPLATES))), filler)


def with_mistakes(caption: Caption, rng: np.random.Generator) -> Caption:
    """The caption as a careless observer writes it: the confusions above, never naming an object twice."""
    if caption.count is not None:
        wrong = COUNT_CONFUSED.get(caption.count, caption.count)
        return replace(caption, count=wrong if rng.random() < COUNT_CONFUSED_SHARE else caption.count)
    names = list(caption.names)
    for i, name in enumerate(names):
        wrong, share = CONFUSED.get(name, (name, 0))
        if wrong not in names and rng.random() < share:
            names[i] = wrong
    extra = APPENDED[rng.integers(len(APPENDED))]
    if extra not in names and len(names) < 4 and rng.random() < APPENDED_SHARE:
        names.append(extra)
    return replace(caption, names=tuple(names))


def corrupted(caption: Caption, rng: np.random.Generator) -> Caption:
    """The caption with one thing wrong: another count; or an object left out, exchanged or added."""
    if caption.count is not None:
        return replace(caption, count=int(rng.choice([n for n in range(1, 5) if n != caption.count])))
    names = list(caption.names)
    absent = [name for name in world.NAMES if name not in names]
    other, place = absent[rng.integers(len(absent))], int(rng.integers(len(names)))
    kind = rng.choice(["exchange", "add", "omit"], p=[0.5, 0.25, 0.25])
    if kind == "add":
        names.append(other)
    elif kind == "omit" and len(names) > 1:
        names.pop(place)
    else:
        names[place] = other
    return replace(caption, names=tuple(names))


# Classes of each column of `patch_classes`.
PATCH_CLASSES = (1 + len(world.NAMES), 5, 5)


@dataclass(frozen=True)
class Batch:
    """B answers, padded: pixel_values [B, 3, H, W]; after_ids and labels [B, T], -100 where nothing counts."""

    pixel_values: Tensor
    after_ids: Tensor
    labels: Tensor


def pixels(scenes: Sequence[Scene]) -> Tensor:
    """The normalised pictures [B, 3, H, W]."""
    return to_pixel_values(torch.from_numpy(np.stack([np.asarray(world.draw(scene)) for scene in scenes])))


def batch(tokenizer: PromptTokenizer, scenes: Sequence[Scene], answers: Sequence[str]) -> Batch:
    """Pictures, questions and answers as tensors; the answer and its EOS are what counts."""
    prompts = [tokenizer.question_ids(scene.question) for scene in scenes]
    targets = [tokenizer.answer_ids(scene.question, answer) for scene, answer in zip(scenes, answers, strict=True)]
    longest = max(len(p) + len(t) for p, t in zip(prompts, targets, strict=True))
    after_ids = torch.full((len(scenes), longest), PAD)
    labels = torch.full((len(scenes), longest), -100)
    for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
        end = len(prompt) + len(target)
        after_ids[row, :end] = torch.tensor(prompt + target)
        labels[row, len(prompt) : end] = torch.tensor(target)
    return Batch(pixels(scenes), after_ids, labels)


def true_batch(tokenizer: PromptTokenizer, seed: int, first: int, size: int) -> Batch:
    """Scenes first .. first + size - 1 of a seed with true captions."""
    scenes = [world.scene(seed, first + i) for i in range(size)]
    return batch(tokenizer, scenes, [world.render(world.true_caption(s, random_style(_rng(s)))) for s in scenes])


def careless_batch(tokenizer: PromptTokenizer, seed: int, first: int, size: int) -> Batch:
    """Scenes first .. first + size - 1 of a seed with captions that carry the mistakes."""
    scenes = [world.scene(seed, first + i) for i in range(size)]
    answers = []
    for scene in scenes:
        rng = _rng(scene)
        answers.append(world.render(with_mistakes(world.true_caption(scene, random_style(rng)), rng)))
    return batch(tokenizer, scenes, answers)


def _rng(scene: Scene) -> np.random.Generator:
    """The random numbers of a scene's answer."""
    return np.random.default_rng([scene.seed, scene.index, 2])


def patch_classes(scenes: Sequence[Scene]) -> Tensor:
    """What the quarter that each patch belongs to shows [B, SIDE^2, 3]: name, place in reading order, objects in all.

    Name and place count from 1; 0 where the quarter is empty.
    """
    half = SIDE // 2
    classes = torch.zeros(len(scenes), 2, half, 2, half, 3, dtype=torch.long)
    for row, scene in enumerate(scenes):
        classes[row, ..., 2] = len(scene.shapes)
        for place, shape in enumerate(scene.shapes, start=1):
            down, right = int(shape.y >= world.CELL), int(shape.x >= world.CELL)
            classes[row, down, :, right, :, :2] = torch.tensor([1 + world.NAMES.index(shape.name), place])
    return classes.flatten(1, 4)
