"""The reward contrast: log-probs with the image and without it, against stock LLaMA, and by hand."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest
import sentencepiece
import torch
from run_files import png
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from data_engine import schemas
from data_engine.errors import BadRow
from data_engine.models.native.llava import SYSTEM
from data_engine.pipeline.score import ScoreSettings, score_unit
from data_engine.questions.conversation import Conversation, Message
from data_engine.questions.dataset import Question
from data_engine.rewards import AnswerError, RewardSettings, StageColumns, contrast

SETTINGS = RewardSettings(beta=0.1, same_tokenizer=True)
BLIND = ScoreSettings(False, 64, blind=True)
ANSWERS = [[5, 6, 7, 2], [90, 2], [41, 300, 8]]


def columns(seeing: list, blind: list) -> dict[str, StageColumns]:
    return {
        name: StageColumns(pa.table({"token_logps": pa.array(rows, pa.list_(pa.float32()))}))
        for name, rows in (("instruct_logps", seeing), ("contrast_logps", blind))
    }


def sampled(answers: list[list[int]]) -> pa.Table:
    rows = [
        {"idx": "q", "sample_index": number, "answer": "x", "token_ids": ids, "finish_reason": "stop"}
        for number, ids in enumerate(answers)
    ]
    return pa.Table.from_pylist(rows, schemas.sampled_answer(pa.string()))


def test_sum_and_mean_are_those_of_what_the_image_adds_to_each_token():
    # c = 0.5, -0.25, 1.0 and 2.0: sums 1.25 and 2.0, means 1.25 / 3 and 2.0. No beta.
    found = contrast.rewards(columns([[-1.0, -2.0, -0.5], [-1.0]], [[-1.5, -1.75, -1.5], [-3.0]]), SETTINGS)
    np.testing.assert_allclose(found["contrast.sum"], [1.25, 2.0], rtol=0, atol=1e-15)
    np.testing.assert_allclose(found["contrast.avg"], [1.25 / 3, 2.0], rtol=0, atol=1e-15)


@pytest.mark.parametrize("bad", [[], [math.nan], [-math.inf]])
def test_an_answer_without_finite_log_probs_has_no_number(bad):
    found = contrast.rewards(columns([[-1.0], bad, [-1.0]], [[-2.0], bad, [-2.0]]), SETTINGS)
    for column in found.values():
        assert np.isnan(column).tolist() == [False, True, False]


def test_other_numbers_of_tokens_are_an_error_that_says_both():
    with pytest.raises(AnswerError, match="got 2 log-probs with it and 1 without") as error:
        contrast.rewards(columns([[-1.0], [-1.0, -1.0]], [[-2.0], [-2.0]]), SETTINGS)
    assert error.value.place == 1


@pytest.fixture(scope="module")
def stock(goldens):
    """The decoder of the checkpoint as transformers' LLaMA, which knows no image."""
    folder = goldens / "llava/instruct"
    config = json.loads((folder / "config.json").read_text())
    known = LlamaConfig().to_dict()
    model = LlamaForCausalLM(LlamaConfig(**{name: value for name, value in config.items() if name in known})).eval()
    tensors = {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}
    told = model.load_state_dict({name: value.float() for name, value in tensors.items()}, strict=False)
    assert not told.missing_keys
    return model


def test_the_same_ids_are_scored_without_the_image_as_stock_llama_scores_them(instruct, stock, goldens, golden_images):
    text = "What is in the picture?"
    unit = score_unit(instruct, [Question("q", text, png(golden_images[0]), None)], sampled(ANSWERS), BLIND, check=True)
    encode = sentencepiece.SentencePieceProcessor(model_file=str(goldens / "llava/instruct/tokenizer.model")).encode
    prompt = [1, *encode(f"{SYSTEM} USER: "), *encode(f"\n{text} ASSISTANT:")]
    for ids, found in zip(ANSWERS, unit.table["token_logps"].to_pylist(), strict=True):
        with torch.no_grad():
            logits = stock(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(found), expected, atol=1e-4, rtol=0)


def test_without_its_image_omnilmm_is_asked_without_what_stands_around_it(omni_instruct, golden_images):
    asked = Conversation.of("What is it?")
    whole = omni_instruct.prompt(asked, [golden_images[0]], True, 64)
    bare = omni_instruct.prompt_without_images(asked)
    at = whole.ids.index(-200)
    assert [*bare.ids[: at - 1], *whole.ids[at - 1 : at + 2], *bare.ids[at - 1 :]] == whole.ids
    assert bare.length == len(whole.ids) - 3
    unit = score_unit(
        omni_instruct, [Question("q", "What is it?", png(golden_images[0]), None)], sampled(ANSWERS), BLIND, check=True
    )
    assert unit.quarantined == []
    assert unit.table["sum"].null_count == 0


def test_a_native_family_still_refuses_a_question_without_image(instruct):
    with pytest.raises(BadRow, match="the row has no image"):
        instruct.prompt(Conversation.of("What?", 0), [], True, 64)
    first = (Message("user", (0, "What?")), Message("assistant", ("A dog.",)))
    turns = Conversation((*first, Message("user", ("Sure?",))))
    with pytest.raises(BadRow, match="the row has earlier turns"):
        instruct.prompt_without_images(turns)


def test_answers_to_a_question_that_has_no_image_have_no_number_and_are_no_failure(instruct, golden_images):
    bare = Question("q", "What?", None, None)
    seen = Question("r", "What?", png(golden_images[0]), None)
    table = sampled(ANSWERS[:2])
    both = pa.concat_tables([table, table.set_column(0, "idx", pa.array(["r", "r"]))])
    unit = score_unit(instruct, [bare, seen], both, BLIND, check=True)
    assert unit.quarantined == unit.missing == []
    assert [logps is None for logps in unit.table["token_logps"].to_pylist()] == [True, True, False, False]


def test_a_row_that_cannot_be_used_is_left_out_with_its_reason(instruct):
    broken = Question("q", "What?", None, None, problem="it has no picture")
    unit = score_unit(instruct, [broken], sampled(ANSWERS), BLIND)
    assert unit.quarantined == [("q", "it has no picture")]
