"""Tiny checkpoints that think: a template that opens a thought, and weights that end one now and then."""

import sys
from pathlib import Path

import tiny_mrope
import torch
from families import QWEN_3, Family
from tiny_parts import ids

sys.path.append(str(Path(__file__).parents[1] / "models"))
import thinking

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
# How likely marks are, as what is added to their logits.
ENDS_THOUGHTS = 6


def qwen3_5():
    """Marks that are added tokens, as published."""
    return _opening(*tiny_mrope.qwen3_5(), added=True)


def qwen3_5_spelled():
    """Marks that are text of eight tokens: no random model writes them."""
    return _opening(*tiny_mrope.qwen3_5(), added=False)


def qwen3_5_counting():
    """One that writes digits, and ends its thought now and then."""
    return _opening(*tiny_mrope.qwen3_5(), added=True, digits=ENDS_THOUGHTS)


def _opening(model, processor, added: bool, digits: float = 0):
    if added:
        processor.tokenizer.add_tokens(["<think>", "</think>"])
        logits = dict(zip(ids(processor.tokenizer, "</think>", "<think>"), (ENDS_THOUGHTS, -50), strict=True))
        steer(model, logits | dict.fromkeys(ids(processor.tokenizer, *"0123456789"), digits))
    processor.chat_template = thinking.opening(IMAGE)
    return model, processor


@torch.no_grad()
def steer(model, logits: dict[int, float]) -> None:
    """Add about so much to the logits of these tokens, whatever stands before them.

    The first number of the residual stream becomes a constant, which the layers read and never change.
    """
    text = model.get_decoder()
    text.get_input_embeddings().weight[:, 0] = 1
    width = text.get_input_embeddings().weight.shape[1]
    for name, weight in text.layers.named_parameters():
        if weight.ndim == 2 and weight.shape[0] == width and name.split(".")[-2] in ("o_proj", "down_proj", "out_proj"):
            weight[0] = 0
    head = model.get_output_embeddings().weight
    head[:, 0] = 0
    for token, more in logits.items():
        head[token, 0] = more


FAMILIES = {
    name: Family(f"thinkers:{name}", "a prompt that opens a thought", video=QWEN_3, hybrid=True)
    for name in ("qwen3_5", "qwen3_5_spelled", "qwen3_5_counting")
}
