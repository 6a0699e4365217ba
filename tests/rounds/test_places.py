"""The flags of a round's run, from those of the loop."""

from dataclasses import asdict
from pathlib import Path

import pytest

from data_engine.commands.arguments import parse
from data_engine.config import RunConfig
from data_engine.errors import UserError
from data_engine.flags import DEFAULTS, FIELD_NAMES
from data_engine.of_pairing import FLAGS
from data_engine.rounds.places import FREE, Round, config_of, is_one_scale, require_same, write_config
from data_engine.stages import EVERY_UNIT, known


def loop(tmp_path: Path, **more: object) -> RunConfig:
    paths = {"instruct_model_path": "models/sft", "reward_model_path": "models/dpo", "dataset_path": "q.parquet"}
    return RunConfig(**paths | {"work_dir": str(tmp_path / "loop")} | more)


def differing(config: RunConfig) -> dict[str, object]:
    return {name: value for name, value in asdict(config).items() if value != DEFAULTS.get(name)}


def test_the_first_round_is_the_run_that_was_asked_for(tmp_path):
    asked = loop(tmp_path, instruct_model_name="auto", seed=3)
    config = config_of(asked, Round(tmp_path / "loop", 1))
    assert differing(config) == differing(asked) | {"work_dir": str(tmp_path / "loop/round-1/run")}


def test_later_rounds_are_that_run_on_what_was_trained(tmp_path):
    first = {"instruct_model_path": "org/sft", "instruct_model_name": "llava", "instruct_model_revision": "main"}
    config = config_of(loop(tmp_path, **first, seed=3), Round(tmp_path / "loop", 3))
    assert differing(config) == {
        "instruct_model_path": str(tmp_path / "loop/round-2/model"),
        "reward_model_path": "models/dpo", "dataset_path": "q.parquet", "seed": 3,
        "work_dir": str(tmp_path / "loop/round-3/run"),
    }  # fmt: skip


def test_a_reference_that_is_named_stays(tmp_path):
    named = config_of(loop(tmp_path, reference_model_path="models/base"), Round(tmp_path / "loop", 2))
    assert named.reference_model_path == "models/base"


def test_a_judge_may_be_the_model_itself_and_any_value_may_hold_the_number(tmp_path):
    asked = loop(
        tmp_path, dataset_path="data/part-{round}.parquet", rewards="yesno", yesno_model_path="{model}",
        instruct_model_name="llava", chat_template_kwargs='{"round": "{round}", "a": {}}',
    )  # fmt: skip
    one, two = (config_of(asked, Round(tmp_path / "loop", number)) for number in (1, 2))
    assert (one.yesno_model_path, one.yesno_model_name) == ("models/sft", "llava")
    assert (two.yesno_model_path, two.yesno_model_name) == (str(tmp_path / "loop/round-1/model"), None)
    assert [config.dataset_path for config in (one, two)] == ["data/part-1.parquet", "data/part-2.parquet"]
    assert two.chat_template_kwargs == '{"round": "2", "a": {}}'


def test_the_base_of_adapters_goes_to_rounds_whose_model_is_one(tmp_path):
    first = tmp_path / "sft"
    first.mkdir()
    (first / "config.json").write_text("{}")
    asked = loop(tmp_path, instruct_model_path=str(first), instruct_base_model_path=str(first))
    one, two = Round(tmp_path / "loop", 1), Round(tmp_path / "loop", 2)
    assert config_of(asked, one).instruct_base_model_path is None
    one.model.mkdir(parents=True)
    (one.model / "adapter_config.json").write_text("{}")
    assert config_of(asked, two).instruct_base_model_path == str(first)
    # Trainers may write the base's config.json beside it.
    (one.model / "config.json").write_text("{}")
    assert config_of(asked, two).instruct_base_model_path == str(first)


def test_the_file_of_a_round_gives_run_the_same_configuration(tmp_path):
    one = Round(tmp_path / "loop", 2)
    config = config_of(loop(tmp_path, temperature=0.0, columns="question=prömpt", on_bad_row="error"), one)
    write_config(config, one)
    assert parse(["--config", str(one.config)]) == config


def test_a_round_that_is_done_is_held_against_its_flags(tmp_path):
    one = Round(tmp_path / "loop", 1)
    write_config(config_of(loop(tmp_path, beta=0.2), one), one)
    require_same(config_of(loop(tmp_path, beta=0.2, threads=3, export="trl", device="cpu"), one), one)
    with pytest.raises(UserError, match=r"round 1 .* beta was 0\.2, now not set; temperature was not set, now 1\.0\. "):
        require_same(config_of(loop(tmp_path, temperature=1.0), one), one)


def test_what_shapes_answers_rewards_and_pairs_is_held():
    shaping = {*FLAGS, *EVERY_UNIT, *(name for stage in known().values() for name in stage.settings)}
    assert shaping & {*FREE} == {"device"}
    assert {*FREE} <= {*FIELD_NAMES}


def test_a_loop_that_was_moved_or_is_named_by_another_path_goes_on(tmp_path):
    asked = {"rewards": "yesno", "yesno_model_path": "{model}", "chat_template_kwargs": '{"of": "{model}"}'}
    before, after = Path("runs/loop"), tmp_path / "moved"
    written = Round(after, 2)
    write_config(config_of(loop(tmp_path, **asked, work_dir=str(before)), Round(before, 2)), written)
    require_same(config_of(loop(tmp_path, **asked), written), written)
    with pytest.raises(UserError, match=r"yesno_model_path was '\{model\}', now 'models/judge'"):
        require_same(config_of(loop(tmp_path, **asked | {"yesno_model_path": "models/judge"}), written), written)
    # The first model is named by the user.
    first = Round(after, 1)
    write_config(config_of(loop(tmp_path, **asked), first), first)
    with pytest.raises(UserError, match="instruct_model_path was 'models/sft', now 'models/other'"):
        require_same(config_of(loop(tmp_path, **asked, instruct_model_path="models/other"), first), first)


def test_a_dataset_that_is_named_by_another_path_is_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = Round(tmp_path / "loop", 1)
    write_config(config_of(loop(tmp_path, dataset_path="q.parquet", image_root="pictures"), one), one)
    elsewhere = {"dataset_path": str(tmp_path / "q.parquet"), "image_root": f"{tmp_path}/./pictures/"}
    require_same(config_of(loop(tmp_path, **elsewhere), one), one)
    with pytest.raises(UserError, match=r"dataset_path was 'q\.parquet', now 'other\.parquet'"):
        require_same(config_of(loop(tmp_path, **elsewhere | {"dataset_path": "other.parquet"}), one), one)


def test_braces_in_the_name_of_the_loops_folder_stay(tmp_path):
    folder = tmp_path / "{round} {model}"
    asked = loop(tmp_path, rewards="yesno", yesno_model_path="{model}", yesno_template="{model}/{round}.txt")
    config = config_of(asked, Round(folder, 2))
    model = str(folder / "round-1/model")
    assert (config.instruct_model_path, config.yesno_model_path) == (model, model)
    assert config.yesno_template == f"{model}/2.txt"
    assert config.work_dir == str(folder / "round-2/run")


@pytest.mark.parametrize(
    ("source", "more", "expected"),
    [
        ("implicit", {}, False),
        ("implicit", {"reference_model_path": "models/base"}, True),
        ("implicit", {"reward_model_path": "{model}", "reference_model_path": "models/base"}, False),
        ("implicit", {"reward_model_path": "dpo-{round}", "reference_model_path": "models/base"}, False),
        ("contrast", {}, False),
        ("yesno", {"yesno_model_path": "{model}"}, False),
        ("yesno", {"yesno_model_path": "models/judge"}, True),
        ("rule", {"rule": "final_answer"}, True),
    ],
)
def test_rewards_of_two_rounds_compare_where_the_same_models_give_them(tmp_path, source, more, expected):
    assert is_one_scale(loop(tmp_path, rewards=source, **more), source) == expected
