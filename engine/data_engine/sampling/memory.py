"""How much goes through the models at a time: answers decoded, prefixes kept, tokens scored; from the memory there is.

Chosen at the first start of a run and frozen in run.json, since answers depend on it in their last bits.
"""

import contextlib
import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from data_engine.sampling.native.kv_cache import STRAGGLERS, num_slots
from data_engine.sampling.native.page_allocator import PAGE, PROMPT_TOKENS, pages_of

# Answers decoded at a time: beyond this the products gain nothing.
MOST_ROWS = {"cpu": 160, "cuda": 640}
# Tokens scored in a pass. On CPU one question: two take as long a question, four a tenth longer (docs/gpu-figures.md).
MOST_TOKENS = {"cpu": 0, "cuda": 16384}
# Of the memory that weights leave, the caches of the sampling loop may take so much; the rest is for its activations.
CACHES_SHARE = {"cpu": 0.5, "cuda": 0.8}
# On a GPU: of the pages that an answer may fill, what one takes on average; and how many prompts are in the caches for
# each that the rows would need if no answer of a question outlived the others. Counted without a model, with lengths as
# in the bench (log-normal, mean 120, cut at 512): 1.2 pages in flight and 1.4 at the end, of 4; and 2.2 prompts.
ANSWER_SHARE, PROMPTS_ALIVE = 3 / 8, 2.2
# Of what is left beside those caches, prompts that run in one pass may take so much.
PROMPTS_SHARE = 0.5
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
    """recurrent states of one answer; a prompt that is kept leaves as much"""
    prompt_state: int = 0
    """keys and values of image states that a prompt which is kept leaves in layers for them"""


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
    """decode_rows, decode_slots, decode_pages and score_tokens for `memory` bytes; 1 row at least, whatever it says.

    On a GPU, pages are what memory holds, and rows as many as those do for on average; each may be of another question.
    """
    room = max(0, memory - needs.weights)
    kept, most = int(room * CACHES_SHARE.get(device_type, 0.5)), MOST_ROWS.get(device_type, 160)
    if device_type == "cuda":
        page, longest, prompt = PAGE * needs.cached_token, pages_of(max_new_tokens), pages_of(PROMPT_TOKENS)
        alive = min(1, PROMPTS_ALIVE / k)
        average = max(1, ANSWER_SHARE * longest) + alive * prompt
        states = (1 + alive) * needs.answer_state + alive * needs.prompt_state
        rows = max(1, min(most, int(kept / (average * page + states))))
        # A model of recurrent layers alone keeps nothing of a token.
        pages = int(kept - rows * states) // max(page, 1)
        # For one answer at least; at most for all rows at their longest, each behind a prompt of its own.
        pages = max(longest + prompt, min(pages, rows * (longest + prompt)))
        # Image states lie in a pool of their own, as large as prompts need: no more are kept than were counted.
        slots = math.ceil(alive * rows) if needs.prompt_state else rows
        found = {"decode_slots": slots, "decode_pages": pages}
    else:
        row = needs.cached_token * (max_new_tokens + STRAGGLERS / k * PROMPT_TOKENS)
        row += needs.answer_state * (1 + STRAGGLERS / k) + needs.prompt_state * STRAGGLERS / k
        rows = max(1, min(most, int(kept / row)))
        found = {"decode_slots": num_slots(rows, k), "decode_pages": 0}
    # While a pass is scored, the keys and values of its prompts are kept beside its activations.
    tokens = min(MOST_TOKENS.get(device_type, 0), room // 2 // (needs.activated_token + needs.cached_token))
    return {"decode_rows": rows, **found, "score_tokens": tokens}


def rows_of_prompts(caches: int, cached_token: int, activated_token: int, device_type: str) -> int:
    """Rows of prompts that run in one pass beside caches of so many bytes, which took their share of the memory.

    What the pass leaves is kept until it is stored, beside its activations.
    """
    share = CACHES_SHARE.get(device_type, 0.5)
    return int(caches * (1 - share) / share * PROMPTS_SHARE / (cached_token + activated_token))


def rows_without_pages(rows: int, slots: int, pages: int, k: int, max_new_tokens: int) -> tuple[int, int]:
    """Rows and slots that the memory of so many pages holds where each row has room for its longest answer, and each
    slot for a usual prompt; without pages, as many as there are.
    """
    if not pages:
        return rows, slots
    rows = max(1, min(rows, int(pages * PAGE / (max_new_tokens + STRAGGLERS / k * PROMPT_TOKENS))))
    return rows, min(slots, num_slots(rows, k))
