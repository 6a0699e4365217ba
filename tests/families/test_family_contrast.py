"""Log-probs without the images, of each family, against stock transformers that are never shown any."""

import product
import pyarrow as pa
import pytest
import torch
from asked import ASKED, Asked
from comparisons import TOLERANCE, answers
from families import FAMILIES, named
from run_files import png

from data_engine import schemas
from data_engine.pipeline.public_arguments import read_question
from data_engine.pipeline.score import ScoreSettings, score_unit
from data_engine.questions.dataset import Question

BLIND = ScoreSettings(False, 64, blind=True)
WITHOUT = [name for name, family in FAMILIES.items() if family.without_image]
# The same with the placeholders of its pictures taken out.
BARE = {
    "two images": Asked((), ASKED["two images"].question),
    "system and turns": Asked(
        (),
        [
            {**turn, "content": [part for part in turn["content"] if part["type"] == "text"]}
            for turn in ASKED["system and turns"].question
        ],
    ),
}


def blind(model, asked: Asked):
    images = asked.images()
    conversation, _ = read_question(images, asked.question, 64, "apply")
    question = Question("q", None, None, None, conversation=conversation, images=tuple(map(png, images)))
    rows = [
        {"idx": "q", "sample_index": number, "answer": "x", "token_ids": ids, "finish_reason": "stop"}
        for number, ids in enumerate(answers())
    ]
    sampled = pa.Table.from_pylist(rows, schemas.sampled_answer(pa.string()))
    return score_unit(model, [question], sampled, BLIND, check=True)


@pytest.mark.parametrize("which", BARE)
@pytest.mark.parametrize("name", named(WITHOUT))
def test_the_same_ids_are_scored_as_a_stock_model_scores_them_that_has_no_picture(checkpoints, name, which):
    checkpoint = checkpoints(name)
    # The first question that a model is given decides which path it takes.
    product.scores(checkpoint.model, ASKED["wide"], [[65]])
    unit = blind(checkpoint.model, ASKED[which])
    assert unit.quarantined == []
    for ids, found in zip(answers(), unit.table["token_logps"].to_pylist(), strict=True):
        expected = checkpoint.stock.score(BARE[which], ids)
        torch.testing.assert_close(torch.tensor(found), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.families
@pytest.mark.parametrize(
    ("name", "told"),
    [("mllama", "cannot run without one"), ("paligemma", "refuses it"), ("blip_2", "cannot run without an image")],
)
def test_a_model_that_needs_a_picture_leaves_the_question_out_and_says_why(checkpoints, name, told):
    [(_, reason)] = blind(checkpoints(name).model, ASKED["wide"]).quarantined
    assert told in reason
