"""Judges that think: a critic's number is that of its final text, and none is asked for yes or no within a thought."""

from types import SimpleNamespace

import pytest
from checkpoints import Checkpoint
from thinkers import FAMILIES

from data_engine import load_model
from data_engine.errors import UserError
from data_engine.pipeline.critic import UNFINISHED, Critic
from data_engine.pipeline.judge import YesNo
from data_engine.questions.conversation import Conversation
from data_engine.rewards.critic import template_in
from data_engine.rewards.yesno import YesNoTemplate
from data_engine.sampling.requests import Completion

NO_NUMBER = "the critic's text does not match the template's expression"


@pytest.fixture(scope="module")
def thinker(tmp_path_factory):
    """Whose template opens a thought in the prompt."""
    folder = tmp_path_factory.mktemp("thinker")
    return load_model(None, str(Checkpoint("qwen3_5", folder, FAMILIES["qwen3_5"]).folder), device="cpu")


class Written:
    """A back end that gives texts in the order of its requests."""

    halvings = 0

    def __init__(self, texts: list[list[int]]) -> None:
        self._texts, self._found = texts, []

    def submit(self, requests) -> None:
        both = enumerate(zip(self._texts, requests, strict=True))
        self._found = [Completion(number, 0, ids, "stop") for number, (ids, _) in both]

    def poll(self) -> list[Completion]:
        return self._found


def test_a_critics_number_is_read_behind_its_thought(thinker, monkeypatch):
    texts = {"I think of 3.\n</think>\n\nIt gets 8.": 8.0, "I think of 3": UNFINISHED,
             "It may be 5.\n</think>\n\nGood.": NO_NUMBER}  # fmt: skip
    tokenizer = thinker.chat._tokenizer
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    template = template_in('prompt: "{question} {answer}"\nnumber: "([0-9]+)"\nmax_new_tokens: 8', "template")
    context = SimpleNamespace(model=thinker, config=SimpleNamespace(max_megapixels=64))
    critic = Critic(context, template, Written(ids))
    question = SimpleNamespace(idx="q", conversation=Conversation.of("What is it?", 0), missing=False)
    monkeypatch.setattr(Critic, "_pictures", lambda critic, question: (question, []))
    answers = {"q": [{"idx": "q", "sample_index": n, "answer": f"A cat {n}."} for n in range(len(texts))]}
    written = critic._written(SimpleNamespace(questions=[question]), answers, {}, ([], []))
    rows = [critic._row(row, written, {}) for row in answers["q"]]
    assert [row["score"] if row["reason"] is None else row["reason"] for row in rows] == list(texts.values())
    # The text is kept whole.
    assert "I think of 3" in rows[0]["critique"]


def test_a_model_whose_prompt_opens_a_thought_is_not_asked_for_yes_or_no(thinker):
    with pytest.raises(UserError, match="the yesno model's chat template opens a thought before each answer"):
        YesNo(thinker, YesNoTemplate("{question} {answer}?"))
