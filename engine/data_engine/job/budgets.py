"""How much goes through the models at a time in this run: figures that the first start freezes in run.json."""

from collections.abc import Mapping

import torch

from data_engine import stages
from data_engine.config import RunConfig
from data_engine.job.checkpoints import Checkpoint
from data_engine.models import family_class
from data_engine.models.device import Target
from data_engine.models.sharding.placement import Decision
from data_engine.sampling.memory import ACTIVATIONS, Needs, budgets
from data_engine.sampling.native.page_allocator import PAGE


def frozen_budgets(
    config: RunConfig,
    checkpoints: Mapping[str, Checkpoint],
    target: Target,
    decision: Decision,
    questions_at_once: int,
) -> dict[str, int]:
    """decode_rows, decode_slots, decode_pages and score_tokens, for the memory by which `decision` was made, and the
    largest model.

    `checkpoints` has the model that samples first. No more answers at a time than `questions_at_once` have; pages are
    not fewer for that, since prompts may be long. Of a split model, and of one that a later start will have to split,
    the part of the weights counts that _parts tells: log-probs depend on the figures in their last bits, and a later
    start may have another number of ranks.
    """
    if not checkpoints:
        return {"decode_rows": 1, "decode_slots": 1, "decode_pages": 0, "score_tokens": 0}
    apart = config.draws_by_vllm and config.stop_after_stage == stages.SAMPLE
    itemsize, sampler = target.dtype.itemsize, next(iter(checkpoints.values()))
    # The model that samples, or is scored most, a judge where no other model is run; and a critic, which writes texts
    # in caches of as many rows and pages.
    drawing = {one.folder: one for one in (sampler, checkpoints.get("critic")) if one is not None}
    kept = [family_class(one.family).cache_sizes(one.folder) for one in drawing.values()]
    needs = Needs(
        weights=decision.weights_bytes // _parts(decision, apart),
        cached_token=max(one.per_token for one in kept) * itemsize,
        # States may be kept in fp32, whatever the weights' dtype.
        answer_state=max(one.per_answer for one in kept) * torch.float32.itemsize,
        prompt_state=max(one.per_prompt for one in kept) * itemsize,
        activated_token=ACTIVATIONS * max(_width(one) for one in checkpoints.values()) * itemsize,
    )
    found = budgets(decision.memory_bytes, needs, target.device.type, config.sample_k, config.max_new_tokens)
    rows = min(found["decode_rows"], questions_at_once * config.sample_k)
    return found | {"decode_rows": rows, "decode_slots": min(found["decode_slots"], questions_at_once)}


def _width(checkpoint: Checkpoint) -> int:
    return checkpoint.sizes.get("hidden_size", 4096)


def _parts(decision: Decision, apart: bool) -> int:
    """Into how many parts the weights are divided, of which one counts for a rank: 1 where a model is whole.

    Else the least power of 2 that leaves working room, or 2 where none does, whatever the number of ranks.
    `apart`: this start loads no model, so that it did not decide whether models are split.
    """
    weights, room = decision.weights_bytes, decision.working_room_bytes
    if not decision.split and not (apart and weights + room > decision.memory_bytes):
        return 1
    sizes = (2**power for power in range(1, 11))
    return next((parts for parts in sizes if weights // parts + room <= decision.memory_bytes), 2)


def largest_bytes(checkpoints: Mapping[str, Checkpoint], dtype: torch.dtype) -> int:
    """The weights of the largest model: one is held at a time, so it decides what fits."""
    return max((checkpoint.num_weights for checkpoint in checkpoints.values()), default=0) * dtype.itemsize


def told(frozen: Mapping[str, int]) -> str:
    """The figures, for the log."""
    # A run that an earlier version began has no pages.
    pages = frozen.get("decode_pages", 0)
    kept = f"{pages * PAGE} tokens of prompts and answers" if pages else f"{frozen['decode_slots']} prompts"
    return (
        f"{frozen['decode_rows']} answers at a time, {kept} kept, "
        f"{frozen['score_tokens']} tokens a scoring pass (0: one question)"
    )
