"""What is said of the models whose log-probs are compared, and of what a run cannot do without."""

from types import SimpleNamespace

import pytest

from data_engine.job.checkpoints import have_same_tokenizer
from data_engine.stages import RunStages


def model(vocabulary: str, encodes: str = "one way") -> SimpleNamespace:
    one = SimpleNamespace(vocabulary=vocabulary, encodes=encodes)
    one.encodes_as = lambda other: one.encodes == other.encodes
    return one


A, B, A_OTHERWISE = model("a"), model("b"), model("a", "another way")


@pytest.mark.parametrize(
    ("checkpoints", "of_ids", "of_texts"),
    [
        ({"instruct": A, "reward": A}, True, True),
        ({"instruct": A, "reward": A_OTHERWISE}, True, False),
        ({"instruct": A, "reward": B}, False, False),
        ({"instruct": A, "reference": A, "reward": B}, False, False),
        ({"instruct": A, "reference": A_OTHERWISE, "reward": A}, True, False),
        # A judge is not compared.
        ({"instruct": A, "yesno": B}, True, True),
        # Answers of no model that is here, of whose ids nothing is known; and a run without any model.
        ({"reference": A, "reward": A}, False, False),
        ({"yesno": B}, True, True),
        ({}, True, True),
    ],
)
def test_models_score_the_same_ids_where_they_have_one_vocabulary_and_encode_texts_alike(checkpoints, of_ids, of_texts):
    assert have_same_tokenizer(checkpoints, has_texts=False) == of_ids
    assert have_same_tokenizer(checkpoints, has_texts=True) == of_texts


@pytest.mark.parametrize(
    ("sources", "name", "told"),
    [
        (("implicit",), "instruct_model_path", "it samples the answers"),
        (("implicit", "rule"), "reward_model_path", "--rewards implicit needs it"),
        (("rule", "implicit"), "reward_model_path", "--rewards implicit needs it"),
        (("implicit", "rule"), "rule", "--rewards rule needs it"),
        (("implicit", "yesno"), "yesno_model_path", "--rewards yesno needs it"),
    ],
)
def test_a_missing_flag_is_told_with_what_needs_it(sources, name, told):
    stages = RunStages(sources=sources)
    assert name in stages.given
    assert stages.why_given(name) == told
