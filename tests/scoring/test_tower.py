"""The vision tower over the images of a scoring pass: few calls, and each question's numbers as when it is alone."""

from collections.abc import Iterator

import pytest
import torch
from PIL import Image

from data_engine.models import image_groups
from data_engine.pipeline import judge
from data_engine.pipeline.works import Whole, halving
from data_engine.questions.conversation import Conversation
from data_engine.scoring.logprobs import Scored, last_hidden, plain_token_logps, score_pass

NATIVE = ["instruct", "omni_instruct"]
ANSWERS = [[7, 23, 9], [11, 4]]


@pytest.fixture
def as_on_a_gpu(monkeypatch) -> None:
    monkeypatch.setattr(image_groups, "images_a_call", lambda model: 3)


@pytest.fixture
def calls() -> list[int]:
    """How many images each call of a native model's tower got."""
    return []


def counting(model, calls: list[int], monkeypatch):
    encode = model.encode_images
    monkeypatch.setattr(model, "encode_images", lambda pixels: calls.append(len(pixels)) or encode(pixels))
    return model


def questions(model, images: list[Image.Image]) -> list[Scored]:
    return [
        Scored(model.prompt(Conversation.of(f"What is it? {number}"), [image], True, 64), ANSWERS)
        for number, image in enumerate(images)
    ]


def flat(found: list[list[torch.Tensor]]) -> Iterator[torch.Tensor]:
    return (logps for one in found for logps in one)


@pytest.mark.parametrize("name", NATIVE)
def test_a_pass_calls_the_tower_once_for_as_many_images_as_it_takes(
    name, request, golden_images, monkeypatch, as_on_a_gpu, calls
):
    model = counting(request.getfixturevalue(name), calls, monkeypatch)
    asked = questions(model, (golden_images * 2)[:7])
    score_pass(model, asked)
    assert calls == [3, 3, 1]
    calls.clear()
    last_hidden(model, asked)
    assert calls == [3, 3, 1]


@pytest.mark.parametrize("name", NATIVE)
def test_on_cpu_each_image_goes_alone(name, request, golden_images, monkeypatch, calls):
    model = counting(request.getfixturevalue(name), calls, monkeypatch)
    score_pass(model, questions(model, golden_images[:3]))
    assert calls == [1, 1, 1]


@pytest.mark.parametrize("name", NATIVE)
def test_log_probs_are_those_of_one_image_at_a_time(name, request, golden_images, as_on_a_gpu):
    model = request.getfixturevalue(name)
    asked = questions(model, golden_images[:5])
    for one, found in zip(asked, score_pass(model, asked), strict=True):
        for ids, logps in zip(one.answers, found, strict=True):
            torch.testing.assert_close(logps, plain_token_logps(model, one.prompt, ids), rtol=0, atol=1e-5)


def test_prompts_without_an_image_stand_between_the_others(instruct, golden_images, monkeypatch, as_on_a_gpu, calls):
    model = counting(instruct, calls, monkeypatch)
    blind = Scored(model.prompt_without_images(Conversation.of("What is it?")), ANSWERS)
    first, second = questions(model, golden_images[:2])
    asked = [blind, first, blind, second]
    found = list(flat(score_pass(model, asked)))
    assert calls == [2]
    alone = [logps for one in asked for logps in flat(score_pass(model, [one]))]
    for one, other in zip(found, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_an_image_that_gives_no_numbers_changes_nothing_of_its_neighbours(
    instruct, golden_images, monkeypatch, as_on_a_gpu
):
    asked = questions(instruct, golden_images[:3])
    sound, encode = score_pass(instruct, asked), instruct.encode_images
    broken = torch.tensor([1, torch.nan, 1])[:, None, None]
    monkeypatch.setattr(instruct, "encode_images", lambda pixels: encode(pixels) * broken)
    found = score_pass(instruct, asked)
    assert all(logps.isnan().all() for logps in found[1])
    for number in (0, 2):
        for one, other in zip(found[number], sound[number], strict=True):
            assert torch.equal(one, other)


def test_images_that_exceed_the_memory_together_are_run_in_halves(instruct, golden_images, monkeypatch, as_on_a_gpu):
    asked, encode, calls = questions(instruct, golden_images[:3]), instruct.encode_images, []
    whole = list(flat(score_pass(instruct, asked)))

    def small(pixels):
        calls.append(len(pixels))
        if len(pixels) > 1:
            raise torch.OutOfMemoryError("no room")
        return encode(pixels)

    monkeypatch.setattr(instruct, "encode_images", small)
    found, retries = halving(_Scoring(instruct), [_Question(one) for one in asked])
    assert (calls, retries) == ([3, 1, 2, 1, 1], 2)
    for one, other in zip(flat(found), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


class _Question:
    tokens = 1

    def __init__(self, scored: Scored) -> None:
        self.scored = scored

    def halves(self) -> None:
        return None


class _Scoring:
    def __init__(self, model) -> None:
        self.model = model

    def compute(self, works):
        return score_pass(self.model, [work.scored for work in works])


def test_whole_prompts_of_a_judge_go_together_too(instruct, golden_images, monkeypatch, as_on_a_gpu, calls):
    class Reading:
        def of_hidden(self, hidden_ND):
            return hidden_ND.sum(-1)

    class WholeJudged(judge.JudgeScores):
        whole = True

    prompts = [one.prompt for one in questions(instruct, golden_images[:3])]
    judged = WholeJudged(instruct, {"score": Reading()}, 64)
    alone = [judged.compute([Whole([prompt])])[0][0] for prompt in prompts]
    counting(instruct, calls, monkeypatch)
    found = judged.compute([Whole([prompts[0], prompts[1], prompts[0]]), Whole([prompts[2]])])
    assert calls == [3]
    expected = [[alone[0], alone[1], alone[0]], [alone[2]]]
    for ours, theirs in zip(flat(found), flat(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    # Of long prompts, one at a time.
    calls.clear()
    monkeypatch.setattr(judge, "MOST_AT_ONCE", max(prompt.length for prompt in prompts))
    again = judged.compute([Whole([prompts[0], prompts[1], prompts[0]]), Whole([prompts[2]])])
    assert calls == [1, 1, 1]
    for ours, theirs in zip(flat(again), flat(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
