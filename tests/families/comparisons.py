"""How far the product is from the stock model: the figures that tests, mutations and the table read."""

import random

import product
import torch
from asked import Asked
from checkpoints import Checkpoint
from tiny_parts import EOS

# Most that a token's log-prob may be off, nat.
TOLERANCE = 1e-4
STEPS, ROWS = 16, 3


def answers() -> list[list[int]]:
    """Bytes; one answer is a single token, one ends as answers do."""
    draw = random.Random(0)
    made = [[draw.randrange(256) for _ in range(length)] for length in (3, 17, 1, 30)]
    return [*made, [*made[0], EOS]]


def score_difference(checkpoint: Checkpoint, asked: Asked) -> float:
    """The largest difference of a token's log-prob."""
    given = answers()
    found = product.scores(checkpoint.model, asked, given)
    expected = [checkpoint.stock.score(asked, answer) for answer in given]
    assert [len(one) for one in found] == [len(answer) for answer in given]
    return (torch.cat(found) - torch.cat(expected)).abs().max().item()


def wrong_greedy_rows(checkpoint: Checkpoint, asked: Asked) -> int:
    """How many of a few greedy answers, drawn side by side, are not the one of `generate`."""
    model = checkpoint.model
    expected, _ = checkpoint.stock.greedy(asked, STEPS, product.banned(model), checkpoint.ends)
    found = product.sampled(model, asked, ROWS, temperature=0, steps=STEPS)
    return sum(row != expected for row in found)


def redrawn(checkpoint: Checkpoint, asked: Asked, answer: list[int], key: int, forced: bool = False) -> list[int]:
    """What is drawn with this key, where the stock model says what each token of the answer is drawn from.

    The answer itself, if each of its tokens was drawn from the right distribution. One whose length is `forced` is not
    ended by a draw.
    """
    from data_engine.sampling.draw import SamplingParams, next_tokens

    logits_TV = checkpoint.stock.logits(asked, answer)
    logits_TV[:, product.banned(checkpoint.model) + (checkpoint.ends if forced else [])] = -torch.inf
    keys, places = torch.full((len(answer),), key), torch.arange(len(answer))
    return next_tokens(logits_TV, keys, places, SamplingParams(temperature=0.7, top_k=50)).tolist()
