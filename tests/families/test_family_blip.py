"""Processors that write the tokens of a picture by themselves, in front of a text in which no template places any."""

import product
import pytest
from asked import ASKED
from comparisons import answers

from data_engine.errors import BadRow
from data_engine.models.auto.text.prompts import AutoPrompts
from data_engine.questions.conversation import Conversation

# In make test, test_family_sampling and test_family_scoring stand for the families.
pytestmark = pytest.mark.families

NAMES = ["instructblip", "blip_2"]


@pytest.mark.parametrize("name", NAMES)
def test_a_second_picture_is_refused_that_the_model_would_leave_out(checkpoints, name):
    with pytest.raises(BadRow, match="Processor places 1 of 2 images"):
        product.scores(checkpoints(name).model, ASKED["two images"], answers())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("load", [product.load, AutoPrompts], ids=["engine", "another engine"])
def test_a_row_without_a_picture_is_refused_before_the_model_runs(checkpoints, name, load):
    with pytest.raises(BadRow, match="this model cannot run without an image"):
        load(checkpoints(name).folder).prompt(Conversation.of("What is it?", 0), [], True, 64)
