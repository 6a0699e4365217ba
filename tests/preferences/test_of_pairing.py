"""run.json as it was for a pairing, where another start has opened the run since."""

import pytest

from data_engine.config import RunConfig
from data_engine.of_pairing import FLAGS, of_pairing
from data_engine.pipeline.pair_settings import Settings

PATHS = {name: "x" for name in ("instruct_model_path", "reward_model_path", "dataset_path", "work_dir")}


@pytest.mark.parametrize(("last", "expected"), [(None, "score 20ab"), ("later.py:score", "later.py:score")])
def test_a_rule_that_the_last_start_left_out_is_that_of_the_pairing(last, expected):
    """Else neither its export nor its report would be written: a start without a rule has no rewards of one."""
    run_file = {"config": PATHS | {"rewards": None, "rule": last}, "models": {}}
    told = {"rewards": "implicit,rule", "bound": {"rule": "score 20ab"}, "same_tokenizer": True}
    found = RunConfig(**of_pairing(run_file, told)["config"])
    assert (found.rewards, found.rule) == ("implicit,rule", expected)


def test_a_pairing_without_a_rule_has_none():
    run_file = {"config": PATHS | {"rewards": "implicit,rule", "rule": "later.py:score"}, "models": {}}
    told = {"rewards": "implicit", "bound": {}, "same_tokenizer": True}
    assert of_pairing(run_file, told)["config"]["rewards"] == "implicit"


def test_the_flags_of_a_pairing_are_those_that_its_settings_keep():
    assert sorted(FLAGS) == sorted(Settings.__dataclass_fields__)
