import contextlib
from dataclasses import fields

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data_engine.commands.arguments import help_texts, parse
from data_engine.config import RunConfig
from data_engine.errors import UserError
from data_engine.flags import CALLED_ELSEWHERE, FIELD_NAMES

REQUIRED = ["--instruct_model_path", "a", "--reward_model_path", "b", "--dataset_path", "c", "--work_dir", "d"]


def refusal(*flags: str) -> str:
    with pytest.raises(UserError) as caught:
        parse([*REQUIRED, *flags])
    return str(caught.value)


# Defaults and values


def test_the_required_flags_are_enough():
    config = parse(REQUIRED)
    assert config == RunConfig(instruct_model_path="a", reward_model_path="b", dataset_path="c", work_dir="d")


def test_the_defaults_are_those_of_the_flag_table():
    config = parse(REQUIRED)
    assert (config.sample_k, config.rank, config.distance, config.beta) == (10, 3, 25, 0.1)
    assert (config.temperature, config.top_k, config.top_p, config.repetition_penalty) == (0.7, 50, 1.0, 1.0)
    assert (config.max_new_tokens, config.seed, config.max_megapixels, config.limit) == (512, 0, 64, None)
    assert (config.num_shards, config.shard_index, config.unit_size, config.threads) == (1, 0, None, None)
    assert (config.dtype, config.device, config.zero3, config.on_bad_row) == ("auto", "auto", "auto", "skip")
    assert (config.dataset_split, config.image_root) == (None, None)
    assert (config.same_pixels, config.debug, config.exif) == (False, False, "apply")


def test_defect_23_a_run_starts_from_scratch_by_default():
    config = parse(REQUIRED)
    assert (config.continue_from_stage, config.stop_after_stage) == (0, 2)


def test_defect_24_a_boolean_flag_takes_no_value_so_none_can_be_misread():
    assert parse([*REQUIRED, "--debug", "--sample_k", "4"]).debug is True
    assert parse([*REQUIRED, "--same_pixels"]).same_pixels is True
    says = '--debug takes no value, got "False"; leave it out to keep it off'
    assert (refusal("--debug", "False"), refusal("--debug=False")) == (says, says)


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        (["--sample_k", "4"], "sample_k", 4),
        (["--sample_k=4"], "sample_k", 4),
        (["--beta", "1e-2"], "beta", 0.01),
        (["--temperature", "0"], "temperature", 0.0),
        (["--unit_size", "auto"], "unit_size", None),
        (["--unit_size", "16"], "unit_size", 16),
        (["--threads", "auto"], "threads", None),
        (["--zero3", "on"], "zero3", "on"),
        (["--zero3", "off"], "zero3", "off"),
        (["--dataset_split", "null"], "dataset_split", "null"),
        (["--instruct_model_revision", "1234567"], "instruct_model_revision", "1234567"),
        (["--device", "cuda:1"], "device", "cuda:1"),
    ],
)
def test_a_flag_is_read(flags, name, value):
    assert getattr(parse([*REQUIRED, *flags]), name) == value


def test_a_whole_number_in_a_fractional_field_equals_the_fraction():
    assert repr(parse([*REQUIRED, "--beta", "1"])) == repr(parse([*REQUIRED, "--beta", "1.0"]))


def test_a_home_folder_is_found_where_the_shell_did_not(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert parse([*REQUIRED, "--work_dir=~/runs"]).work_dir == "/home/me/runs"
    assert parse([*REQUIRED, "--rule=~/rule.py:score"]).rule == "/home/me/rule.py:score"
    # A user that this machine does not have.
    assert parse([*REQUIRED, "--work_dir=~no-such-user/runs"]).work_dir == "~no-such-user/runs"


# Mistakes in flags


def test_all_missing_flags_are_named_at_once():
    with pytest.raises(UserError) as caught:
        parse(["--dataset_path", "c"])
    assert str(caught.value) == (
        "missing: --instruct_model_path, --reward_model_path, --work_dir; "
        "give each as a flag, or by its name in the YAML of --config"
    )


def test_names_of_other_programs_stand_for_flags_and_are_none():
    assert {*CALLED_ELSEWHERE.values()} <= {*FIELD_NAMES}
    assert not {*CALLED_ELSEWHERE} & {*FIELD_NAMES}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--sampel_k", "3"], "unknown flag --sampel_k; did you mean --sample_k?"),
        (["--sample-k", "3"], "unknown flag --sample-k; did you mean --sample_k?"),
        (["--sample", "3"], "unknown flag --sample; did you mean --sampler?"),
        (["--num-samples", "3"], "unknown flag --num-samples; did you mean --sample_k?"),
        (["--k=3"], "unknown flag --k; did you mean --sample_k?"),
        (["--output_dir", "x"], "unknown flag --output_dir; did you mean --work_dir?"),
        (["--instruct_model", "x"], "unknown flag --instruct_model; did you mean --instruct_model_"),
        (["--temp", "1"], "unknown flag --temp; did you mean --temperature?"),
        (["--split", "train"], "unknown flag --split; did you mean --dataset_split?"),
        (["--fromat", "trl"], "unknown flag --fromat; did you mean --export?"),
        (["--modle", "x"], "unknown flag --modle; did you mean --instruct_model_path?"),
        (["--model_name", "x"], "unknown flag --model_name; did you mean --instruct_model_name?"),
        (["--system_prompt", "x"], "unknown flag --system_prompt; did you mean --system?"),
        (["--Beta=1"], "unknown flag --Beta; did you mean --beta?"),
        # What is like them by some letters alone: system, unit_size, rule, beta, limit.
        (["--tems", "1"], "unknown flag --tems; data-engine run --help lists all"),
        (["--batch_size", "8"], "unknown flag --batch_size; data-engine run --help lists all"),
        # By what others call dtype and limit: precision, num_questions.
        (["--revision", "main"], "unknown flag --revision; data-engine run --help lists all"),
        (["--questions", "q.parquet"], "unknown flag --questions; did you mean --dataset_path?"),
        (["--resume"], "unknown flag --resume; data-engine run --help lists all"),
        (["--extra", "1"], "unknown flag --extra; data-engine run --help lists all"),
        (["--lookahead"], "--lookahead is gone: on a GPU the next unit always starts"),
        (["--xyzzy=1"], "unknown flag --xyzzy; data-engine run --help lists all"),
        (["stray"], "unrecognized arguments: stray; flags are written --name value"),
        (["-k", "3"], "unrecognized arguments: -k 3; flags are written --name value"),
        # What a shell makes of data/*.parquet.
        (
            ["--dataset_path", "a.parquet", "b.parquet"],
            "unrecognized arguments: b.parquet; flags are written --name "
            "value, with one value each, and a folder stands for its files",
        ),
        (["configs/demo.yaml"], "unrecognized arguments: configs/demo.yaml; a configuration is given as --config FILE"),
        (["--sample_k"], "argument --sample_k: expected one argument"),
        (["--sample_k", "ten"], 'sample_k must be a whole number, got "ten"'),
        (["--sample_k", "1"], "sample_k must be at least 2 to form a pair, got 1"),
        (["--sample_k", "-3"], "sample_k must be at least 2 to form a pair, got -3"),
        (["--rank", "0"], "rank must be at least 1, got 0"),
        (["--rank", "11"], "rank must be at most sample_k, 10, got 11"),
        (["--distance", "0"], "distance must be at least 1, got 0"),
        (["--limit", "0"], "limit must be at least 1, got 0"),
        # YAML 1.1 reads 8, and 90.
        (["--limit", "010"], 'limit must be a whole number, got "010"'),
        (["--num_shards", "100", "--shard_index", "-010"], 'shard_index must be a whole number, got "-010"'),
        (["--beta", "1:30"], 'beta must be a number, got "1:30"'),
        (["--beta", "0"], "beta must be above 0, got 0.0"),
        (["--beta", ".inf"], "beta must be a finite number, got Infinity"),
        (["--temperature", "-1"], "temperature must be at least 0 (0 is greedy), got -1.0"),
        (["--temperature", ".nan"], "temperature must be a finite number, got NaN"),
        (["--top_k", "-1"], "top_k must be at least 0 (0 is off), got -1"),
        (["--top_p", "0"], "top_p must be above 0 and at most 1 (1 is off), got 0.0"),
        (["--repetition_penalty", "0"], "repetition_penalty must be above 0, got 0.0"),
        (["--max_new_tokens", "0"], "max_new_tokens must be at least 1, got 0"),
        (["--max_megapixels", "0"], "max_megapixels must be above 0, got 0.0"),
        (["--seed", "-1"], "seed must be between 0 and 2**63 - 1, got -1"),
        (["--num_shards", "3", "--shard_index", "3"], "shard_index must be between 0 and num_shards - 1, 2, got 3"),
        (["--continue_from_stage", "3"], "continue_from_stage must be 0 (sample), 1 (score) or 2 (pair), got 3"),
        (
            ["--continue_from_stage", "2", "--stop_after_stage", "1"],
            "continue_from_stage 2 lies after stop_after_stage 1",
        ),
        (["--dtype", "fp16"], 'dtype must be auto, float32, bfloat16 or float16, got "fp16"'),
        (["--zero3", "maybe"], 'zero3 must be auto, on or off, got "maybe"'),
        (["--device", "gpu"], 'device must be auto, cpu, cuda or cuda:N, got "gpu"'),
        (["--work_dir", ""], "work_dir is empty; is a shell variable unset?"),
        # 2**63 and more, which were said to be too small.
        (["--limit", "9223372036854775808"], "limit must be at most 2**63 - 1, got 9223372036854775808"),
        (["--top_k", "9223372036854775808"], "top_k must be at most 2**63 - 1, got 9223372036854775808"),
        (["--system", "-x"], "argument --system: expected one argument; flags are written --name value, and --name="),
        (["--config", "a.yaml", "--config=b.yaml"], "--config is given twice; name one file"),
    ],
)
def test_a_mistake_in_the_flags_is_named(flags, says):
    assert refusal(*flags).startswith(says)


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        # A flag without a default takes the forms of numbers that one with a default takes.
        (["--min_margin", "1e-3"], "min_margin", 0.001),
        (["--right", "-.5"], "right", -0.5),
        (["--min_margin", "-1e-1"], "min_margin", -0.1),
        (["--max_margin", "-2"], "max_margin", -2.0),
        (["--near_duplicates=9E-1"], "near_duplicates", 0.9),
        (["--beta", "1e-3"], "beta", 0.001),
    ],
)
def test_a_number_may_have_an_exponent_and_a_sign(flags, name, value):
    strategy = ["--strategy", "right_wrong"] if name == "right" else []
    assert getattr(parse([*REQUIRED, *flags, *strategy]), name) == value


@given(name=st.sampled_from(FIELD_NAMES), value=st.text(max_size=8) | st.integers().map(str) | st.floats().map(str))
@example(name="sample_k", value="{a: 1}")
@example(name="limit", value="[1")
@example(name="threads", value="2020-01-01")
@example(name="top_k", value="9" * 400)
@example(name="beta", value="9" * 400)
def test_any_value_makes_a_configuration_or_a_message(name, value):
    # Any other exception would be a traceback on the user's screen.
    with contextlib.suppress(UserError):
        assert isinstance(parse([*REQUIRED, f"--{name}={value}"]), RunConfig)


def test_every_field_has_a_help_text():
    texts = help_texts()
    assert set(texts) == {field.name for field in fields(RunConfig)}
    assert all(text.strip() for text in texts.values())


# What a model is asked


def test_columns_are_read_as_names_by_names():
    config = parse([*REQUIRED, "--columns", "question=prompt, image = picture,system="])
    assert config.column_names == {"question": "prompt", "image": "picture", "system": ""}
    assert parse(REQUIRED).column_names == {}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("question", 'columns must be like question=prompt,image=picture, got "question"'),
        ("question=prompt,", 'columns must be like question=prompt,image=picture, got ""'),
        ("prompt=question", 'columns names "prompt", which is not one of idx, question, image, images, messages, sys'),
        ("question=a,question=b", "columns names question twice"),
        (" ", "columns is empty; is a shell variable unset?"),
    ],
)
def test_columns_that_cannot_be_meant_are_refused(value, says):
    assert refusal("--columns", value).startswith(says)


def test_columns_with_the_old_name_first_are_answered_with_the_order_that_is_read():
    assert refusal("--columns", "id=idx").endswith("; did you mean idx=id?")
    assert refusal("--columns", "promt=question").endswith("; did you mean question=promt?")
    assert refusal("--columns", "imag=file").endswith("; did you mean image?")


def test_a_chat_template_is_read_once(tmp_path):
    path = tmp_path / "template.jinja"
    path.write_bytes("{{ messages }}\né".encode())
    config = parse([*REQUIRED, "--chat_template", str(path)])
    path.unlink()
    assert (config.chat_template, config.chat_template_text) == (str(path), "{{ messages }}\né")
    assert parse(REQUIRED).chat_template_text is None


def test_a_chat_template_that_is_none_is_refused(tmp_path):
    path = tmp_path / "template.jinja"
    says = f'chat_template "{path}"'
    assert refusal("--chat_template", str(path)).startswith(f"{says} cannot be read: No such file or directory; name a")
    path.write_text(" \n")
    assert refusal("--chat_template", str(path)).startswith(f"{says} is empty; without the flag, the model's own")
    path.write_bytes(b"caf\xe9")
    assert refusal("--chat_template", str(path)).startswith(f"{says} is not text in UTF-8; name a file with a Jinja")
    assert refusal("--chat_template", str(tmp_path)).startswith(f'chat_template "{tmp_path}" cannot be read: Is a dir')
    assert refusal("--chat_template", "nul\0").startswith('chat_template "nul')


def test_arguments_of_the_chat_template_are_an_object():
    config = parse([*REQUIRED, "--chat_template_kwargs", '{"enable_thinking": false}'])
    assert config.template_kwargs("instruct") == {"enable_thinking": False}
    assert parse(REQUIRED).template_kwargs("instruct") == {}


@pytest.mark.parametrize("value", ["enable_thinking=false", "[1]", "5", '"a"', "null", "{", "[" * 99999, "{'a': 1}"])
def test_arguments_of_the_chat_template_that_are_no_object_are_refused(value):
    says = refusal("--chat_template_kwargs", value)
    assert says.startswith('chat_template_kwargs must be a JSON object like {"enable_thinking": false}, got "')
    assert len(says) < 300


def test_arguments_that_the_engine_gives_to_the_chat_template_are_refused():
    says = refusal("--chat_template_kwargs", '{"tokenize": false, "a": 1, "add_generation_prompt": true}')
    assert says == "chat_template_kwargs has add_generation_prompt, tokenize, which the engine sets itself; take it out"


@pytest.mark.parametrize("role", ["yesno", "scalar", "critic"])
def test_a_judge_has_arguments_of_its_chat_template_of_its_own(role):
    flag = f"{role}_chat_template_kwargs"
    config = parse([*REQUIRED, f"--{flag}", '{"enable_thinking": false}', "--chat_template_kwargs", '{"a": 1}'])
    for one in ("instruct", "reward", "yesno", "scalar", "critic"):
        expected = {"a": 1} if one in ("instruct", "reward") else {"enable_thinking": False} if one == role else {}
        assert config.chat_of(one).kwargs == expected
        assert config.chat_of(one).template is None
    assert refusal(f"--{flag}", "[1]").startswith(
        f'{flag} must be a JSON object like {{"enable_thinking": false}}, got'
    )
    assert refusal(f"--{flag}", '{"tokenize": 1}') == f"{flag} has tokenize, which the engine sets itself; take it out"


def test_require_fast_is_off_unless_it_is_asked_for():
    assert (parse(REQUIRED).require_fast, parse([*REQUIRED, "--require_fast"]).require_fast) == (False, True)
