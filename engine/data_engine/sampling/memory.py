"""How much goes through the models at a time: answers decoded, prefixes kept, tokens scored; from the memory there is.

Chosen at the first start of a run and frozen in run.json, since answers depend on it in their last bits.
"""

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from data_engine.sampling.native.kv_cache import STRAGGLERS, num_slots
from data_engine.sampling.native.page_allocator import PAGE, pages_of

# Answers decoded at a time: beyond this the products gain nothing.
MOST_ROWS = {"cpu": 160, "cuda": 640}
# Tokens scored in a pass. On CPU one question: two take as long a question, four a tenth longer (kernels/README.md).
MOST_TOKENS = {"cpu": 0, "cuda": 16384}
# Of the memory that weights leave, the caches of the sampling loop may take so much; the rest is for its activations.
CACHES_SHARE = {"cpu": 0.5, "cuda": 0.8}
# A prompt with its image, where no question is known yet.
PROMPT_TOKENS = 704
# Numbers that a token of a scoring pass keeps alive, for each of the decoder's width: activations of the widest layer.
ACTIVATIONS = 48


@dataclass(frozen=True)
class Needs:
    """What a model takes, in bytes."""

    weights: int
    cached_token: int
    """keys and values of one token, all layers"""
    activated_token: int
    """activations of one token in a scoring pass"""
    answer_state: int = 0
    """recurrent states of one answer"""


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process has had at one time: on a GPU that of its tensors there, else all of it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Not getrusage's, which starts at that of the process that started this one. 0 where there is no such file.
    with contextlib.suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()):
            return int(found[1]) * 1024
    return 0


def budgets(memory: int, needs: Needs, device_type: str, k: int, max_new_tokens: int) -> dict[str, int]:
    """decode_rows, decode_slots and score_tokens for `memory` bytes; 1 row at least, whatever it says.

    On a GPU rows share pages, half of what they could fill (pages.num_pages).
    """
    room = max(0, memory - needs.weights)
    prefix_share = STRAGGLERS / k * PROMPT_TOKENS
    suffix = PAGE * max(1, pages_of(max_new_tokens) / 2) if device_type == "cuda" else max_new_tokens
    row = needs.cached_token * (suffix + prefix_share) + needs.answer_state
    rows = int(room * CACHES_SHARE.get(device_type, 0.5) / row)
    rows = max(1, min(MOST_ROWS.get(device_type, 160), rows))
    # While a pass is scored, the keys and values of its prompts are kept beside its activations.
    tokens = min(MOST_TOKENS.get(device_type, 0), room // 2 // (needs.activated_token + needs.cached_token))
    return {"decode_rows": rows, "decode_slots": num_slots(rows, k), "score_tokens": tokens}


def rows_without_pages(rows: int, device_type: str) -> int:
    """How many of the rows fit where each keeps room for its longest suffix."""
    return max(1, rows // 2) if device_type == "cuda" else rows
