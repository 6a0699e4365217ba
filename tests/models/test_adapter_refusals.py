"""Adapters that cannot be merged: the check before a run and loading say the same of them, by name."""

import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import adapters
import pytest
import torch
from folders import edit, weights
from refusals import assert_refused, check, cut, load, told
from safetensors.torch import load_file, save_file

from data_engine.commands import main
from data_engine.config import RunConfig
from data_engine.job import by_vllm
from data_engine.models.check import check_models
from data_engine.models.checkpoints.json_files import ModelError

Q = "model.layers.0.self_attn.q_proj.weight"
BY_PEFT = "merge it into its base with peft's merge_and_unload, save that, and pass its folder"


@pytest.fixture
def base(goldens):
    return goldens / "llava/reward"


@pytest.fixture
def adapter(base, tmp_path):
    """One that can be merged, for a test to spoil."""
    made = adapters.matrices({Q: weights(base)[Q]})
    return adapters.write(tmp_path / "adapter", base, adapters.stored(made))


def change(folder, act) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    act(tensors)
    save_file(tensors, file)


def test_as_it_is_it_is_taken(adapter):
    assert (
        check_models(
            RunConfig(instruct_model_path=str(adapter), reward_model_path=str(adapter), dataset_path="q", work_dir="w"),
            ["instruct"],
        )["instruct"].family
        == "llava"
    )
    assert load(adapter).family == "llava"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, "has peft_type 'IA3': of adapters, LORA alone is merged"),
        ({"peft_type": ...}, "has peft_type None"),
        ({"use_dora": True}, "has use_dora True: DoRA is not merged here"),
        ({"bias": "lora_only"}, "has bias 'lora_only': trained biases are not merged here"),
        ({"lora_bias": True}, "has lora_bias True: biases of its own"),
        ({"trainable_token_indices": [1, 2]}, "has trainable_token_indices [1, 2]: trainable tokens"),
        ({"target_parameters": ["experts.up"]}, "has target_parameters ['experts.up']: target_parameters"),
        ({"layer_replication": [[0, 2]]}, "replicated layers"),
        ({"alora_invocation_tokens": [3]}, "activated LoRA"),
        ({"use_qalora": True}, "QA-LoRA"),
        ({"init_lora_weights": "pissa_niter_16"}, "'pissa_niter_16': such an adapter was trained beside a changed bas"),
        ({"init_lora_weights": "olora"}, "'olora': such an adapter was trained beside a changed base"),
        ({"init_lora_weights": "loftq"}, "'loftq': such an adapter was trained beside a changed base"),
        ({"twisted": 2}, "has twisted 2, whose meaning is not known here"),
    ],
)
def test_other_kinds_are_named_and_what_helps(adapter, fields, message):
    edit(adapter / "adapter_config.json", **fields)
    said = told(lambda: check(adapter))
    assert message in said
    assert "adapter_config.json" in said
    assert said.endswith((BY_PEFT, f"For this one, {BY_PEFT}"))
    assert_refused(adapter, message)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": "8"}, "has '8' for r; expected a positive number"),
        ({"r": 0}, "has 0 for r; expected a positive number"),
        ({"lora_alpha": None}, "has None for lora_alpha; expected a positive number"),
        ({"lora_alpha": float("nan")}, "has nan for lora_alpha; expected a positive number"),
        ({"alpha_pattern": {"q_proj": float("inf")}}, "has inf for lora_alpha; expected a positive number"),
        ({"rank_pattern": {"q_proj": 2.5}}, "has 2.5 for r"),
        ({"alpha_pattern": [1]}, "has patterns [1] of lora_alpha; expected an object of numbers"),
        ({"rank_pattern": {"(": 2}}, "has the pattern '(', which is no regular expression"),
    ],
)
def test_fields_that_are_no_numbers(adapter, fields, message):
    edit(adapter / "adapter_config.json", **fields)
    assert_refused(adapter, message)


@pytest.mark.parametrize("start", [False, "gaussian", "eva", "orthogonal"])
def test_ways_to_begin_that_leave_the_base_as_it_is_are_taken(adapter, start):
    edit(adapter / "adapter_config.json", init_lora_weights=start)
    assert load(adapter).family == "llava"


A, B = (f"base_model.model.{Q.removesuffix('.weight')}.lora_{side}.weight" for side in "AB")


def put(name: str, *shape: int, dtype=torch.float32):
    return lambda tensors: tensors.update({name: torch.zeros(shape, dtype=dtype)})


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda tensors: tensors.pop(B), f"{A} in ADAPTER/adapter_model.safetensors has no B: the adapter"),
        (lambda tensors: tensors.pop(A), f"{B} in ADAPTER/adapter_model.safetensors has no A: the adapter"),
        (put(A.replace("layers.0", "layers.7"), 3, 64), "changes model.layers.7.self_attn.q_proj, which its base BASE"),
        (put("base_model.model.model.norm.bias", 64), "changes model.norm.bias, which its base BASE does not have"),
        (put(A, 3, 128), f"{A} in ADAPTER/adapter_model.safetensors is for a weight of shape [64, 128], which has"),
        (put("base_model.model.model.norm.weight", 65), "is for a weight of shape [65], which has shape [64] in its"),
        (put(A, 4, 64), "has shape [4, 64], and B [64, 3], where adapter_config.json gives them the rank 3"),
        (put(A, 3, 64, dtype=torch.int8), "is stored as I8: expected bfloat16, float16 or float32"),
        (put(A.replace("A.weight", "magnitude_vector"), 64), "is no matrix A or B of LoRA"),
        (put(f"base_model.model.{Q}", 64, 64), "as another tensor of the adapter does: remove one"),
        (put(f"base_model.model.{Q.replace('.weight', '.base_layer.weight')}", 65, 64),
         f"name that one as its base. Or it was trained with tokens added to its base: then {BY_PEFT}"),
        (put(A.replace("lora_A.", "lora_A.other."), 3, 64), "as another tensor of the adapter does: remove one"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_land(adapter, base, act, message):
    change(adapter, act)
    assert_refused(adapter, message.replace("ADAPTER", str(adapter)).replace("BASE", str(base)))


def test_more_rows_of_another_width_are_not_taken_for_added_tokens(adapter):
    change(adapter, put(f"base_model.model.{Q.replace('.weight', '.base_layer.weight')}", 65, 128))
    assert told(lambda: check(adapter)).endswith("it was trained on another model; name that one as its base")


def test_a_convolution(adapter):
    name = "base_model.model.model.vision_tower.vision_tower.vision_model.embeddings.patch_embedding.lora_{}.weight"
    change(adapter, put(name.format("A"), 3, 3, 14, 14))
    change(adapter, put(name.format("B"), 32, 3, 1, 1))
    assert_refused(adapter, "for a weight of shape [32, 3, 14, 14]: of a convolution, or of experts in one tensor")


def test_an_adapter_of_another_model(adapter, goldens):
    """By names: the other family's tower; and by shapes."""
    other = goldens / "omnilmm/instruct"
    edit(adapter / "adapter_config.json", base_model_name_or_path=str(other))
    assert_refused(adapter, f"for a weight of shape [64, 64], which has shape [256, 256] in its base {other}: it was")
    change(adapter, lambda tensors: [tensors.pop(A), tensors.pop(B)])
    change(adapter, put("base_model.model.model.mm_projector.0.weight", 64, 32))
    assert_refused(
        adapter, f"changes model.mm_projector.0.weight, which its base {other} does not have: it was trained"
    )


def test_embeddings_that_are_the_head_as_well(adapter, goldens, tmp_path):
    (tmp_path / "openai").symlink_to(goldens / "llava/openai")
    base = shutil.copytree(goldens / "llava/reward", tmp_path / "tied")
    edit(base / "config.json", tie_word_embeddings=True)
    edit(adapter / "adapter_config.json", base_model_name_or_path=str(base))
    for name in ("lm_head", "model.embed_tokens"):
        change(adapter, put(f"base_model.model.{name}.weight", 1000, 64))
        assert_refused(adapter, f"changes {name}", "that weight is both the embeddings and the head")
        change(adapter, lambda tensors, name=name: tensors.pop(f"base_model.model.{name}.weight"))


@pytest.mark.parametrize(
    ("name", "weights"), [("reward", "model.safetensors"), ("instruct", "model.safetensors.index.json")]
)
def test_whole_weights_beside_an_adapter(adapter, goldens, tmp_path, name, weights):
    """Until now such an adapter was ignored without a word; nothing tells whether it is merged already."""
    both = shutil.copytree(goldens / "llava" / name, tmp_path / "both")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapter / name, both)
    said = f"{both} holds whole weights ({weights}) and an adapter (adapter_config.json), and nothing says"
    assert_refused(both, said)
    edit(adapter / "adapter_config.json", base_model_name_or_path=str(both))
    assert_refused(adapter, said)


def test_a_quantised_base(adapter, base, tmp_path):
    quantised = shutil.copytree(base, tmp_path / "quantised")
    edit(quantised / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    edit(adapter / "adapter_config.json", base_model_name_or_path=str(quantised))
    said = told(lambda: check(adapter, "reward"))
    assert (
        f"the base model {quantised} of {adapter} has a quantization_config (bitsandbytes) in its config.json" in said
    )
    assert said.endswith("name the model that it was made from by --reward_base_model_path")


def test_a_base_that_is_an_adapter_itself(adapter, base, tmp_path):
    first = adapters.write(tmp_path / "first", base, {})
    edit(adapter / "adapter_config.json", base_model_name_or_path=str(first))
    said = told(lambda: check(adapter, "reward"))
    assert f"the base model {first} of {adapter} is an adapter itself: merge it into its own base first" in said
    assert said.endswith("name its folder by --reward_base_model_path")


def test_files_that_are_missing_or_broken(adapter):
    file = adapter / "adapter_model.safetensors"
    cut(file)
    assert_refused(adapter, f"{file} is not a whole safetensors file")
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert_refused(adapter, f"{file} is a Git LFS pointer")
    save_file({}, file)
    assert_refused(adapter, f"the adapter {adapter} holds no tensor")
    file.unlink()
    assert_refused(adapter, f"{adapter} has adapter_config.json, but no weights of an adapter: expected adapter_model")
    (adapter / "adapter_config.json").write_text("{")
    assert_refused(adapter, f"{adapter / 'adapter_config.json'} cannot be read as JSON")


@pytest.mark.parametrize("role", ["instruct", "reward"])
@pytest.mark.parametrize("named", ["/data/of/another/machine/llava", None])
def test_a_base_that_is_not_there_and_the_flag_that_names_it(adapter, role, named):
    edit(adapter / "adapter_config.json", base_model_name_or_path=named)
    said = told(lambda: check(adapter, role))
    assert said.startswith(f'--{role}_model_path "{adapter}": {adapter / "adapter_config.json"} ')
    assert (named or "base_model_name_or_path") in said
    assert f"by --{role}_base_model_path" in said


def test_a_base_by_a_flag_that_is_not_there_or_not_needed(adapter, base):
    settings = dict(instruct_base_model_path="/no/such/folder")
    config = RunConfig(
        instruct_model_path=str(adapter), reward_model_path=str(base), dataset_path="q", work_dir="w", **settings
    )
    said = told(lambda: check_models(config, ["instruct"]))
    assert '--instruct_base_model_path "/no/such/folder": ' in said
    config = RunConfig(
        instruct_model_path=str(adapter),
        reward_model_path=str(base),
        dataset_path="q",
        work_dir="w",
        reward_base_model_path=str(base),
    )
    said = told(lambda: check_models(config, ["reward"]))
    assert said == (
        f'--reward_model_path "{base}": --reward_base_model_path is for an adapter, and {base} has no '
        "adapter_config.json: leave it out"
    )


def test_what_lacks_in_the_base_is_told_of_the_base(adapter, base, goldens, tmp_path):
    """And not of the folder of links that the two are read from."""
    (tmp_path / "openai").symlink_to(goldens / "llava/openai")
    other = shutil.copytree(base, tmp_path / "base")
    edit(adapter / "adapter_config.json", base_model_name_or_path=str(other))
    edit(other / "config.json", mm_use_im_start_end=True)
    assert_refused(adapter, f"{other / 'config.json'} has mm_use_im_start_end True")
    (other / "config.json").unlink()
    assert_refused(adapter, f"{adapter} (an adapter of {other}) has no config.json")


def test_vllm_takes_whole_models_alone(adapter):
    config = RunConfig(
        instruct_model_path=str(adapter), reward_model_path=str(adapter), dataset_path="q", work_dir="w", sampler="vllm"
    )
    checked = check_models(config, ["instruct"])["instruct"]
    with pytest.raises(ModelError, match="is an adapter, and sampler vllm takes whole models: merge it") as caught:
        by_vllm.check(config, checked, "cpu")
    assert str(caught.value).startswith(f'--instruct_model_path "{adapter}": {adapter} is an adapter')
    assert find_spec("vllm") is None, "the refusal must not wait for vLLM"


@pytest.mark.parametrize("command", ["run", "validate"])
def test_the_commands_end_with_2_and_no_traceback(adapter, goldens, tmp_path, capsys, command):
    edit(adapter / "adapter_config.json", use_dora=True)
    flags = {"instruct_model_path": goldens / "llava/instruct", "reward_model_path": adapter}
    flags |= {"dataset_path": goldens / "llava/dataset/questions.parquet", "work_dir": tmp_path / "work"}
    assert main.main([command, *(f"--{name}={value}" for name, value in flags.items()), "--device=cpu"]) == 2
    error = capsys.readouterr().err
    where = adapter / "adapter_config.json"
    assert f'error: --reward_model_path "{adapter}": {where} has use_dora True: DoRA is not merged here' in error
    assert "Traceback" not in error
    assert not (tmp_path / "work/run.json").exists()


def test_nothing_is_left_of_the_folders_of_links(adapter):
    module = "data_engine.models.checkpoints.adapter_folder"
    code = f"""if True:
        import os, sys
        from {module} import model_folder
        folder = model_folder(sys.argv[1])
        if (forked := os.fork()) == 0:
            sys.exit()
        os.waitpid(forked, 0)
        print(folder.exists(), folder, end="")
    """
    done = subprocess.run([sys.executable, "-c", code, str(adapter)], capture_output=True, text=True, check=True)
    was_there, made = done.stdout.split(" ", 1)
    assert was_there == "True", "the end of a forked process is not that of the process"
    assert made.startswith(tempfile.gettempdir())
    assert not Path(made).exists()
