"""What a judge is asked about an answer, and the score of yes or no, held against a softmax over all tokens."""

from types import SimpleNamespace

import pytest
import torch

from data_engine.models.layers.head import Head
from data_engine.pipeline.judge import JudgeScores, YesNo
from data_engine.questions.conversation import Conversation, Message
from data_engine.rewards.yesno import WORDS, YesNoTemplate

# Of one no and two ways to write yes.
IDS = {"yes": [5, 2], "no": [3]}
ANSWERS = ["A cat.", "Two dogs.", "A cat.", "A bus."]


@pytest.fixture(params=[{}, {"bias": True}, {"scale": 0.5, "softcap": 3.0}], ids=["plain", "bias", "softcap"])
def judge(request):
    """A model of 7 tokens with that kind of output layer."""
    draw = torch.Generator().manual_seed(3)
    weight, bias = torch.randn(7, 4, generator=draw), torch.randn(7, generator=draw)
    head = Head(weight, **request.param | ({"bias": bias} if "bias" in request.param else {}))
    by_words = {words: IDS[name] for name, words in WORDS.items()}
    return SimpleNamespace(why_plain=None, read_answer=None, head=head, word_ids=by_words.__getitem__)


def test_the_score_is_log_p_yes_less_log_p_no_of_a_softmax_over_all_tokens(judge):
    hidden, head = torch.randn(5, 4, generator=torch.Generator().manual_seed(4)), judge.head
    logits = (hidden @ head.weight.T + (0 if head.bias is None else head.bias)) * head.scale
    logits = head.softcap * torch.tanh(logits / head.softcap) if head.softcap else logits
    shares = logits.double().softmax(-1)
    expected = ((shares[:, 5] + shares[:, 2]) / shares[:, 3]).log().float()
    reading = YesNo(judge, YesNoTemplate("{question} {answer}"))
    torch.testing.assert_close(reading.of_hidden(hidden), expected)
    for state, own, score in zip(hidden, logits, expected, strict=True):
        torch.testing.assert_close(reading.of_end(state, own), score)


def test_the_last_text_is_the_templates_and_a_system_text_is_the_sampled_models_own(judge):
    asked = Conversation(
        (Message("system", ("Be short.",)), Message("user", (0, "A dog?")), Message("assistant", ("Yes.",)),
         Message("user", ("And ", 1, " here?")))
    )  # fmt: skip
    reading = YesNo(judge, YesNoTemplate("Q: {question} A: {answer} Right?"))
    assert reading.conversation(asked, "A cat.").messages == (
        Message("user", (0, "A dog?")), Message("assistant", ("Yes.",)),
        Message("user", (1, "Q: And  here? A: A cat. Right?")),
    )  # fmt: skip


def test_equal_answers_are_asked_once_and_each_answer_has_its_own_rows(monkeypatch):
    """Two aspects an answer; the second answer is too long under one of them."""
    monkeypatch.setattr("data_engine.pipeline.judge.read_images", lambda *_: [])
    readings = {name: SimpleNamespace(conversation=lambda asked, text, name=name: (name, text)) for name in "ab"}
    keys = [(name, text) for text in dict.fromkeys(ANSWERS) for name in "ab"]
    row_of = {key: [number] for number, key in enumerate(keys)}
    row_of["b", "Two dogs."] = [9] * 90
    asked = []

    def shared_prompt(conversations, pictures, most):
        asked.extend(conversations)
        return SimpleNamespace(length=20), [row_of[one] for one in conversations]

    model = SimpleNamespace(why_plain=None, reads_ahead=False, max_positions=100, shared_prompt=shared_prompt)
    work = JudgeScores(model, readings, 64).prepare(
        SimpleNamespace(conversation=None), [{"answer": one} for one in ANSWERS]
    )
    assert asked == keys
    assert work.scored.answers == [row_of[name, text] for text in ("A cat.", "A cat.", "A bus.") for name in "ab"]
    assert list(work.left_out) == [1]
