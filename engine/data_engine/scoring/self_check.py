"""The shared path held against the plain one, on answers that are made up or were sampled."""

import contextlib
import logging
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor, nn

from data_engine.errors import UserError
from data_engine.models.base import Prompt, VisionLanguageModel
from data_engine.models.call_errors import why_not_called
from data_engine.models.layers.attention import DoesNotFit
from data_engine.scoring.logprobs import Scored, plain_token_logps, score_pass
from data_engine_kernels import CannotLaunch

log = logging.getLogger(__name__)

# Largest mean difference, nat a token, between two paths: rounding is far below in most models, a bug far above.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
# Rounding of a model that is deep, or chooses experts, may be more. Two paths were up to 1.1 times as far apart as one
# more rounding behind each layer put the same path, in LLaVA, Qwen3-VL, its experts, Qwen3.5 and Gemma 3 in bfloat16.
ROUNDINGS = 2
# Tokens of the made-up answers: an even and an odd number, one of them more than an attention kernel's tile.
LENGTHS = (33, 17)
# Tokens of a sampled answer that are compared.
CHECKED_TOKENS = 1024


class Paths:
    """The ways to the log-probs of answers, and how far apart rounding may put two of them."""

    def __init__(self, model: VisionLanguageModel, prompt: Prompt, answers: list[list[int]]) -> None:
        self._model, self._prompt, self._answers = model, prompt, answers

    @cached_property
    def plain(self) -> Tensor:
        """By one forward of each whole row."""
        return torch.cat([plain_token_logps(self._model, self._prompt, ids) for ids in self._answers])

    @cached_property
    def decoded(self) -> Tensor:
        """By the model's own decoding."""
        return torch.cat([decoded_token_logps(self._model, self._prompt, ids) for ids in self._answers])

    @cached_property
    def rounding(self) -> float:
        """Mean difference, nat a token, that one more rounding behind each layer makes of the plain path."""
        with rounding_layers(self._model.decoder):
            return distance(Paths(self._model, self._prompt, self._answers).plain, self.plain)

    def agree(self, one: Tensor, other: Tensor) -> bool:
        """Whether two of them differ by no more than rounding."""
        # A difference that is no number is no agreement.
        found, allowed = distance(one, other), TOLERANCE[self._model.dtype]
        return found <= allowed or found <= ROUNDINGS * self.rounding


def distance(one: Tensor, other: Tensor) -> float:
    """Mean difference, nat a token."""
    return float((one - other).abs().mean())


@contextlib.contextmanager
def rounding_layers(decoder: nn.Module) -> Iterator[None]:
    """Have each layer's output be off by up to half its type's epsilon, by the same numbers each time."""
    lists = [module for module in decoder.modules() if isinstance(module, nn.ModuleList)]
    # The experts of a layer are a list as well.
    inner = {module for one in lists for layer in one for module in layer.modules()}
    generators: dict[torch.device, torch.Generator] = {}

    def rounded(hidden: Tensor) -> Tensor:
        generator = generators.setdefault(hidden.device, torch.Generator(hidden.device).manual_seed(0))
        off = torch.rand(hidden.shape, generator=generator, device=hidden.device, dtype=torch.float64) - 0.5
        return (hidden.double() * (1 + torch.finfo(hidden.dtype).eps * off)).to(hidden.dtype)

    def behind(layer: nn.Module, given: tuple, out: Tensor | tuple) -> Tensor | tuple:
        return rounded(out) if isinstance(out, Tensor) else (rounded(out[0]), *out[1:])

    hooks = [layer.register_forward_hook(behind) for one in lists if one not in inner for layer in one]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


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
    paths = Paths(model, prompt, answers)
    if paths.agree(shared, paths.plain) or paths.agree(shared, paths.decoded):
        return None
    if not paths.agree(paths.plain, paths.decoded):
        raise UserError(
            "this model gives other log-probs when it decodes than in one forward pass: "
            f"{distance(paths.plain, paths.decoded):.2g} nat a token apart. No path gives numbers to rely on; another "
            "version of transformers may (pip install -U transformers)"
        )
    off = distance(shared, paths.plain)
    return f"log-probs behind a shared prompt are {off:.2g} nat a token off those of the whole row"


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
    paths, together = Paths(model, prompt, ids), torch.cat(shared).cpu()
    found = paths.plain
    if not paths.agree(together, found) and model.has_plain_path:
        found = paths.decoded
    off, allowed = distance(together, found), TOLERANCE[model.dtype]
    if not paths.agree(together, found):
        raise RuntimeError(
            f"log-probs behind a shared prompt differ from the plain path by {off:.3g} nat a token, more than "
            f"{max(allowed, ROUNDINGS * paths.rounding):.3g} allows for rounding in {model.dtype}"
        )
    if off > allowed:
        log.warning(
            "rounding in %s changes this model's log-probs by %.2g nat a token; rewards that differ by less mean "
            "little. --dtype float32 rounds less", model.dtype, paths.rounding,
        )  # fmt: skip
    return off


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
