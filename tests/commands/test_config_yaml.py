"""A configuration in YAML, and what is wrong with one."""

import json
from pathlib import Path

import pytest
from test_config import REQUIRED, refusal

from data_engine.commands.arguments import parse
from data_engine.config import RunConfig
from data_engine.errors import UserError


def with_yaml(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return ["--config", str(path)]


def yaml_refusal(tmp_path: Path, text: str) -> str:
    return refusal(*with_yaml(tmp_path, text)).replace(f"{tmp_path}/", "")


def test_a_yaml_file_is_all_that_a_run_needs(tmp_path):
    text = "instruct_model_path: a\nreward_model_path: b\ndataset_path: c\nwork_dir: d\nsample_k: 6\nbeta: 1e-1\n"
    config = parse(with_yaml(tmp_path, text + "debug: true\nzero3: on\nunit_size: auto\nlimit: null\n"))
    assert (config.instruct_model_path, config.sample_k, config.beta, config.debug) == ("a", 6, 0.1, True)
    assert (config.zero3, config.unit_size, config.limit) == ("on", None, None)


@pytest.mark.parametrize("order", [1, -1])
def test_a_flag_wins_over_the_file_on_either_side_of_it(tmp_path, order):
    flags = [with_yaml(tmp_path, "sample_k: 6\nrank: 2"), ["--sample_k", "8"]][::order]
    config = parse([*REQUIRED, *flags[0], *flags[1]])
    assert (config.sample_k, config.rank) == (8, 2)


def test_a_yaml_off_is_off(tmp_path):
    assert parse([*REQUIRED, *with_yaml(tmp_path, "zero3: off")]).zero3 == "off"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sampel_k: 3", 'config "job.yaml" has the unknown key sampel_k; did you mean sample_k?'),
        ("sample-k: 3", 'config "job.yaml" has the unknown key sample-k; did you mean sample_k?'),
        ("num_samples: 3", 'config "job.yaml" has the unknown key num_samples; did you mean sample_k?'),
        ("xyzzy: 3", 'config "job.yaml" has the unknown key xyzzy'),
        ("lookahead: true", 'config "job.yaml" has lookahead, which is gone: on a GPU the next unit always starts'),
        ("1: 3", 'config "job.yaml" has the unknown key 1'),
        (
            "config: x.yaml",
            'config "job.yaml" has the unknown key config; it is a flag of the command line alone, --config',
        ),
        ("extra: 1", 'config "job.yaml" has the unknown key extra'),
        ("fromat: trl", 'config "job.yaml" has the unknown key fromat; did you mean export?'),
        (
            '{"layout": 2, "bound": {}, "config": {"sample_k": 3}}',
            'config "job.yaml" is the run.json of a run, which has more than flags: the README.md of an export of',
        ),
        ("run:\n  beta: 1", 'config "job.yaml" has the unknown key run; there are no sections: each flag is a line of'),
        ("- sample_k", 'config "job.yaml" must be lines of "name: value", got ["sample_k"]'),
        ("sample_k", 'config "job.yaml" must be lines of "name: value", got "sample_k"'),
        ("sample_k: 3\nsample_k: 4", 'config "job.yaml" is not YAML: sample_k is given twice'),
        ("sample_k: [3", 'config "job.yaml" is not YAML: while parsing a flow sequence'),
        ("? [a]: 3", 'config "job.yaml" is not YAML'),
        (f"sample_k: {'[' * 1000}", 'config "job.yaml" is not YAML: maximum recursion depth exceeded'),
        ("sample_k: ten", 'sample_k must be a whole number, got "ten"'),
        ("sample_k: 010", 'sample_k must be a whole number, got "010"'),
        ("sample_k: 1:30", 'sample_k must be a whole number, got "1:30"'),
        ("sample_k: true", "sample_k must be a whole number, got true"),
        ("sample_k: 2.5", "sample_k must be a whole number, got 2.5"),
        ("sample_k: [3]", "sample_k must be a whole number, got [3]"),
        ("sample_k: null", "sample_k must be a whole number, got null; leave it out for its default"),
        ("device:", "device must be text, got null; leave it out for its default"),
        ("beta: much", 'beta must be a number, got "much"'),
        ("debug: 'yes'", 'debug must be true or false, got "yes"'),
        ("debug: 1", "debug must be true or false, got 1"),
        ("instruct_model_revision: 1234567", "instruct_model_revision must be text, got 1234567; in YAML, put it in"),
        ("on_bad_row: ignore", 'on_bad_row must be skip or error, got "ignore"'),
    ],
)
def test_a_mistake_in_the_yaml_is_named(tmp_path, text, says):
    assert yaml_refusal(tmp_path, text).startswith(says)


def test_a_config_that_cannot_be_read_is_named(tmp_path):
    assert (
        refusal("--config", f"{tmp_path}/no.yaml")
        == f'config "{tmp_path}/no.yaml" cannot be read: No such file or directory'
    )
    assert refusal("--config", str(tmp_path)) == f'config "{tmp_path}" cannot be read: Is a directory'


def test_an_empty_config_is_no_mistake(tmp_path):
    assert parse([*REQUIRED, *with_yaml(tmp_path, "# nothing yet\n")]) == RunConfig(
        instruct_model_path="a", reward_model_path="b", dataset_path="c", work_dir="d"
    )


@pytest.mark.parametrize(
    ("name", "value", "written"),
    [
        ("rewards", ["implicit", "rule"], "write it as text: rewards: implicit,rule"),
        ("columns", {"question": "prompt", "image": "img"}, "write it as text: columns: question=prompt,image=img"),
        ("columns", {"question": "prompt", "image": None}, "write it as text: columns: question=prompt,image="),
        (
            "chat_template_kwargs",
            {"enable_thinking": False},
            "write it as text: chat_template_kwargs: '{\"enable_thinking\": false}'",
        ),
        ("dataset_path", 5, "put it in quotes"),
        ("rewards", [["implicit"]], "put it in quotes"),
        # With a comma, it would be the name of one file.
        ("dataset_path", ["a", "b"], "put it in quotes"),
        ("system", ["INST"], "put it in quotes"),
    ],
)
def test_what_yaml_makes_a_list_or_a_mapping_of_is_told_how_to_be_written(name, value, written, tmp_path):
    values = {"instruct_model_path": "a", "reward_model_path": "b", "dataset_path": "c", "work_dir": "d"}
    (tmp_path / "run.yaml").write_text(json.dumps(values | {name: value}))
    with pytest.raises(UserError) as caught:
        parse(["--config", str(tmp_path / "run.yaml")])
    assert str(caught.value) == f"{name} must be text, got {json.dumps(value)}; in YAML, {written}"
    if ": " in written:
        # The advice is taken.
        advised = [f"{key}: {one}" for key, one in values.items() if key != name] + [written.partition(": ")[2]]
        (tmp_path / "run.yaml").write_text("\n".join(advised))
        parse(["--config", str(tmp_path / "run.yaml"), "--rule", "objects"])
