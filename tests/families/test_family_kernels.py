"""The path of a GPU, by the kernels' eager formulas: which families take it, and what answers are drawn from there."""

import product
import pytest
from asked import ASKED
from comparisons import TOLERANCE, redrawn
from prompts import logits_noted

from data_engine.sampling.native import backend
from data_engine.seeds import seed_for

# As in test_family_sampling; prompts are longer than the windows of 16 tokens, and so are some answers.
ROWS = 3
LENGTHS = [[30, 1, 12, 2, 7], [3, 25, 1, 9, 18]]
# What the kernels do not know of the others.
WHY_NOT = {
    "kimi_k25": "has keys of width",
    "llama4": "has a mask that is neither causal nor a sliding window",
    "llama4_beyond": "has a mask that is neither causal nor a sliding window",
}


def test_a_family_is_drawn_by_the_kernels_or_it_is_known_why_not(checkpoint):
    model, why_not = checkpoint.model, WHY_NOT.get(checkpoint.folder.name)
    # The first prompt decides whether answers share it at all.
    product.scores(model, ASKED["wide"], [[65]])
    if not checkpoint.family.fast:
        return
    found = backend._unknown(model)
    assert (why_not in found) if why_not else found is None
    if why_not:
        return
    asked = [ASKED["wide"], ASKED["high"]]
    with pytest.MonkeyPatch.context() as patched, logits_noted() as plain:
        patched.setattr(backend, "uses_kernels", lambda model: False)
        expected = product.ragged(model, asked, LENGTHS, ROWS)
    with pytest.MonkeyPatch.context() as patched, logits_noted() as logits:
        patched.setattr(backend, "uses_kernels", lambda model: True)
        answers = product.ragged(model, asked, LENGTHS, ROWS)
    assert answers == expected
    drawn = {(key, place) for key, place in plain if (key, place) in logits}
    assert len(drawn) >= sum(map(sum, LENGTHS))
    off = max(float((plain[at] - logits[at]).abs().max()) for at in drawn)
    assert 0 < off < TOLERANCE, "equal bits would be the same path twice"
    for number, (one, its_answers) in enumerate(zip(asked, answers, strict=True)):
        for index, answer in enumerate(its_answers):
            # The last token of a forced length is the one that ends it, whatever was drawn.
            stock = redrawn(checkpoint, one, answer, seed_for(0, number, index), True)
            assert answer[:-1] == stock[: len(answer) - 1]
