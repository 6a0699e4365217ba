"""The sampling loop against a plain one: one answer at a time, whole rows, no cache."""

import functools

import pytest
import torch
from prompts import EmbeddedPrompt, forward, positions, prefix

from data_engine import sample_answers
from data_engine.errors import BadRow
from data_engine.pipeline.sample import SampleSettings, request_for
from data_engine.questions.conversation import Conversation
from data_engine.sampling.draw import SamplingParams, next_tokens
from data_engine.sampling.native.model_runner import ModelRunner
from data_engine.sampling.native.scheduler import sample
from data_engine.sampling.requests import PromptRequest
from data_engine.seeds import seed_for

PARAMS = SamplingParams(temperature=1.0, top_k=20, max_new_tokens=24)


@torch.inference_mode()
def plain_answer(model, shared, key: int, params: SamplingParams) -> list[int]:
    """One answer by running the whole row again for each token."""
    tokens: list[int] = []
    while len(tokens) < params.max_new_tokens and not (tokens and tokens[-1] in model.eos_token_ids):
        row = torch.cat([shared, model.embed_tokens(torch.tensor(tokens, dtype=torch.long))])[None]
        hidden = forward(model.decoder, row, positions(0, row.shape[1], row.device))[0, -1:]
        logits = hidden @ model.head.weight.T
        seen = torch.zeros(1, logits.shape[1], dtype=torch.bool)
        seen[0, tokens] = True
        drawn = next_tokens(
            logits,
            torch.tensor([key]),
            torch.tensor([len(tokens)]),
            params,
            seen if params.repetition_penalty != 1 else None,
        )
        tokens.append(int(drawn))
    return tokens


@pytest.fixture(scope="module")
def prefixes(instruct, golden_rows, golden_images):
    return [
        prefix(instruct, instruct.pixels(golden_images[q], False, 64), golden_rows[4 * q]["question"]) for q in range(8)
    ]


def requests(prefixes, k: int) -> list[PromptRequest]:
    return [
        PromptRequest(EmbeddedPrompt(shared), [seed_for(0, number, i) for i in range(k)])
        for number, shared in enumerate(prefixes)
    ]


@pytest.mark.parametrize("params", [PARAMS, SamplingParams(1.0, 0, 0.9, 1.3, 20), SamplingParams(0, 50, 1, 1, 9)])
def test_answers_equal_those_made_one_at_a_time_without_a_cache(instruct, prefixes, params):
    found = sample(instruct, requests(prefixes, 3), params, num_rows=7)
    assert [(a.request, a.sample_index) for a in found] == [(q, i) for q in range(8) for i in range(3)]
    for answer in found:
        expected = plain_answer(
            instruct, prefixes[answer.request], seed_for(0, answer.request, answer.sample_index), params
        )
        assert answer.token_ids == expected


def test_some_answers_stop_and_some_reach_the_limit(instruct, prefixes):
    """Else the other tests would not see rows that are refilled."""
    found = sample(instruct, requests(prefixes, 10), PARAMS, num_rows=16)
    reasons = {answer.finish_reason for answer in found}
    assert reasons == {"stop", "length"}
    for answer in found:
        assert (answer.token_ids[-1] == 2) == (answer.finish_reason == "stop")
        assert len(answer.token_ids) == 24 or answer.finish_reason == "stop"


@pytest.mark.parametrize("num_rows", [pytest.param(1, marks=pytest.mark.slow), 4, 13, 80, 1000])
def test_the_number_of_rows_changes_no_answer(instruct, prefixes, num_rows):
    expected = sample(instruct, requests(prefixes, 10), PARAMS, num_rows=32)
    assert sample(instruct, requests(prefixes, 10), PARAMS, num_rows) == expected


def test_prefixes_of_different_length_do_not_mix(instruct, prefixes):
    assert len({len(shared) for shared in prefixes}) > 3
    alone = [sample(instruct, [request], PARAMS, 10) for request in requests(prefixes, 2)]
    together = sample(instruct, requests(prefixes, 2), PARAMS, 10)
    assert [answer.token_ids for one in alone for answer in one] == [answer.token_ids for answer in together]


def test_the_shorter_prompt_of_a_batch_is_not_polluted_defect_10(instruct, prefixes, goldens):
    """The reference's mixed batch moved the shorter prompt's first logits by 3.3; here each prompt runs alone."""
    from safetensors.torch import load_file

    stage0 = load_file(goldens / "llava/stage0/stage0.safetensors")
    greedy = SamplingParams(temperature=0, max_new_tokens=1)
    found = sample(instruct, requests(prefixes[:2], 1), greedy, 2)
    assert [answer.token_ids[0] for answer in found] == [
        int(stage0[f"q_{q:03d}.first_logits"].argmax()) for q in range(2)
    ]


def test_a_prefix_is_computed_once_and_dropped_with_its_last_answer(instruct, prefixes, monkeypatch):
    calls, run_prompt = [], instruct.run_prompt
    asked = [EmbeddedPrompt(shared) for shared in prefixes[:4]]
    monkeypatch.setattr(instruct, "run_prompt", lambda prompt: calls.append(asked.index(prompt)) or run_prompt(prompt))
    found = sample(instruct, [PromptRequest(prompt, [1, 2, 3, 4]) for prompt in asked], PARAMS, num_rows=5)
    assert calls == [0, 1, 2, 3]
    assert len(found) == 16


@pytest.mark.parametrize("num_rows", [1, 2, 3])
def test_with_fewer_rows_than_answers_a_prompt_is_still_prefilled_once(instruct, prefixes, monkeypatch, num_rows):
    prefilled, prefill = [], ModelRunner.prefill
    monkeypatch.setattr(
        ModelRunner,
        "prefill",
        lambda self, prompt, *where: prefilled.append(prompt.length) or prefill(self, prompt, *where),
    )
    found = sample(instruct, requests(prefixes[:3], 4), PARAMS, num_rows)
    assert len(found) == 12
    assert prefilled == [len(shared) for shared in prefixes[:3]]


@pytest.mark.parametrize("more", [0, 1])
def test_a_question_and_its_answer_may_fill_the_models_positions_and_no_more(
    instruct, golden_rows, golden_images, more
):
    size = len(prefix(instruct, instruct.pixels(golden_images[0], False, 64), golden_rows[0]["question"]))
    new = instruct.max_positions - size + more
    settings = SampleSettings(1, 0, SamplingParams(max_new_tokens=new), crop=False, max_megapixels=64)
    conversation = Conversation.of(golden_rows[0]["question"])
    ask = functools.partial(request_for, instruct, conversation, [golden_images[0]], "q", settings)
    if not more:
        assert ask().prompt.length == size
        assert size + new == instruct.max_positions
        return
    with pytest.raises(BadRow, match=f"prompt of {size} tokens, {new} to generate, room for {instruct.max_positions}"):
        ask()


def test_forced_lengths_are_those_of_the_request_and_end_with_eos(instruct, prefixes):
    lengths = [1, 2, 12, 5, 7]
    asked = [PromptRequest(EmbeddedPrompt(shared), [1, 2, 3, 4, 5], lengths) for shared in prefixes[:3]]
    found = sample(instruct, asked, SamplingParams(1.0, 0, max_new_tokens=12, forced_lengths=True), 4)
    assert [len(answer.token_ids) for answer in found] == lengths * 3
    assert all(answer.token_ids.index(2) == len(answer.token_ids) - 1 for answer in found)


def test_the_public_function_gives_k_reproducible_answers(instruct, golden_images):
    settings = {"k": 4, "seed": 3, "max_new_tokens": 12, "temperature": 1.0}
    one = sample_answers(instruct, golden_images[0], "What is it?", idx="q1", **settings)
    assert one == sample_answers(instruct, golden_images[0], "What is it?", idx="q1", **settings)
    assert one != sample_answers(instruct, golden_images[0], "What is it?", idx="q2", **settings)
    assert len({answer.text for answer in one}) > 1
    assert [answer.text for answer in one] == [instruct.text(answer.token_ids) for answer in one]
