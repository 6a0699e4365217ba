"""Packed scoring against the plain path, which tests/models holds against the reference."""

import pytest
import torch

from data_engine.logps import packed_token_logps, plain_token_logps
from data_engine.models.base import prefix
from data_engine.score import self_check


@pytest.fixture(scope="module")
def shared(instruct, golden_images):
    return prefix(instruct, instruct.pixels(golden_images[0], True, 64), "What is in the picture?")


def random_answers(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(3, 1000, (length,), generator=generator).tolist() for length in lengths]


@pytest.mark.parametrize("lengths", [[5], [1], [1, 1, 1], [1, 40, 7], [300, 2, 1, 90], [17] * 10])
def test_packed_equals_plain(instruct, shared, lengths):
    answers = random_answers(lengths)
    for answer, got in zip(answers, packed_token_logps(instruct, shared, answers), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, plain_token_logps(instruct, shared, answer), rtol=0, atol=1e-4)


def test_answers_do_not_see_each_other(instruct, shared):
    one, other, third = random_answers([30, 20, 25])
    first = packed_token_logps(instruct, shared, [one, other])[0]
    torch.testing.assert_close(packed_token_logps(instruct, shared, [one, third])[0], first, rtol=0, atol=1e-5)


def test_equal_answers_get_equal_log_probs(instruct, shared):
    one, other = random_answers([9, 4])
    logps = packed_token_logps(instruct, shared, [one, other, one])
    assert torch.equal(logps[0], logps[2])


def test_an_answer_without_tokens_is_refused(instruct, shared):
    with pytest.raises(ValueError, match="without tokens"):
        packed_token_logps(instruct, shared, [[5], []])


def test_the_self_check_sees_a_wrong_path(instruct, shared):
    answers = random_answers([12, 7])
    right = packed_token_logps(instruct, shared, answers)
    assert self_check(instruct, shared, answers, right) < 1e-5
    with pytest.raises(RuntimeError, match="differ from the plain path"):
        self_check(instruct, shared, answers, [logps + 0.01 for logps in right])


def test_bf16_is_no_worse_than_the_plain_path(goldens, instruct, shared, golden_images):
    """Both paths in bf16 against fp32: the packed one may not lose more than the plain one does."""
    from data_engine import load_model

    half = load_model(None, str(goldens / "llava/instruct"), device="cpu", dtype="bfloat16")
    shared_half = prefix(half, half.pixels(golden_images[0], True, 64), "What is in the picture?")
    answers = random_answers([60] * 6)
    exact = torch.cat(packed_token_logps(instruct, shared, answers))
    packed = (torch.cat(packed_token_logps(half, shared_half, answers)) - exact).abs().mean()
    plain = (torch.cat([plain_token_logps(half, shared_half, answer) for answer in answers]) - exact).abs().mean()
    assert packed <= plain * 1.1 + 1e-3
