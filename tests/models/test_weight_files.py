"""Which weight files count, what is wrong with a .bin, and files that change after they were checked."""

import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import adapters
import pytest
import torch
from as_another_user import OBEYS
from folders import replace_weights, weights
from refusals import (
    INDEX,
    SHARD,
    assert_refused,
    check,
    cut,
    load,
    told,
)
from safetensors.torch import load_file, save_file
from sparse_checkpoint import write_checkpoint

from data_engine.models.auto.weights.loading import QUANTISED
from data_engine.models.checkpoints.weight_files import FLOATS
from data_engine.models.native import llava


def test_a_whole_file_wins_over_an_index_left_over_from_another_save(folder, instruct, reward, goldens):
    """The order of transformers; the shards of the first save are those of the other model."""
    shutil.copy(goldens / "llava/reward/model.safetensors", folder)
    torch.testing.assert_close(load(folder).head.weight, reward.head.weight, rtol=0, atol=0)
    (folder / INDEX).write_text("{")
    (folder / SHARD).unlink()
    assert check(folder) == {"instruct": "llava"}
    assert not torch.equal(instruct.head.weight, reward.head.weight)


def test_an_index_of_safetensors_wins_over_a_whole_bin(folder, instruct):
    torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")
    torch.testing.assert_close(load(folder).head.weight, instruct.head.weight, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("share", "command"),
    [("global_step500", "python zero_to_fp32.py . . --safe_serialization"),
     ("pytorch_model_fsdp_0", "accelerate merge-weights pytorch_model_fsdp_0 .")],
)  # fmt: skip
def test_a_checkpoint_in_the_middle_of_a_training_on_several_ranks_is_told_what_makes_it_whole(folder, share, command):
    """DeepSpeed's and FSDP's, as transformers' trainer leaves them."""
    for file in folder.glob("model*"):
        file.unlink()
    (folder / share).mkdir()
    assert_refused(
        folder, f'A trainer left the shares of its ranks in {share}: put them together, by "{command}" in {folder}'
    )


def test_weights_that_were_split_and_not_gathered_are_told_as_that(folder, goldens, tmp_path):
    """ZeRO-3 leaves a rank tensors of no numbers, which are saved as they are: of a model, and of an adapter."""
    replace_weights(folder, weights(folder) | {"lm_head.weight": torch.zeros(0)})
    told = "is empty: DeepSpeed's ZeRO-3 had split the model, and it was saved without its weights being gathered"
    assert_refused(folder, f"lm_head.weight in {folder / 'model.safetensors'} {told}")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    adapter = adapters.write(tmp_path / "adapter", goldens / "llava/reward", {name: torch.zeros(0)})
    assert_refused(adapter, f"{name} in {adapter / 'adapter_model.safetensors'} {told}")


def test_a_trainers_folder_of_checkpoints_is_told_to_name_one(folder):
    shutil.copytree(folder, folder.parent / "out/checkpoint-500")
    shutil.copytree(folder.parent / "openai", folder.parent / "out/openai")
    assert_refused(folder.parent / "out", f"name one, such as {folder.parent / 'out/checkpoint-500'}")
    (folder.parent / "out/checkpoint-1000").mkdir()
    assert_refused(folder.parent / "out", f"name one, such as {folder.parent / 'out/checkpoint-1000'}")
    assert load(folder.parent / "out/checkpoint-500").family == "llava"


@pytest.mark.parametrize("name", ["tokenizer.model", "config.json", SHARD])
def test_a_file_that_this_user_may_not_read_is_told_as_that(folder, name):
    """As of a model that somebody else has downloaded: it is whole, and to download it again would not help."""
    (folder / name).chmod(0)
    code = (
        "from data_engine.models.check import check_folder\n"
        "from data_engine.models.checkpoints.json_files import ModelError\n"
        f"from pathlib import Path\ntry: check_folder(Path({str(folder)!r}))\nexcept ModelError as error: print(error)"
    )
    done = subprocess.run([*OBEYS, sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == f"{folder / name} cannot be read: Permission denied; have it given to this user\n"


def test_a_loaded_model_holds_no_file(folder):
    """A weight that is still mapped would change, or end the process, where another one writes its file. Those of the
    tower are stored in the dtype of the model.
    """
    model = load(folder)
    assert str(folder.parent) not in Path("/proc/self/maps").read_text()
    assert model.family == "llava"


def save_bin(folder: Path, content: object, **options: object) -> Path:
    for file in folder.glob("model*"):
        file.unlink()
    torch.save(content, folder / "pytorch_model.bin", **options)
    return folder / "pytorch_model.bin"


def test_a_bin_from_before_torch_1_6_is_refused_and_the_command_that_is_named_converts_it(folder, instruct):
    folder = folder.rename(folder.with_name('Jane\'s "own" $model'))
    save_bin(folder, weights(folder), _use_new_zipfile_serialization=False)
    assert_refused(folder, "is in the format of torch before 1.6")
    command = told(lambda: check(folder)).partition("rewrite it once: ")[2]
    subprocess.run([sys.executable, *shlex.split(command)[1:]], check=True)
    assert check(folder) == {"instruct": "llava"}
    torch.testing.assert_close(load(folder).head.weight, instruct.head.weight, rtol=0, atol=0)


class Other:
    """An object that a .bin should not hold."""


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: save_bin(f, weights(f)).write_bytes(b""), "pytorch_model.bin is empty"),
        (lambda f: cut(save_bin(f, weights(f))), "pytorch_model.bin is cut or broken"),
        (lambda f: save_bin(f, weights(f)).write_bytes(b"<html>"), "was not written by torch.save"),
        (lambda f: zipfile.ZipFile(save_bin(f, 1), "w").writestr("x", ""), "was not written by torch.save"),
        (lambda f: save_bin(f, {"x": Other()}), "cannot be read with weights_only=True"),
        (lambda f: save_bin(f, [torch.zeros(1)]), "holds a list; expected a dictionary of tensors by name"),
        (lambda f: save_bin(f, {"state_dict": weights(f)}), "holds 'state_dict', which is dict; expected"),
        (lambda f: save_bin(f, {"x": torch.zeros(2, 2).to_sparse()}), "expected dense tensors by name"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse invariant checks", "ignore:Validating sparse tensor")
def test_a_broken_bin_is_refused(folder, spoil, message):
    spoil(folder)
    assert_refused(folder, message)


def bytes_read() -> int:
    """By this process until now, with read and its kin."""
    return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])


def memory() -> int:
    """Peak of resident memory, mapped files included."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def test_of_14_gb_the_headers_alone_are_read(folder, tmp_path):
    # torch and transformers are imported, and allocators warm.
    check(folder)
    folder = tmp_path / "7b"
    assert write_checkpoint(folder) > 13e9
    shard = max(folder.glob("*.safetensors"))
    read, resident = bytes_read(), memory()
    assert check(folder) == {"instruct": "llava"}
    assert bytes_read() - read < 1_000_000
    assert memory() - resident < 300e6
    with open(shard, "r+b") as file:
        file.truncate(shard.stat().st_size - 2)
    assert f"{shard.name} is not a whole safetensors file" in told(lambda: check(folder))


@pytest.mark.parametrize("spoil", [cut, lambda file: file.write_bytes(b""), lambda file: file.unlink()])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_file_that_breaks_between_the_check_and_the_reading_is_an_error_that_names_it(folder, spoil, form):
    if form == "bin":
        save_bin(folder, weights(folder))
    blueprint, *_ = llava.Llava.plan(folder)
    blueprint.matched()
    file = folder / ("pytorch_model.bin" if form == "bin" else SHARD)
    spoil(file)
    assert file.name in told(lambda: blueprint.fill(torch.device("cpu"), torch.float32))


def test_another_shape_between_the_check_and_the_reading_is_an_error_that_names_the_file(folder):
    blueprint, *_ = llava.Llava.plan(folder)
    for file in folder.glob("*.safetensors"):
        save_file({name: torch.zeros(3) for name in load_file(file)}, file)
    assert "changed while it was read" in told(lambda: blueprint.fill(torch.device("cpu"), torch.float32))


def test_floats_that_are_read_are_told_from_quantised_weights_by_their_names():
    """As safetensors names them, float64 too, and torch."""
    assert not list(filter(QUANTISED.fullmatch, [*FLOATS, "torch.float16", "torch.float64", "I64", "torch.int64"]))
    packed = ["F4", "F6_E2M3", "F6_E3M2", "F8_E4M3", "I8", "U8", "U32", "torch.uint8", "torch.float8_e5m2"]
    assert all(map(QUANTISED.fullmatch, packed))
