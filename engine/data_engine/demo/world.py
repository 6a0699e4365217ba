"""The tiny world: pictures of coloured shapes whose content is known exactly, questions about them, and true captions.

In: a seed and a picture's index. Out: pixels, question, caption; and back from any text to the objects it mentions.
"""

import re
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

SIZE = 56
CELL = SIZE // 2
COLOURS = {
    "red": (214, 48, 44),
    "green": (52, 168, 72),
    "blue": (56, 88, 224),
    "yellow": (236, 208, 56),
    "purple": (156, 64, 190),
}
SHAPES = ("circle", "square", "triangle", "cross")
NAMES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
NUMBERS = ("zero", "one", "two", "three", "four", "five")

DESCRIBE_QUESTIONS = ("What is in the picture?", "Describe this picture.", "Which objects do you see?")
COUNT_QUESTION = "How many objects are in the picture?"
QUESTIONS = (*DESCRIBE_QUESTIONS, COUNT_QUESTION)
COUNT_SHARE = 0.1
DESCRIBE_TEMPLATES = ("The picture shows {}.", "I can see {}.", "There is {} in the picture.")
COUNT_TEMPLATES = ("The picture shows {}.", "I can count {}.", "There are {} in the picture.")
FILLERS = ("", " The background is grey.", " Nothing else is visible.")

_OBJECT = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b")
_COUNT = re.compile(rf"\b({'|'.join(NUMBERS)}) objects?\b")


@dataclass(frozen=True)
class Shape:
    """One object of a picture: what it is, and the pixels of its centre and radius."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Caption:
    """What an answer says and in which words. Either `names` is told, or (count questions) `count`."""

    template: int
    filler: int
    names: tuple[str, ...] = ()
    count: int | None = None


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn, with its question; `shapes` in raster order, no two of the same name."""

    seed: int
    index: int
    shapes: tuple[Shape, ...]
    question: str

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(shape.name for shape in self.shapes)


def scene(seed: int, index: int) -> Scene:
    """The scene of that number: the same for the same seed and index, whatever was made before."""
    rng = np.random.default_rng([seed, index, 0])
    number = int(rng.choice([1, 2, 3, 4], p=[0.15, 0.3, 0.3, 0.25]))
    cells = sorted(rng.choice(4, size=number, replace=False).tolist())
    names = [NAMES[i] for i in rng.choice(len(NAMES), size=number, replace=False)]
    shapes = []
    for cell, name in zip(cells, names, strict=True):
        colour, shape = name.split()
        x, y = CELL / 2 + CELL * np.array([cell % 2, cell // 2]) + rng.uniform(-3, 3, size=2)
        shapes.append(Shape(colour, shape, float(x), float(y), float(rng.uniform(8, 10.5))))
    is_count = rng.random() < COUNT_SHARE
    question = COUNT_QUESTION if is_count else DESCRIBE_QUESTIONS[rng.integers(len(DESCRIBE_QUESTIONS))]
    return Scene(seed, index, tuple(shapes), question)


def draw(scene: Scene) -> Image.Image:
    """The scene's picture: RGB, SIZE x SIZE pixels, on a noisy grey background."""
    rng = np.random.default_rng([scene.seed, scene.index, 1])
    image = Image.new("RGB", (SIZE, SIZE), (int(rng.integers(90, 130)),) * 3)
    canvas = ImageDraw.Draw(image)
    for shape in scene.shapes:
        _draw_shape(canvas, shape)
    noisy = np.asarray(image, dtype=np.float32) + 6 * rng.standard_normal((SIZE, SIZE, 3), dtype=np.float32)
    return Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))


def _draw_shape(canvas: ImageDraw.ImageDraw, shape: Shape) -> None:
    x, y, r, colour = shape.x, shape.y, shape.radius, COLOURS[shape.colour]
    if shape.shape == "circle":
        canvas.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    elif shape.shape == "square":
        canvas.rectangle((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), fill=colour)
    elif shape.shape == "triangle":
        canvas.polygon([(x, y - r), (x - r, y + 0.8 * r), (x + r, y + 0.8 * r)], fill=colour)
    else:
        canvas.rectangle((x - 0.3 * r, y - r, x + 0.3 * r, y + r), fill=colour)
        canvas.rectangle((x - r, y - 0.3 * r, x + r, y + 0.3 * r), fill=colour)


def true_caption(scene: Scene, style: Caption) -> Caption:
    """What is true of the scene, in the template and filler of `style`, as an answer to the scene's question."""
    if scene.question == COUNT_QUESTION:
        return replace(style, names=(), count=len(scene.shapes))
    return replace(style, names=scene.names, count=None)


def render(caption: Caption) -> str:
    """The caption as text."""
    if caption.count is not None:
        said = f"{NUMBERS[caption.count]} object{'' if caption.count == 1 else 's'}"
        template = COUNT_TEMPLATES[caption.template]
    else:
        *most, last = (f"a {name}" for name in caption.names)
        said = f"{', '.join(most)} and {last}" if most else last
        template = DESCRIBE_TEMPLATES[caption.template]
    if said == "one object":
        template = template.replace(" are ", " is ")
    return template.format(said) + FILLERS[caption.filler]


def mentioned(text: str) -> list[str]:
    """Names of the objects in any text, in order, repetitions included."""
    return [f"{colour} {shape}" for colour, shape in _OBJECT.findall(text)]


def stated_count(text: str) -> int | None:
    """The number of objects that a text states, as in "three objects"; None where it states none."""
    found = _COUNT.search(text)
    return NUMBERS.index(found[1]) if found else None


def parse(text: str) -> Caption | None:
    """The caption whose text this is; None for a text that `render` never writes."""
    said = tuple(mentioned(text))
    count = None if said else stated_count(text)
    if not said and count is None:
        return None
    styles = (Caption(t, f, said, count) for t in range(len(DESCRIBE_TEMPLATES)) for f in range(len(FILLERS)))
    return next((caption for caption in styles if render(caption) == text), None)


@dataclass(frozen=True)
class Verdict:
    """A text held against the truth. Claims are the objects that it mentions, or else the count that it states."""

    claims: int
    wrong: int
    """objects that are not in the picture or mentioned again, or a wrong count"""
    found: int
    """objects of the picture that are mentioned; all of them for a right count"""


def judge(text: str, truth: tuple[str, ...]) -> Verdict:
    """How many of the things that a text claims are not so; `truth` has the names of the picture's objects."""
    names = mentioned(text)
    if names:
        found = len(set(names) & set(truth))
        return Verdict(claims=len(names), wrong=len(names) - found, found=found)
    count = stated_count(text)
    if count is None:
        return Verdict(claims=0, wrong=0, found=0)
    right = count == len(truth)
    return Verdict(claims=1, wrong=int(not right), found=len(truth) if right else 0)
