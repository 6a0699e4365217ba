"""Whole models that number positions otherwise, hold a recurrent state, or hide by a window: against rows one by one.

They are the native ones, changed: what is under test is the way of positions, states and masks through sampling and
scoring.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from prompts import EmbeddedPrompt, prefix
from recurrent import with_states
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from data_engine.models.base import PromptEnd, VisionLanguageModel
from data_engine.models.layers.answer_cache import passing
from data_engine.models.native import model as native
from data_engine.sampling.draw import SamplingParams, next_tokens
from data_engine.sampling.native import page_allocator
from data_engine.sampling.native.kv_cache import num_slots
from data_engine.sampling.native.model_runner import ModelRunner
from data_engine.sampling.native.scheduler import SamplingEngine
from data_engine.sampling.requests import PromptRequest
from data_engine.scoring.logprobs import Scored, score_pass
from data_engine.seeds import seed_for

PARAMS = SamplingParams(temperature=1.0, top_k=20, max_new_tokens=16)
# Of a whole row [prompt | answer], by its embeddings and the prompt's length: logits behind each of its tokens.
PlainLogits = Callable[[Tensor, int], Tensor]


class Changed(NamedTuple):
    model: VisionLanguageModel
    logits: PlainLogits
    """by one forward of a whole row"""
    prompts: list[EmbeddedPrompt]
    """of three lengths"""


@pytest.fixture(params=["positions", "states", "windows"])
def changed(request, golden_rows, golden_images, monkeypatch) -> Changed:
    """A tenth of the vocabulary ends an answer."""
    model = request.getfixturevalue("omni_instruct" if request.param == "windows" else "instruct")
    asked = [(model.pixels(golden_images[q], False, 64), golden_rows[4 * q]["question"]) for q in range(3)]
    prompts = [EmbeddedPrompt(prefix(model, *one)) for one in asked]
    monkeypatch.setattr(model, "eos_token_ids", tuple(range(100)))
    change = {"positions": other_positions, "states": with_states, "windows": with_windows}[request.param]
    return Changed(model, change(model, monkeypatch), prompts)


def with_windows(model, monkeypatch) -> PlainLogits:
    """A token sees the 9 before it: the first tokens of an answer see a part of the prompt, the later ones none of it.

    Mistral makes such masks by itself.
    """

    def logits(row: Tensor, size: int) -> Tensor:
        places = torch.arange(len(row))[None]
        return native.decode(model.decoder, row[None], places, passing(len(model.layers)))[0] @ model.head.weight.T

    monkeypatch.setattr(model.decoder.config, "sliding_window", 10)
    return logits


def other_positions(model, monkeypatch) -> PlainLogits:
    """Two tokens of a prompt share a position, as tokens of an image do, and its answer begins 3 further on."""

    def of_prompt(length: int) -> Tensor:
        return torch.arange(length)[None] // 2

    def run_prompt(prompt: EmbeddedPrompt) -> PromptEnd:
        size = prompt.length
        hidden = native.decode(model.decoder, prompt.embeds_PD[None], of_prompt(size), passing(len(model.layers)))
        return PromptEnd(hidden[0, -1], size // 2 + 3, model.cache_layers)

    def logits(row: Tensor, size: int) -> Tensor:
        behind = size // 2 + 3 + torch.arange(len(row) - size)[None]
        # With a cache: without one, transformers takes positions that do not count on for packed sequences.
        places = torch.cat([of_prompt(size), behind], 1)
        hidden = native.decode(model.decoder, row[None], places, passing(len(model.layers)))[0]
        return hidden @ model.head.weight.T

    monkeypatch.setattr(model, "run_prompt", run_prompt)
    monkeypatch.setattr(type(model), "packs_prompts", False)
    return logits


@torch.inference_mode()
def plain_answer(changed: Changed, number: int, key: int) -> list[int]:
    """One answer to a prompt by running the whole row again for each token."""
    tokens: list[int] = []
    model, prompt = changed.model, changed.prompts[number]
    while len(tokens) < PARAMS.max_new_tokens and not (tokens and tokens[-1] in model.eos_token_ids):
        row = torch.cat([prompt.embeds_PD, model.embed_tokens(torch.tensor(tokens, dtype=torch.long))])
        logits, place = changed.logits(row, prompt.length)[-1:], torch.tensor([len(tokens)])
        tokens.append(int(next_tokens(logits, torch.tensor([key]), place, PARAMS, None)))
    return tokens


@pytest.mark.parametrize(
    ("num_rows", "paged"), [pytest.param(1, False, marks=pytest.mark.slow), (4, False), (18, False), (5, True)]
)
def test_answers_equal_those_made_one_at_a_time(changed, num_rows, paged, monkeypatch):
    """Rows are refilled and moved, questions follow each other in the slots, and pages run out."""
    monkeypatch.setattr(page_allocator, "PAGE", 5)
    asked = [PromptRequest(one, [seed_for(0, q, i) for i in range(6)]) for q, one in enumerate(changed.prompts)]
    # The back end takes no pages where the kernels do not know the layers.
    knows = changed.model.decoder.config.model_type == "llama"
    engine = SamplingEngine(changed.model, num_rows, num_slots(num_rows, 6), 6 if paged and knows else None)
    found = engine.sample(asked, PARAMS)
    assert len({len(answer.token_ids) for answer in found}) > 2
    for answer in found:
        key = seed_for(0, answer.request, answer.sample_index)
        assert answer.token_ids == plain_answer(changed, answer.request, key)
    # A state may take as much as a hundred tokens.
    assert not any(engine._runner.caches.prompt_states), "a prompt's state stayed with its slot"


class Waits(TorchDispatchMode):
    """Notes the operations for which the host would wait for a GPU: a number is read, or rows are chosen by a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        masks = args[1] if name.startswith(("index", "_index_put")) and isinstance(args[1], list | tuple) else ()
        if name in ("_local_scalar_dense", "nonzero", "masked_select") or any(
            one is not None and one.dtype == torch.bool for one in masks
        ):
            self.found.append(name)
        return function(*args, **kwargs or {})


def test_where_answers_begin_the_host_does_not_wait_for_the_device(changed, monkeypatch):
    waits, begin = Waits(), ModelRunner.first

    def first(*arguments):
        with waits:
            return begin(*arguments)

    monkeypatch.setattr(ModelRunner, "first", first)
    asked = [PromptRequest(one, [seed_for(0, q, i) for i in range(2)]) for q, one in enumerate(changed.prompts)]
    SamplingEngine(changed.model, 5, num_slots(5, 2)).sample(asked, PARAMS)
    assert waits.found == []
    with waits:
        torch.arange(3)[torch.arange(3) > 1].sum().item()
    assert waits.found == ["index", "_local_scalar_dense"]


def test_log_probs_equal_those_of_whole_rows(changed):
    """Answers of different length, one of which feeds nothing."""
    generator, prompts = torch.Generator().manual_seed(0), changed.prompts
    answers = [[torch.randint(3, 600, (n,), generator=generator).tolist() for n in (5, 1, 17)] for _ in prompts]
    scored = score_pass(changed.model, [Scored(*both) for both in zip(prompts, answers, strict=True)])
    for prompt, own, got in zip(prompts, answers, scored, strict=True):
        for ids, token_logps in zip(own, got, strict=True):
            with torch.inference_mode():
                row = torch.cat([prompt.embeds_PD, changed.model.embed_tokens(torch.tensor(ids))])
                logps = changed.logits(row, prompt.length)[prompt.length - 1 : -1].log_softmax(-1)
            wanted = logps.gather(-1, torch.tensor(ids)[:, None])[:, 0]
            torch.testing.assert_close(token_logps, wanted, rtol=0, atol=1e-4)
