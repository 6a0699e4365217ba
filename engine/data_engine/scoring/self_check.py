"""The shared path held against the plain one, on answers that are made up or were sampled."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from data_engine.errors import UserError
from data_engine.models.base import Prompt, VisionLanguageModel
from data_engine.models.call_errors import why_not_called
from data_engine.models.layers.attention import DoesNotFit
from data_engine.scoring.logprobs import Scored, plain_token_logps, score_pass
from data_engine_kernels import CannotLaunch

log = logging.getLogger(__name__)

# Largest mean difference, nat a token, between two paths: rounding is far below, a bug far above.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
# Tokens of the made-up answers: an even and an odd number, one of them more than an attention kernel's tile.
LENGTHS = (33, 17)
# Tokens of a sampled answer that are compared.
CHECKED_TOKENS = 1024


@dataclass(frozen=True)
class Agreement:
    """How far two ways to the same log-probs are apart."""

    mean: float
    """nat a token"""
    dtype: torch.dtype

    def __bool__(self) -> bool:
        # A difference that is no number is no agreement.
        return self.mean <= TOLERANCE[self.dtype]


def why_not_shared(model: VisionLanguageModel, prompt: Prompt, num_new: int) -> str | None:
    """Why answers of up to `num_new` tokens cannot share a prompt, by two made-up ones; None where they can.

    Where the shared path differs from a forward of the whole row, the model's own decoding settles which is right.
    Raises UserError where those two differ from each other: then no path is.
    """
    needed, most = prompt.length + num_new, model.max_positions
    if needed > most:
        return f"a question and its answer may take {needed} tokens, and answers share a prompt up to {most}"
    answers = list(_made_up(model))
    try:
        shared = torch.cat(score_pass(model, [Scored(prompt, answers)])[0]).cpu()
    except DoesNotFit as problem:
        return str(problem)
    except (torch.OutOfMemoryError, CannotLaunch):
        raise
    # Whatever a model of transformers raises when its decoder is called in a way that it does not know.
    except Exception as error:
        return f"its decoder cannot be called on its own ({why_not_called(error)})"
    plain = torch.cat([plain_token_logps(model, prompt, ids) for ids in answers])
    if _agreement(model, shared, plain):
        return None
    decoded = torch.cat([decoded_token_logps(model, prompt, ids) for ids in answers])
    if _agreement(model, shared, decoded):
        return None
    both = _agreement(model, plain, decoded)
    if not both:
        raise UserError(
            f"this model gives other log-probs when it decodes than in one forward pass: {both.mean:.2g} nat a token "
            "apart. No path gives numbers to rely on; another version of transformers may (pip install -U transformers)"
        )
    difference = _agreement(model, shared, plain).mean
    return f"log-probs behind a shared prompt are {difference:.2g} nat a token off those of the whole row"


def settle(model: VisionLanguageModel, prompt: Prompt, num_new: int) -> None:
    """Decide on the first prompt that a model is given whether its answers share it, and warn where they cannot."""
    if model.is_settled:
        return
    model.why_plain = model.why_plain or why_not_shared(model, prompt, num_new)
    model.is_settled = True
    if model.why_plain:
        log.warning("the model runs on the plain path, each answer with a prompt of its own: %s", model.why_plain)


def self_check(model: VisionLanguageModel, prompt: Prompt, ids: list[list[int]], shared: list[Tensor]) -> float:
    """Mean difference, nat a token, of the shared path to the plain one; RuntimeError where it is no rounding.

    Of long answers the beginnings are compared, since the plain path has the logits of all their tokens at once.
    """
    ids, shared = ([one[:CHECKED_TOKENS] for one in answers] for answers in (ids, shared))
    plain = torch.cat([plain_token_logps(model, prompt, answer) for answer in ids])
    together = torch.cat(shared).cpu()
    found = _agreement(model, together, plain)
    if not found and model.has_plain_path:
        found = _agreement(model, together, torch.cat([decoded_token_logps(model, prompt, one) for one in ids]))
    if not found:
        raise RuntimeError(
            f"log-probs behind a shared prompt differ from the plain path by {found.mean:.3g} nat a token, "
            f"more than {TOLERANCE[model.dtype]} allows for rounding in {model.dtype}"
        )
    return found.mean


@torch.inference_mode()
def decoded_token_logps(model: VisionLanguageModel, prompt: Prompt, answer: list[int]) -> Tensor:
    """log p of each token of one answer, fp32 nats, by the model's own decoding, token by token."""
    steps = model.plain_steps(prompt, 1)
    rows = [steps.first(), *(steps.next(torch.tensor([token], device=model.device)) for token in answer[:-1])]
    ids = torch.tensor(answer, device=model.device)
    return torch.cat(rows).log_softmax(-1).gather(-1, ids[:, None])[:, 0].cpu()


def _made_up(model: VisionLanguageModel) -> Iterator[list[int]]:
    """Answers of ids from all over the vocabulary, always the same ones."""
    generator = torch.Generator().manual_seed(0)
    never = {*model.banned_token_ids, *model.eos_token_ids}
    size = model.num_ids
    for length in LENGTHS:
        ids = torch.randint(size, (4 * length,), generator=generator).tolist()
        yield [one for one in ids if one not in never][:length]


def _agreement(model: VisionLanguageModel, one: Tensor, other: Tensor) -> Agreement:
    return Agreement(float((one - other).abs().mean()), model.dtype)
