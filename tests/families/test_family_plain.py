"""The plain path draws what the native back end draws, also where memory runs out or a number breaks."""

from dataclasses import replace
from unittest.mock import patch

import product
import pytest
import torch
from asked import ASKED
from families import FAMILIES
from test_family_positions import prompt

from data_engine.errors import NO_ROOM, UserError
from data_engine.models import load_model
from data_engine.models.auto.forward.own_decoding import OwnDecoding, whole_rows
from data_engine.models.layers.prefix import run_prefix
from data_engine.pipeline.public_arguments import read_question
from data_engine.pipeline.sample import SampleSettings, request_for
from data_engine.sampling.backend import BackendSettings, make_backend
from data_engine.sampling.draw import SamplingParams
from data_engine.sampling.native.scheduler import sample
from data_engine.sampling.requests import BROKEN, TOO_LARGE, Completion

# In make test, test_family_sampling and test_family_scoring stand for the families.
pytestmark = pytest.mark.families

QUESTIONS, K = ("wide", "high"), 5
# LLaVA's tiny checkpoint is read by its native family, which has no plain path.
FAST = [name for name, family in FAMILIES.items() if family.fast and name != "llava"]
# Positions in several directions and a state beside keys and values; windows.
IN_TEST = ("qwen3_5", "gemma3")


def requests(model, params: SamplingParams) -> list:
    """K answers to each of two questions."""
    settings = SampleSettings(K, 0, params, crop=False, max_megapixels=64)
    asked = [read_question(*product._given(ASKED[name]), 64, "apply") for name in QUESTIONS]
    return [request_for(model, *one, number, settings) for number, one in enumerate(asked)]


def plain(model, params: SamplingParams, rows: int) -> tuple[list[Completion], int]:
    """The answers of the plain back end, and how often it halved its rows."""
    backend = make_backend("plain", BackendSettings(model, params, K, num_rows=rows, num_slots=1))
    backend.submit(iter(requests(model, params)))
    found = []
    while not backend.wants_more:
        found += backend.poll()
    return found, backend.halvings


def told(found: list[Completion]) -> list[tuple]:
    return sorted((one.request, one.sample_index, one.token_ids, one.finish_reason) for one in found)


def native(model, params: SamplingParams) -> list[tuple]:
    return told(sample(model, requests(model, params), params, num_rows=4))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in IN_TEST else pytest.mark.families) for name in FAST]
)
def test_the_plain_back_end_draws_what_the_native_one_does_whatever_its_rows(checkpoints, name):
    """With ends of answers at hand, as after some steps of a real model, and a penalty for what was said."""
    model = checkpoints(name).model
    penalised = SamplingParams(0.9, 4, 0.95, 3.0, 12)
    assert native(model, penalised) != native(model, replace(penalised, repetition_penalty=1.0)), "it changes nothing"
    for params in (penalised, SamplingParams(0, 50, 1.0, 1.0, 6)):
        free = native(model, params)
        # Tokens that the answers do hold, so that some end early, some at their first token.
        ends = (*model.eos_token_ids, free[0][2][0], free[-1][2][2])
        with patch.object(model, "eos_token_ids", ends):
            expected = native(model, params)
            for rows in (1, 3, 8):
                assert told(plain(model, params, rows)[0]) == expected
        if params.temperature:
            assert {reason for *_, reason in expected} == {"stop", "length"}
            assert len({tuple(ids) for _, _, ids, _ in expected}) > K


@pytest.fixture
def model(checkpoints):
    return checkpoints("qwen2_5_vl").model


PARAMS = SamplingParams(0.9, 50, 1.0, 1.0, 8)


def test_memory_that_runs_out_is_tried_again_with_half_the_rows(model, caplog):
    """More than 2 rows do not fit; what was drawn before stays drawn once."""
    expected, first = native(model, PARAMS), OwnDecoding.first

    def tight(steps):
        if steps._num_rows > 2:
            raise torch.OutOfMemoryError("no room")
        return first(steps)

    with patch.object(OwnDecoding, "first", tight):
        found, halvings = plain(model, PARAMS, rows=5)
    assert told(found) == expected
    assert halvings == len(QUESTIONS), "5 rows -> 2, for each question"
    assert "out of memory" in caplog.text


def test_memory_that_runs_out_in_the_middle_of_an_answer(model):
    """Of the second lot of a question's rows: the first lot, of 7 steps, stays."""
    expected, step, calls = native(model, PARAMS), OwnDecoding.next, []

    def tight(steps, tokens):
        calls.append(steps._num_rows)
        if len(calls) == 10:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory")
        return step(steps, tokens)

    with patch.object(OwnDecoding, "next", tight):
        found, halvings = plain(model, PARAMS, rows=3)
    assert told(found) == expected
    assert halvings == 1


def test_a_question_that_does_not_fit_alone_is_told_and_the_others_go_on(model):
    lengths = [request.prompt.length for request in requests(model, PARAMS)]
    assert lengths[0] != lengths[1]
    first = OwnDecoding.first

    def tight(of_length):
        def raising(steps):
            if steps._ids.shape[1] == of_length:
                raise torch.OutOfMemoryError("no room")
            return first(steps)

        return raising

    with patch.object(OwnDecoding, "first", tight(lengths[1])):
        found = told(plain(model, PARAMS, rows=4)[0])
    assert found[:K] == native(model, PARAMS)[:K]
    assert [(number, ids, reason) for number, _, ids, reason in found[K:]] == [(1, [], TOO_LARGE)] * K
    with patch.object(OwnDecoding, "first", tight(lengths[0])), pytest.raises(UserError) as caught:
        plain(model, PARAMS, rows=4)
    assert str(caught.value) == NO_ROOM


def test_an_answer_whose_logits_are_no_numbers_ends_there_and_others_go_on(model):
    """In the second row, at the third token."""
    expected, step, calls = native(model, PARAMS), OwnDecoding.next, []

    def broken(steps, tokens):
        logits = step(steps, tokens)
        calls.append(steps)
        if calls.count(steps) == 2 and steps is calls[0]:
            logits[1, 7] = torch.nan
        return logits

    with patch.object(OwnDecoding, "next", broken):
        found = told(plain(model, PARAMS, rows=K)[0])
    number, index, ids, _ = expected[1]
    assert found[1] == (number, index, ids[:2], BROKEN)
    assert found[0] == expected[0]
    assert found[2:] == expected[2:]


def test_a_prompt_and_a_step_make_the_logits_of_their_last_token_alone_and_steps_give_them_in_fp32(checkpoints):
    """Those of a long prompt may take as much memory as the model; draws are of fp32, whatever the model's dtype."""
    model, made = load_model("auto", str(checkpoints("qwen2_5_vl").folder), device="cpu", dtype="bfloat16"), []
    model._model.register_forward_hook(lambda module, given, out: made.append(tuple(out.logits.shape[:2])))
    given = prompt(model, ASKED["wide"])
    run_prefix(model, given)
    steps = model.plain_steps(given, 3)
    found = [steps.first(), steps.next(torch.tensor([72, 33, 90]))]
    assert made == [(1, 1), (1, 1), (3, 1)]
    assert [logits.dtype for logits in found] == [torch.float32] * 2


# Models of transformers that make the logits of all tokens, whatever they are asked for.
OF_ALL = {"minicpm_ocr", "minicpmv4_6", "qwen2_5_omni_thinker", "qwen3_omni_moe_thinker", "video_llama_3"}


@pytest.mark.parametrize("name", FAMILIES)
def test_one_forward_of_a_row_has_the_logits_of_the_answer_alone(checkpoints, name):
    """Those of a long prompt may take as much memory as the model."""
    model, made = checkpoints(name).model, []
    if not model.has_plain_path:
        return
    prompt, ids = model.prompt(*read_question(*product._given(ASKED["wide"]), 64, "apply"), True, 64), [72, 33, 90]
    handle = model._model.register_forward_hook(lambda module, given, out: made.append(out.logits))
    try:
        logits = model.plain_logits(prompt, ids)
        whole = whole_rows(model._model, model._inputs(prompt), torch.tensor([ids], device=model.device))
        with torch.inference_mode(), model._own_attention():
            model._model(**whole)
    finally:
        handle.remove()
    cut, every = made
    length = prompt.length + len(ids)
    assert (cut.shape[1], every.shape[1]) == (length if name in OF_ALL else len(ids), length)
    torch.testing.assert_close(logits, every[0, prompt.length - 1 : -1].float(), rtol=0, atol=1e-5)
