"""What `data-engine bench` times: a built-in model or the user's checkpoint; images, prompts and answers.

The engine and, where it can load the checkpoint, transformers are given the same.

Shapes: B questions, K answers, P prefix tokens, L answer tokens.
"""

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from data_engine.bench.shapes import PHOTO
from data_engine.errors import UserError
from data_engine.models import load_model
from data_engine.models.auto.config import load_config
from data_engine.models.base import Prompt, VisionLanguageModel
from data_engine.models.checkpoints.json_files import reading_part
from data_engine.models.device import sent
from data_engine.models.memory_errors import naming_no_room
from data_engine.models.native.embedded import IMAGE_TOKEN, SplicedPrompt
from data_engine.questions.conversation import Conversation
from data_engine.scoring.self_check import settle

QUESTION = "What is in the picture?"


@dataclass(frozen=True)
class Sizes:
    """How much work a round is, and how many rounds."""

    vocab: int = 4064
    """of the built-in model"""
    k: int = 10
    questions: int = 16
    """sampled at fixed lengths; on a CPU a quarter of them is scored"""
    drawn_questions: int = 48
    """sampled at drawn lengths, and in the whole job, as one unit; a unit of 100,000 questions has twice as many; on a
    GPU they are scored, so that several passes follow each other"""
    answer_tokens: int = 120
    """scored, an answer"""
    new_tokens: int = 64
    """sampled, an answer of fixed length"""
    most_tokens: int = 512
    """longest answer of drawn length"""
    rounds: int = 5
    photo: tuple[int, int] = PHOTO
    """width and height of each picture"""


def drawn_lengths(questions: int, k: int, most: int) -> np.ndarray:
    """Lengths of answers [B, K], log-normal with mean 120 and 95th percentile 260, cut at `most`; always the same.

    They are the distribution's quantiles at equal steps, in random order: few answers then have its mean and tail too.
    With mu, sigma of the logarithm: exp(mu + sigma^2 / 2) = 120 and exp(mu + z sigma) = 260 at z = Phi^-1(0.95).
    """
    z = NormalDist().inv_cdf(0.95)
    sigma = z - math.sqrt(z * z - 2 * math.log(260 / 120))
    normal = NormalDist(math.log(120) - sigma * sigma / 2, sigma)
    count = questions * k
    lengths = [math.exp(normal.inv_cdf((i + 0.5) / count)) for i in range(count)]
    shuffled = np.random.default_rng(0).permutation(np.clip(np.rint(lengths), 2, most).astype(int))
    return shuffled.reshape(questions, k)


def photo(seed: int, size: tuple[int, int] = PHOTO) -> bytes:
    """A made-up picture as JPEG: smooth, as photographs are."""
    noise = np.random.default_rng(seed).integers(0, 256, (15, 20, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(data, "JPEG", quality=90)
    return data.getvalue()


class Subject:
    """One checkpoint, loaded by the engine and by transformers, and the work that both are given."""

    def __init__(
        self, folder: Path, sizes: Sizes, device: str, dtype: str, compiled: bool = False, alone: bool = False
    ) -> None:
        self.folder, self.sizes = folder, sizes
        with naming_no_room(f"end what else holds memory on {device}, or take a smaller --model, or another --device"):
            self.engine = load_model(None, str(folder), device=device, dtype=dtype, compiled=compiled)
        self.stock, self.why_no_stock = None, ""
        if not alone:
            self.stock, self.why_no_stock = load_stock(folder, self.engine.device, self.engine.dtype)
        # A native family has a place for its image, and no token of its own; transformers' has one.
        theirs = getattr(getattr(self.stock, "config", None), "image_token_id", None)
        self.image_ids = self.engine.banned_token_ids or (() if theirs is None else (theirs,))
        self.photos = [photo(seed, sizes.photo) for seed in range(max(sizes.questions, sizes.drawn_questions))]
        images = [Image.open(io.BytesIO(data)) for data in self.photos]
        self.prompts = [self.engine.prompt(Conversation.of(QUESTION), [image], True, 64) for image in images]
        settle(self.engine, self.prompts[0], max(sizes.most_tokens, sizes.new_tokens, sizes.answer_tokens))
        if self.engine.why_plain:
            raise UserError(
                f"{folder} runs on the plain path ({self.engine.why_plain}): the bench times what shared prompts save, "
                "so it needs a model whose answers can share them"
            )
        self.prefix_tokens = self.prompts[0].length
        generator = torch.Generator().manual_seed(0)
        scored = sizes.drawn_questions if self.engine.device.type == "cuda" else max(1, sizes.questions // 4)
        shape = (scored, sizes.k, sizes.answer_tokens)
        usual = usual_ids(self.engine)
        self.answers_BKL = usual[torch.randint(len(usual), shape, generator=generator)]
        self.lengths_BK = drawn_lengths(sizes.drawn_questions, sizes.k, sizes.most_tokens)

    def stock_inputs(self, questions: Sequence[int]) -> dict[str, Tensor]:
        """What transformers is given for these questions, on the device: the tensors of each, one after another."""
        each = [self._stock_inputs(self.prompts[question]) for question in questions]
        return {name: torch.cat([one[name] for one in each]) for name in each[0]}

    def _stock_inputs(self, prompt: Prompt) -> dict[str, Tensor]:
        inputs = spelled_out(prompt, self.image_ids[0]) if isinstance(prompt, SplicedPrompt) else prompt.inputs
        device, dtype = self.engine.device, self.engine.dtype
        return {
            name: sent(value, device).to(dtype) if value.is_floating_point() else sent(value, device)
            for name, value in inputs.items()
        }

    @property
    def typical(self) -> int:
        """The question whose answers, and whose longest answer, are nearest to the mean; timed in place of all."""
        sums, longest = self.lengths_BK.sum(1), self.lengths_BK.max(1)
        return int((np.abs(sums / sums.mean() - 1) + np.abs(longest / longest.mean() - 1)).argmin())


def usual_ids(model: VisionLanguageModel) -> Tensor:
    """The ids that answers are made of: none that ends one or stands for an image, which often are the last ones."""
    special = torch.tensor([*model.eos_token_ids, *model.banned_token_ids])
    ids = torch.arange(3, min(model.num_ids, len(model.head.weight)) - 64)
    return ids[~torch.isin(ids, special)]


def spelled_out(prompt: SplicedPrompt, image_token_id: int) -> dict[str, Tensor]:
    """A native family's prompt as transformers takes it: a token for each of the image's features."""
    at = prompt.ids.index(IMAGE_TOKEN)
    ids = [*prompt.ids[:at], *[image_token_id] * prompt.image_tokens, *prompt.ids[at + 1 :]]
    asked = torch.tensor([ids])
    return {"input_ids": asked, "attention_mask": torch.ones_like(asked), "pixel_values": prompt.pixels[None]}


def load_stock(folder: Path, device: torch.device, dtype: torch.dtype) -> tuple[PreTrainedModel | None, str]:
    """The checkpoint in transformers, with its default attention, or why not: some have a layout of their own."""
    raw = reading_part(json.loads((folder / "config.json").read_text()))
    kind = raw.get("model_type")
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES or (kind == "llava" and "text_config" not in raw):
        return None, f"transformers cannot load this layout ({kind}): the engine is timed alone"
    config = load_config(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, config=config, dtype=dtype, local_files_only=True)
    return model.to(device).eval(), ""
