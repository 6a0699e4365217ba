"""Processors against transformers' own, random numbers by hand, draws against their distribution."""

import math

import pytest
import torch
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from data_engine.sampling import draw
from data_engine.sampling.draw import SamplingParams, candidates, next_tokens, penalise, uniform

MASK = (1 << 64) - 1


def splitmix(value: int) -> int:
    """The finaliser in Python's own integers: the second, obvious formula."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def test_uniform_numbers_are_splitmix_of_key_position_and_token():
    keys, places, tokens = [0, 7, (1 << 63) - 1], [0, 3, 511], [0, 5, 31999]
    got = uniform(torch.tensor(keys), torch.tensor(places), torch.tensor([tokens] * 3))
    for row, (key, place) in enumerate(zip(keys, places, strict=True)):
        for column, token in enumerate(tokens):
            bits = splitmix(splitmix((key + splitmix(place + 1)) & MASK) ^ splitmix(token + 1))
            assert got[row, column].item() == ((bits >> 12) + 0.5) / 2**52


def test_uniform_numbers_are_uniform_and_independent_along_every_axis():
    drawn = uniform(torch.arange(300), torch.arange(300) * 7, torch.arange(400).expand(300, -1))
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.004)
    assert drawn.var().item() == pytest.approx(1 / 12, abs=0.002)
    for other in (drawn.roll(1, 0), drawn.roll(1, 1)):
        assert torch.corrcoef(torch.stack([drawn.flatten(), other.flatten()]))[0, 1].abs().item() < 0.01


@pytest.mark.parametrize(("top_k", "top_p"), [(50, 1.0), (5, 1.0), (0, 0.8), (20, 0.6), (0, 1.0), (300, 0.01)])
def test_candidates_are_those_of_transformers(top_k, top_p):
    logits = torch.randn(16, 300, generator=torch.Generator().manual_seed(1)) * 3
    expected = TemperatureLogitsWarper(0.7)(None, logits)
    expected = TopKLogitsWarper(top_k)(None, expected) if top_k else expected
    expected = TopPLogitsWarper(top_p)(None, expected) if top_p < 1 else expected
    scores, ids = candidates(logits, SamplingParams(temperature=0.7, top_k=top_k, top_p=top_p))
    got = torch.full_like(logits, -torch.inf).scatter(1, ids, scores)
    assert torch.equal(got.isinf(), expected.isinf())
    torch.testing.assert_close(got, expected)


def test_ties_of_the_kth_value_stay_as_in_transformers():
    logits = torch.tensor([[3.0, 2.0, 2.0, 2.0, 1.0]])
    scores, ids = candidates(logits, SamplingParams(temperature=1.0, top_k=2))
    kept = ids[scores > -torch.inf]
    assert sorted(kept.tolist()) == [0, 1, 2, 3]
    assert (TopKLogitsWarper(2)(None, logits) > -torch.inf).sum() == 4


@pytest.mark.parametrize("top_k", [0, 50])
def test_a_token_at_the_edge_of_top_p_is_not_decided_by_the_last_bits_of_fp32(top_k):
    """Which depend on a GPU on how many rows are drawn together. Twelve tokens before the edge, a billionth off it."""
    for row in torch.randn(20, 60, generator=torch.Generator().manual_seed(3)) * 3:
        best = sorted(row.tolist(), reverse=True)[: top_k or None]
        weights = [math.exp(score) for score in best]
        edge = math.fsum(weights[:12]) / math.fsum(weights)
        for top_p, kept in ((edge + 1e-9, 13), (edge - 1e-9, 12)):
            scores, _ = candidates(row[None], SamplingParams(temperature=1.0, top_k=top_k, top_p=top_p))
            assert int(scores.isfinite().sum()) == kept


def test_the_reference_warps_the_first_step_alike(goldens, instruct):
    from safetensors.torch import load_file

    stage0 = load_file(goldens / "llava/stage0/stage0.safetensors")
    scores, ids = candidates(stage0["q_000.first_logits"].reshape(1, -1), SamplingParams(temperature=0.7, top_k=50))
    got = torch.full((1, 1000), -torch.inf).scatter(1, ids, scores)
    torch.testing.assert_close(got, stage0["q_000.first_warped_scores"].reshape(1, -1), rtol=0, atol=1e-4)


def test_the_penalty_is_that_of_transformers():
    logits = torch.tensor([[2.0, -2.0, 1.0, -1.0]])
    seen = torch.tensor([[True, True, False, False]])
    expected = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([[0, 1]]), logits)
    torch.testing.assert_close(penalise(logits, seen, 1.3), expected)


def test_draws_follow_the_softmax():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    rows = 20_000
    drawn = next_tokens(
        logits.expand(rows, -1), torch.arange(rows), torch.zeros(rows, dtype=torch.long), SamplingParams(0.7)
    )
    frequency = torch.bincount(drawn, minlength=4) / rows
    # Standard error of a share is at most sqrt(1/4/20000) = 0.0035.
    torch.testing.assert_close(frequency, (logits / 0.7).softmax(-1), rtol=0, atol=0.014)


def test_a_draw_does_not_depend_on_the_rows_beside_it():
    logits = torch.randn(12, 200, generator=torch.Generator().manual_seed(2))
    keys, places = torch.arange(12) * 31, torch.arange(12)
    params = SamplingParams(1.0, top_k=0)
    together = next_tokens(logits, keys, places, params)
    alone = [next_tokens(logits[i : i + 1], keys[i : i + 1], places[i : i + 1], params).item() for i in range(12)]
    assert together.tolist() == alone
    assert next_tokens(logits, keys + 1, places, params).tolist() != alone


def test_temperature_zero_is_the_argmax():
    logits = torch.tensor([[0.1, 3.0, 2.9]])
    assert next_tokens(logits, torch.tensor([5]), torch.tensor([0]), SamplingParams(temperature=0)).tolist() == [1]


# What is drawn from: without top_k each token of the vocabulary, whose rows are cut; top_k has few in each.
@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize(
    ("top_k", "top_p", "cut"), [(0, 1.0, [2, 2, 2, 1]), (0, 0.8, [2, 2, 2, 1]), (500, 1.0, [2, 2, 2, 1]), (5, 1.0, [7])]
)
def test_rows_are_drawn_in_parts_where_there_are_many_candidates(monkeypatch, top_k, top_p, cut, penalty):
    params = SamplingParams(temperature=0.9, top_k=top_k, top_p=top_p, repetition_penalty=penalty)
    logits, keys = torch.randn(7, 300, generator=torch.Generator().manual_seed(5)) * 3, torch.arange(7) * 99
    seen = torch.rand(7, 300, generator=torch.Generator().manual_seed(6)) < 0.3 if penalty != 1 else None
    one_by_one = [
        next_tokens(
            logits[n : n + 1], keys[n : n + 1], keys[n : n + 1], params, None if seen is None else seen[n : n + 1]
        )
        for n in range(7)
    ]
    drawn, uniform = [], draw.uniform
    monkeypatch.setattr(draw, "uniform", lambda *given: drawn.append(given[2].shape) or uniform(*given))
    monkeypatch.setattr(draw, "MOST_DRAWN", 650)
    assert torch.equal(next_tokens(logits, keys, keys, params, seen), torch.cat(one_by_one))
    assert [rows for rows, _ in drawn] == cut
    assert all(rows * width <= 650 for rows, width in drawn)


def test_greedy_rows_are_drawn_together(monkeypatch):
    monkeypatch.setattr(draw, "MOST_DRAWN", 1)
    monkeypatch.setattr(torch, "cat", None)
    logits = torch.eye(4)
    assert next_tokens(logits, torch.arange(4), torch.arange(4), SamplingParams(temperature=0.0)).tolist() == [
        0,
        1,
        2,
        3,
    ]
