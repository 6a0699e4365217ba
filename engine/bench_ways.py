"""The ways that `data-engine bench` times: the engine's, and stock transformers at their best settings.

Stock: sdpa, KV cache, inference mode, the same threads and dtype, prompts of equal length so that nothing is padded.
Each way returns how many tokens it scored or drew. Shapes: B questions, K answers, P prefix tokens, L answer tokens.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.utils import logging

from data_engine.decode import Request, sample
from data_engine.logps import packed_token_logps
from data_engine.models.base import IMAGE_TOKEN, prefix
from data_engine.models.llava import Llava
from data_engine.sampler import SamplingParams
from data_engine.seeds import seed_for

# Name of a way: (the work it is timed on, what it does).
WAYS = {
    "engine, scoring": ("scoring", "image and prompt once a question, its answers packed behind that prefix"),
    "one at a time, twice": ("scoring", "the reference's way: each answer in two passes with the image, full logits"),
    "padded batch": ("scoring", "a question's answers as one batch with the image in each row, logits_to_keep"),
    "engine, sampling": ("sampling", "one prefix cache a question, read by its answers, all questions in flight"),
    "generate, one question": ("sampling", "generate(num_return_sequences=k), a question at a time"),
    "generate, all questions": ("sampling", "generate(num_return_sequences=k) over a batch of all questions"),
}


QUESTION = "What is in the picture?"
SAMPLING = {"temperature": 0.7, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.0}


@dataclass(frozen=True)
class Sizes:
    """How much work a round is, and how many rounds."""

    vocab: int = 4064
    k: int = 10
    questions: int = 8
    answer_tokens: int = 120
    """scored, an answer"""
    new_tokens: int = 64
    """sampled, an answer; EOS is forbidden before, so that every way draws as many"""
    rounds: int = 3


def write_checkpoint(folder: Path, vocab: int) -> None:
    """A random LLaVA in transformers' layout, the last id of its vocabulary for the image; one word is one token."""
    torch.manual_seed(0)
    text = LlamaConfig(vocab_size=vocab, hidden_size=512, intermediate_size=1376, num_hidden_layers=8,
                       num_attention_heads=8, max_position_embeddings=4096)  # fmt: skip
    vision = CLIPVisionConfig(hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4,
                              image_size=336, patch_size=14, projection_dim=256)  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=vocab - 1, tie_word_embeddings=False)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


class Bench:
    """One checkpoint, loaded by the engine and by transformers, and the work that both are given."""

    def __init__(self, folder: Path, sizes: Sizes) -> None:
        logging.disable_progress_bar()
        write_checkpoint(folder, sizes.vocab)
        self.sizes = sizes
        self.engine = Llava.load(folder, torch.device("cpu"), torch.float32)
        self.stock = LlavaForConditionalGeneration.from_pretrained(folder, attn_implementation="sdpa").eval()
        generator = torch.Generator().manual_seed(0)
        self.pixels_B3HW = torch.randn(sizes.questions, 3, 336, 336, generator=generator)
        shape = (sizes.questions, sizes.k, sizes.answer_tokens)
        self.answers_BKL = torch.randint(3, sizes.vocab - 1, shape, generator=generator)
        ids = self.engine.prompt_ids(QUESTION)
        at = ids.index(IMAGE_TOKEN)
        image = [self.stock.config.image_token_id] * self.engine.image_tokens
        self.prompt_P = torch.tensor(ids[:at] + image + ids[at + 1 :])
        self.prefix_tokens = len(self.prompt_P)
        self.ways = {
            "engine, scoring": self.score_by_engine,
            "one at a time, twice": self.score_one_at_a_time_twice,
            "padded batch": self.score_padded_batch,
            "engine, sampling": self.sample_by_engine,
            "generate, one question": self.generate_one_question,
            "generate, all questions": self.generate_all_questions,
        }

    @torch.inference_mode()
    def largest_difference(self) -> float:
        """Between the engine's log-probs of the first question's answers and transformers', nat."""
        expected = torch.stack([self._one(0, answer) for answer in self.answers_BKL[0]])
        return (torch.stack(self._packed(0)) - expected).abs().max().item()

    def warm_up(self) -> None:
        """Every way once on little work, so that nothing is timed for being first."""
        full, self.sizes = self.sizes, replace(self.sizes, new_tokens=2)
        for way in self.ways.values():
            way()
        self.sizes = full

    # Scoring.

    def score_by_engine(self) -> int:
        for question in range(self.sizes.questions):
            self._packed(question)
        return self.answers_BKL.numel()

    def _packed(self, question: int) -> list[Tensor]:
        shared = prefix(self.engine, self.pixels_B3HW[question], QUESTION)
        return packed_token_logps(self.engine, shared, self.answers_BKL[question].tolist())

    @torch.inference_mode()
    def score_one_at_a_time_twice(self) -> int:
        for answer in self.answers_BKL[0]:
            for _ in range(2):
                self._one(0, answer)
        return self.answers_BKL[0].numel()

    def _one(self, question: int, answer_L: Tensor) -> Tensor:
        ids = torch.cat([self.prompt_P, answer_L])[None]
        logits = self.stock(input_ids=ids, pixel_values=self.pixels_B3HW[question, None]).logits[0]
        logps = logits.float().log_softmax(-1)
        return logps[self.prefix_tokens - 1 : -1].gather(-1, answer_L[:, None])[:, 0]

    @torch.inference_mode()
    def score_padded_batch(self) -> int:
        answers_KL = self.answers_BKL[0]
        ids = torch.cat([self.prompt_P.expand(self.sizes.k, -1), answers_KL], dim=1)
        pixels = self.pixels_B3HW[:1].expand(self.sizes.k, -1, -1, -1)
        logits = self.stock(input_ids=ids, pixel_values=pixels, logits_to_keep=answers_KL.shape[1] + 1).logits
        logits[:, :-1].float().log_softmax(-1).gather(-1, answers_KL[..., None])
        return answers_KL.numel()

    # Sampling.

    def sample_by_engine(self) -> int:
        sizes = self.sizes
        requests = [
            Request(
                lambda question=question: prefix(self.engine, self.pixels_B3HW[question], QUESTION),
                [seed_for(0, question, index) for index in range(sizes.k)],
                [sizes.new_tokens] * sizes.k,
            )
            for question in range(sizes.questions)
        ]
        params = SamplingParams(**SAMPLING, max_new_tokens=sizes.new_tokens, forced_lengths=True)
        return sum(len(found.token_ids) for found in sample(self.engine, requests, params, sizes.questions * sizes.k))

    def generate_one_question(self) -> int:
        # Its rate does not depend on how many follow.
        return sum(self._generate(self.pixels_B3HW[question, None]) for question in range(min(2, self.sizes.questions)))

    def generate_all_questions(self) -> int:
        return self._generate(self.pixels_B3HW)

    @torch.inference_mode()
    def _generate(self, pixels_B3HW: Tensor) -> int:
        ids = self.prompt_P.expand(len(pixels_B3HW), -1)
        length = {"max_new_tokens": self.sizes.new_tokens, "min_new_tokens": self.sizes.new_tokens}
        out = self.stock.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels_B3HW, use_cache=True,
            do_sample=True, num_return_sequences=self.sizes.k, eos_token_id=2, pad_token_id=0, **SAMPLING, **length,
        )  # fmt: skip
        return out[:, ids.shape[1] :].numel()
