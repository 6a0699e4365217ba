"""The tiny models' SentencePiece tokenizer, and LLaVA's prompt in its ids.

In: questions and captions. Out: the published tokenizer files, and ids tokenised chunk by chunk around the image.
"""

import io
import json
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

BOS, EOS, PAD = 1, 2, 0
SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
BEFORE_IMAGE = f"{SYSTEM} USER: "
VOCAB_SIZE = 512


def after_image(question: str) -> str:
    """The text between the image and the answer (LLaVA's template llava_v1, one turn)."""
    return f"\n{question} ASSISTANT:"


def train_tokenizer(texts: Iterable[str]) -> bytes:
    """A byte-fallback BPE model with LLaMA's settings, as the bytes of a tokenizer.model."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        byte_fallback=True,
        unk_id=0,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=-1,
        unk_surface=" \u2047 ",
        character_coverage=1.0,
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        split_digits=True,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def corpus(captions: Iterable[str], questions: Iterable[str]) -> list[str]:
    """The tokenizer's training text: captions, and the prompt often enough to become whole words."""
    prompt = [BEFORE_IMAGE, *(f"{question} ASSISTANT:" for question in questions)]
    return [*captions, *(prompt * 200)]


class PromptTokenizer:
    """Ids of prompts and answers; each chunk is tokenised alone, as LLaVA does around `<image>`."""

    def __init__(self, model: bytes) -> None:
        self.sp = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.before_ids = [BOS, *self.sp.encode(BEFORE_IMAGE)]

    def question_ids(self, question: str) -> list[int]:
        """Ids between the image and the answer."""
        return self.sp.encode(after_image(question))

    def answer_ids(self, question: str, answer: str) -> list[int]:
        """The answer's ids as they continue the prompt, with EOS."""
        prompt = self.question_ids(question)
        whole = self.sp.encode(f"{after_image(question)} {answer}")
        assert whole[: len(prompt)] == prompt, "the prompt's ids must be a prefix of the whole text's"
        return [*whole[len(prompt) :], EOS]

    def decode(self, ids: list[int]) -> str:
        """Text of an answer, special tokens skipped, stripped."""
        return self.sp.decode([token for token in ids if token > EOS]).strip()


def write_tokenizer_files(folder: Path, model: bytes) -> None:
    """tokenizer.model, tokenizer_config.json and special_tokens_map.json as published LLaVA checkpoints have them."""

    def token(content: str, **extra: str) -> dict:
        flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
        return {**extra, "content": content, **flags}

    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        **{name: token(text, __type="AddedToken") for name, text in special.items()},
        "clean_up_tokenization_spaces": False,
        "legacy": False,
        "model_max_length": 2048,
        "pad_token": None,
        "padding_side": "right",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
    }
    tokens = {**{name: token(text) for name, text in special.items()}, "pad_token": "<unk>"}
    (folder / "tokenizer.model").write_bytes(model)
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens, indent=1) + "\n")
