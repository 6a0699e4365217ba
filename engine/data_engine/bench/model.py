"""What `data-engine bench` times: a random LLaVA-shaped model or the user's checkpoint; images, prompts and answers.

The engine and, where it can load the checkpoint, transformers are given the same.

Shapes: B questions, K answers, P prefix tokens, L answer tokens.
"""

import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from data_engine.models import load_model
from data_engine.models.embedded import IMAGE_TOKEN
from data_engine.questions.conversation import Conversation

QUESTION = "What is in the picture?"


@dataclass(frozen=True)
class Sizes:
    """How much work a round is, and how many rounds."""

    vocab: int = 4064
    """of the built-in model"""
    k: int = 10
    questions: int = 16
    """sampled at fixed lengths; a quarter of them is scored"""
    drawn_questions: int = 48
    """sampled at drawn lengths, and in the whole job, as one unit; a unit of 100,000 questions has twice as many"""
    answer_tokens: int = 120
    """scored, an answer"""
    new_tokens: int = 64
    """sampled, an answer of fixed length"""
    most_tokens: int = 512
    """longest answer of drawn length"""
    rounds: int = 5


# Built-in shapes: (decoder, tower) as (width, width of the MLP, layers, heads). Both see 336 px as 576 image tokens.
SHAPES = {
    "small": ((512, 1376, 8, 8), (256, 1024, 4, 4)),
    "llava-1.5-7b": ((4096, 11008, 32, 32), (1024, 4096, 24, 16)),
}
_SIZE_NAMES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def shape_config(shape: str, vocab: int) -> LlavaConfig:
    """A LLaVA of one of SHAPES, the last id of its vocabulary for the image."""
    text, vision = (dict(zip(_SIZE_NAMES, sizes, strict=True)) for sizes in SHAPES[shape])
    return LlavaConfig(
        vision_config=CLIPVisionConfig(**vision, image_size=336, patch_size=14, projection_dim=vision["hidden_size"]),
        text_config=LlamaConfig(**text, vocab_size=vocab, max_position_embeddings=4096),
        image_token_id=vocab - 1,
        tie_word_embeddings=False,
    )


def write_checkpoint(
    folder: Path, vocab: int, shape: str = "small", device: str = "cpu", dtype: torch.dtype = torch.float32
) -> None:
    """Random weights of a built-in shape in transformers' layout; one word is one token."""
    torch.manual_seed(0)
    with torch.device(device):
        model = LlavaForConditionalGeneration._from_config(shape_config(shape, vocab), dtype=dtype)
    model.save_pretrained(folder)
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{number}": number for number in range(3, vocab - 1)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))


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


def photo(seed: int) -> bytes:
    """A made-up picture as JPEG: smooth, as photographs are, 640 x 480."""
    noise = np.random.default_rng(seed).integers(0, 256, (15, 20, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(data, "JPEG", quality=90)
    return data.getvalue()


class Subject:
    """One checkpoint, loaded by the engine and by transformers, and the work that both are given."""

    def __init__(self, folder: Path, sizes: Sizes, device: str, dtype: str) -> None:
        self.folder, self.sizes = folder, sizes
        self.engine = load_model(None, str(folder), device=device, dtype=dtype)
        self.stock, self.why_no_stock = load_stock(folder, self.engine.device, self.engine.dtype)
        self.photos = [photo(seed) for seed in range(max(sizes.questions, sizes.drawn_questions))]
        images = [Image.open(io.BytesIO(data)) for data in self.photos]
        self.prompts = [self.engine.prompt(Conversation.of(QUESTION), [image], True, 64) for image in images]
        self.pixels_B3HW = torch.stack([prompt.pixels for prompt in self.prompts])
        generator = torch.Generator().manual_seed(0)
        shape = (max(1, sizes.questions // 4), sizes.k, sizes.answer_tokens)
        self.answers_BKL = torch.randint(3, len(self.engine.head.weight) - 64, shape, generator=generator)
        self.lengths_BK = drawn_lengths(sizes.drawn_questions, sizes.k, sizes.most_tokens)
        ids = self.engine.prompt_ids(QUESTION)
        at = ids.index(IMAGE_TOKEN)
        image = [self.stock.config.image_token_id if self.stock else 0] * self.engine.image_tokens
        self.prompt_P = torch.tensor(ids[:at] + image + ids[at + 1 :], device=self.engine.device)

    @property
    def typical(self) -> int:
        """The question whose answers, and whose longest answer, are nearest to the mean; timed in place of all."""
        sums, longest = self.lengths_BK.sum(1), self.lengths_BK.max(1)
        return int((np.abs(sums / sums.mean() - 1) + np.abs(longest / longest.mean() - 1)).argmin())


def load_stock(
    folder: Path, device: torch.device, dtype: torch.dtype
) -> tuple[LlavaForConditionalGeneration | None, str]:
    """The checkpoint in transformers, or why not: it reads LLaVA in its own layout alone."""
    raw = json.loads((folder / "config.json").read_text())
    if raw.get("model_type") != "llava" or "text_config" not in raw:
        return None, f"transformers cannot load this layout ({raw.get('model_type')}): the engine is timed alone"
    model = LlavaForConditionalGeneration.from_pretrained(folder, attn_implementation="sdpa", dtype=dtype)
    return model.to(device).eval(), ""
