"""Log-probs of answers equal those of the stock model's whole forward, in every family."""

import product
import pytest
import torch
from asked import ASKED
from comparisons import TOLERANCE, score_difference
from families import FAMILIES

from data_engine.models.registry import family_of


def test_no_family_needs_a_name(checkpoint):
    """LLaVA's folder could be one of the published checkpoints, which the engine has a family for."""
    native = checkpoint.folder.name == "llava"
    assert family_of(checkpoint.folder) == ("llava" if native else "auto")


@pytest.mark.parametrize("prompt", list(ASKED))
def test_log_probs_are_those_of_the_stock_model(checkpoint, prompt):
    if prompt in checkpoint.asked():
        assert score_difference(checkpoint, ASKED[prompt]) <= TOLERANCE


def test_nothing_of_one_question_reaches_the_next(checkpoint):
    """A model may keep the positions of the last picture that it saw."""
    for prompt in ("wide", "high", "wide"):
        assert score_difference(checkpoint, ASKED[prompt]) <= TOLERANCE


def test_a_family_goes_by_the_path_that_it_should(checkpoint):
    """Else a fast path that is wrong would hide behind the plain one."""
    score_difference(checkpoint, ASKED["wide"])
    assert product.is_fast(checkpoint.model) == checkpoint.family.fast


def test_answers_of_one_token_each_are_scored(checkpoint):
    """Nothing of theirs is fed: the prompt says all of their log-probs."""
    asked, given = ASKED["high"], [[65], [66]]
    found = product.scores(checkpoint.model, asked, given)
    expected = [checkpoint.stock.score(asked, answer) for answer in given]
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), atol=TOLERANCE, rtol=0)


@pytest.mark.families
@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.without_image])
def test_a_family_that_cannot_do_without_a_picture_says_so(checkpoints, name):
    with pytest.raises(ValueError, match="image"):
        product.scores(checkpoints(name).model, ASKED["no image"], [[65]])
