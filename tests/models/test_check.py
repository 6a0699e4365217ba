"""What is wrong with a checkpoint is told before the work, from headers alone, as loading would tell it."""

import json
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from folders import edit, replace_weights, weights
from safetensors.torch import load_file, save_file

from data_engine import load_model
from data_engine.commands import main
from data_engine.config import RunConfig
from data_engine.models import llava
from data_engine.models.check import check_models
from data_engine.models.checkpoint import headers
from data_engine.models.registry import ModelError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4989345432\n"
SHARD = "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
TOWER = "../openai/clip-vit-large-patch14-336"


@pytest.fixture
def folder(goldens, tmp_path) -> Path:
    """A copy of a LLaVA checkpoint in two shards, with CLIP beside it."""
    shutil.copytree(goldens / "llava/openai", tmp_path / "openai")
    return Path(shutil.copytree(goldens / "llava/instruct", tmp_path / "model"))


@pytest.fixture
def omni(goldens, tmp_path) -> Path:
    return Path(shutil.copytree(goldens / "omnilmm/instruct", tmp_path / "omni"))


def check(folder: Path, role: str = "instruct") -> dict[str, str]:
    return check_models(RunConfig(str(folder), str(folder), "q", "w"), [role])


def load(folder: Path):
    return load_model(None, str(folder), device="cpu", dtype="float32")


def told(act: Callable[[], object]) -> str:
    with pytest.raises(ModelError) as caught:
        act()
    return str(caught.value)


def assert_refused(folder: Path, *words: str) -> None:
    """By the check, and with the same sentence by loading."""
    prefix = f'--instruct_model_path "{folder}": '
    said = told(lambda: check(folder))
    assert said.startswith(prefix)
    for word in words:
        assert word in said
    assert told(lambda: load(folder)) == said.removeprefix(prefix)


def set_header(file: Path, change: Callable[[dict], object]) -> None:
    """Rewrite the header of a safetensors file, its weights as they are."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    text = json.dumps(change(header) or header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def set_weight_map(folder: Path, **files: object) -> None:
    found = json.loads((folder / INDEX).read_text())["weight_map"]
    edit(folder / INDEX, weight_map=found | files)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-4])


def pad(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0" * 4)


def first(header: dict) -> dict:
    return next(told for name, told in header.items() if name != "__metadata__")


def without_first(header: dict) -> dict:
    return {name: told for name, told in header.items() if told.get("data_offsets", [1])[0] != 0}


def test_whole_checkpoints_pass(goldens):
    assert check(goldens / "llava/instruct") == {"instruct": "llava"}
    assert check(goldens / "llava/reward", "reward") == {"reward": "llava"}
    assert check(goldens / "omnilmm/instruct", "reward") == {"reward": "omnilmm"}


def test_the_flag_of_the_model_is_named(folder):
    (folder / SHARD).write_bytes(b"")
    assert told(lambda: check(folder, "reward")).startswith(
        f'--reward_model_path "{folder}": {folder / SHARD} is empty'
    )


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model", INDEX, SHARD, f"{TOWER}/config.json",
                                  f"{TOWER}/model.safetensors"])  # fmt: skip
def test_a_git_lfs_pointer_is_named_as_such(folder, name):
    (folder / name).write_bytes(POINTER)
    assert_refused(folder, f"{Path(name).name} is a Git LFS pointer, not the file itself", "git lfs pull")


@pytest.mark.parametrize("name", ["tokenizer.json", "added_tokens.json", "tokenizer_config.json", "model.safetensors"])
def test_a_git_lfs_pointer_in_an_omnilmm_checkpoint_is_named_as_such(omni, name):
    if name == "tokenizer.json":
        (omni / "tokenizer.model").unlink()
    (omni / name).write_bytes(POINTER)
    assert_refused(omni, f"{name} is a Git LFS pointer, not the file itself", "git lfs pull")


@pytest.mark.parametrize("kind", ["bin", "bin.index.json"])
def test_a_git_lfs_pointer_in_the_place_of_a_bin_is_named_as_such(folder, kind):
    for file in folder.glob("model*"):
        file.unlink()
    (folder / f"pytorch_model.{kind}").write_bytes(POINTER)
    assert_refused(folder, f"pytorch_model.{kind} is a Git LFS pointer", "git lfs pull")


WRONG_FILES = [
    (lambda f: (f / SHARD).unlink(), f"names 1 weight files that are missing: {SHARD}"),
    (lambda f: (f / SHARD).write_bytes(b""), f"{SHARD} is empty"),
    (lambda f: (f / SHARD).write_bytes(b"<html>not found</html>"), "its header should be"),
    (lambda f: (f / SHARD).write_bytes(b"\x08"), "not a whole safetensors file"),
    (lambda f: cut(f / SHARD), "not a whole safetensors file"),
    (lambda f: pad(f / SHARD), "not a whole safetensors file"),
    (lambda f: (f / SHARD).write_bytes(struct.pack("<Q", 2) + b"[]"), "its header is no JSON object"),
    (lambda f: (f / SHARD).write_bytes(struct.pack("<Q", 3) + b"{x}"), "not a whole safetensors file"),
    (lambda f: set_header(f / SHARD, lambda h: first(h).pop("dtype") and None), "its header does not describe"),
    (lambda f: set_header(f / SHARD, lambda h: first(h).update(dtype="F17")), "its header does not describe"),
    (lambda f: set_header(f / SHARD, lambda h: first(h).update(shape=[-1, 64])), "its header does not describe"),
    (lambda f: set_header(f / SHARD, lambda h: first(h).update(shape=[1])), "has shape [1] in"),
    (lambda f: set_header(f / SHARD, without_first), "of the weights, expected 0"),
    (lambda f: (f / INDEX).write_text("{"), f"{INDEX} cannot be read as JSON"),
    (lambda f: (f / INDEX).write_text("{}"), f"{INDEX} has no weight_map"),
    (lambda f: edit(f / INDEX, weight_map={}), f"{INDEX} has no weight_map"),
    (lambda f: edit(f / INDEX, weight_map=[SHARD]), f"{INDEX} has no weight_map"),
    (lambda f: set_weight_map(f, x=7), "gives x the file 7; expected the name of a file beside it"),
    (lambda f: set_weight_map(f, x="../model/" + SHARD), "expected the name of a file beside it"),
    (lambda f: set_weight_map(f, x=str(f / SHARD)), "expected the name of a file beside it"),
    (lambda f: set_weight_map(f, x=".."), "expected the name of a file beside it"),
    (lambda f: set_weight_map(f, x=SHARD), f"says that {SHARD} holds x, but it does not"),
    (lambda f: shutil.copy(f / SHARD, f / "model-00001-of-00002.safetensors"), "stands in two files"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), WRONG_FILES)
def test_weight_files_that_are_not_whole_are_refused(folder, spoil, message):
    spoil(folder)
    assert_refused(folder, message)


def config(name: str = "config.json", **fields: object):
    return lambda folder: edit(folder / name, **fields)


WRONG_CONFIGS = [
    (lambda f: (f / "config.json").unlink(), "has no config.json"),
    (lambda f: (f / "config.json").write_text("{"), "cannot be read as JSON"),
    (lambda f: (f / "config.json").write_text("[" * 100_000), "cannot be read as JSON"),
    (lambda f: (f / "config.json").write_text("[]"), "must hold a JSON object, got list"),
    (config(model_type=["llava"]), "model_type ['llava']; known: llava, llava_llama"),
    (config(hidden_size="64"), "hidden_size '64'; expected a positive integer"),
    (config(hidden_size=0), "hidden_size 0; expected a positive integer"),
    (config(num_hidden_layers=True), "num_hidden_layers True; expected a positive integer"),
    (config(num_attention_heads=0), "num_attention_heads 0; expected a positive integer"),
    (config(vocab_size=10**12), "vocab_size 1000000000000; expected a positive integer"),
    (config(num_hidden_layers=500), "num_hidden_layers 500, but there are only"),
    (config(vocab_size=999), "vocab_size 999, but the tokenizer beside it gives ids up to 999"),
    (config(vocab_size=1001), "shape [1000, 64], config.json makes it [1001, 64]"),
    (config(num_hidden_layers=3), "lacks 9 weights that config.json asks for: decoder.layers.2."),
    (config(num_hidden_layers=1), "unexpected weight model.layers.1."),
    (config(hidden_act="none"), "does not describe a model of its model_type (KeyError"),
    (config(rope_scaling=3), "does not describe a model of its model_type"),
    (config(text_config="large"), "has no text_config"),
    (config(text_config={}, vision_config=[]), "has no vision_config"),
    (config(text_config={}, vision_config={"model_type": "siglip_vision_model"}), "type 'siglip_vision_model'"),
    (config(text_config={}, vision_config={"image_size": "big"}), "image_size 'big'; expected a positive integer"),
    (config(mm_vision_select_layer=[-2]), "selects vision layer [-2]"),
    (config(mm_vision_select_feature=["patch"]), "selects vision feature ['patch']"),
    (config(mm_vision_tower=7), "has no mm_vision_tower"),
    (config(mm_vision_tower="a\0b"), "mm_vision_tower 'a\\x00b'"),
    (config(mm_vision_tower="x" * 5000), "mm_vision_tower 'xxx"),
    (config(quantization_config={"quant_method": "bitsandbytes"}), "quantization_config (bitsandbytes): quantised"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), WRONG_CONFIGS)
def test_a_malformed_config_is_refused(folder, spoil, message):
    spoil(folder)
    assert_refused(folder, message)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (config(hidden_size="128"), "hidden_size '128'; expected a positive integer"),
        (config(num_hidden_layers=500), "num_hidden_layers 500, but there are only"),
        (lambda f: (f / "added_tokens.json").write_text('{"<im_start>": "a"}'), "does not list its added tokens by id"),
        (config("tokenizer_config.json", added_tokens_decoder=[1]), "does not list its added tokens by id"),
        (config("tokenizer_config.json", added_tokens_decoder={"x": {}}), "does not list its added tokens by id"),
        (lambda f: replace_weights(f, weights(f) | {"model.vision_tower.pos_embed": torch.zeros(5)}), "shape [5]"),
    ],
)
def test_a_malformed_omnilmm_checkpoint_is_refused(omni, spoil, message):
    spoil(omni)
    assert_refused(omni, message)


def replace(name: str, value: torch.Tensor):
    return lambda folder: replace_weights(folder, weights(folder) | {name: value})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (replace("lm_head.weight", torch.zeros(7, 64)), "shape [7, 64], config.json makes it [1000, 64]"),
        (replace("model.box_head", torch.zeros(2)), "unexpected weight model.box_head"),
        (replace("language_model.lm_head.weight", torch.zeros(1000, 64)), "are the same weight by two names"),
        (replace("lm_head.weight", torch.zeros(1000, 64).to(torch.float8_e4m3fn)), "is stored as F8_E4M3: quantised"),
        (replace("lm_head.weight", torch.zeros(1000, 64, dtype=torch.int8)), "is stored as I8: quantised"),
        (lambda f: replace_weights(f, {n: v for n, v in weights(f).items() if "norm" not in n}), "lacks 5 weights"),
    ],
)
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_names_shapes_and_dtypes_are_those_that_config_json_asks_for(folder, spoil, message, form):
    spoil(folder)
    if form == "bin":
        torch.save(weights(folder), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        message = message.replace("F8_E4M3", "torch.float8_e4m3fn").replace("I8", "torch.int8")
    assert_refused(folder, message)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: shutil.rmtree(f / TOWER), "no CLIP tower 'openai/clip-vit-large-patch14-336': looked in"),
        (
            lambda f: cut((f / TOWER / "model.safetensors").resolve()),
            "patch14-336/model.safetensors is not a whole",
        ),
        (lambda f: (f / TOWER / "model.safetensors").write_bytes(b""), "model.safetensors is empty"),
        (lambda f: (f / TOWER / "model.safetensors").unlink(), "openai/clip-vit-large-patch14-336 has no weights"),
        (config(f"{TOWER}/config.json", vision_config="x"), "has vision_config 'x'; expected an object"),
        (
            config(f"{TOWER}/config.json", vision_config={"hidden_size": 0}),
            "hidden_size 0; expected a positive integer",
        ),
        (lambda f: clip_without(f / TOWER, "pre_layrnorm"), "336 lacks 2 weights that config.json asks for: vision"),
        (lambda f: clip_without(f / TOWER, "patch_embedding", torch.zeros(3, 3)), "shape [3, 3], config.json makes it"),
    ],
)
@pytest.mark.parametrize("role", ["instruct", "reward"])
def test_the_clip_tower_is_checked_too_and_the_flag_named_of_the_model_that_asks_for_it(
    folder, monkeypatch, spoil, message, role
):
    monkeypatch.setattr("data_engine.models.llava_config.fetch", lambda name: told_missing(name))
    spoil(folder)
    said = told(lambda: check(folder, role))
    assert said.startswith(f'--{role}_model_path "{folder}": ')
    assert message in said
    assert told(lambda: load(folder)) in said


def told_missing(name: str) -> Path:
    raise ModelError(f"{name!r} is no local folder")


def clip_without(tower: Path, part: str, value: torch.Tensor | None = None) -> None:
    found = load_file(tower / "model.safetensors")
    replaced = {name: value if part in name else tensor for name, tensor in found.items()}
    save_file({name: tensor for name, tensor in replaced.items() if tensor is not None}, tower / "model.safetensors")


@pytest.mark.parametrize("with_config", [True, False])
def test_an_adapter_is_named_and_how_to_merge_it(folder, with_config):
    for file in folder.glob("model*"):
        file.unlink()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "base/7b"}))
    save_file({"base_model.model.x.lora_A.weight": torch.zeros(2)}, folder / "adapter_model.safetensors")
    if not with_config:
        (folder / "config.json").unlink()
    assert_refused(folder, "holds an adapter of peft (LoRA)", "merge it into its base base/7b", "merge_and_unload")
    edit(folder / "adapter_config.json", peft_type="IA3")
    assert_refused(folder, "holds an adapter of peft (IA3)")


def test_a_whole_file_wins_over_an_index_left_over_from_another_save(folder, instruct, reward, goldens):
    """The order of transformers; the shards of the first save are those of the other model."""
    shutil.copy(goldens / "llava/reward/model.safetensors", folder)
    torch.testing.assert_close(load(folder).head_weight, reward.head_weight, rtol=0, atol=0)
    (folder / INDEX).write_text("{")
    (folder / SHARD).unlink()
    assert check(folder) == {"instruct": "llava"}
    assert not torch.equal(instruct.head_weight, reward.head_weight)


def test_an_index_of_safetensors_wins_over_a_whole_bin(folder, instruct):
    torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")
    torch.testing.assert_close(load(folder).head_weight, instruct.head_weight, rtol=0, atol=0)


def save_bin(folder: Path, content: object, **options: object) -> Path:
    for file in folder.glob("model*"):
        file.unlink()
    torch.save(content, folder / "pytorch_model.bin", **options)
    return folder / "pytorch_model.bin"


def test_a_bin_from_before_torch_1_6_is_refused_and_the_command_that_is_named_converts_it(folder, instruct):
    save_bin(folder, weights(folder), _use_new_zipfile_serialization=False)
    assert_refused(folder, "is in the format of torch before 1.6")
    command = re.search(r'python -c "(.*)"$', told(lambda: check(folder)))[1]
    subprocess.run([sys.executable, "-c", command], check=True)
    assert check(folder) == {"instruct": "llava"}
    torch.testing.assert_close(load(folder).head_weight, instruct.head_weight, rtol=0, atol=0)


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
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_a_broken_bin_is_refused(folder, spoil, message):
    spoil(folder)
    assert_refused(folder, message)


def sparse_7b(folder: Path) -> int:
    """A 7B model in bfloat16 in two shards whose headers are real, and whose weights are holes; its size in bytes."""
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "vocab_size": 32000}
    edit(folder / "config.json", **sizes, num_attention_heads=32, num_key_value_heads=32)
    wide, mlp = [4096, 4096], [11008, 4096]
    shapes = {"model.embed_tokens.weight": [32000, 4096], "lm_head.weight": [32000, 4096], "model.norm.weight": [4096]}
    shapes |= {"model.mm_projector.0.weight": [4096, 32], "model.mm_projector.2.weight": wide}
    shapes |= {f"model.mm_projector.{i}.bias": [4096] for i in (0, 2)}
    for i in range(32):
        layer = {f"self_attn.{part}_proj": wide for part in "qkvo"} | {"mlp.gate_proj": mlp, "mlp.up_proj": mlp}
        layer |= {"mlp.down_proj": mlp[::-1], "input_layernorm": [4096], "post_attention_layernorm": [4096]}
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    names, total = {}, 0
    for number, part in enumerate((sorted(shapes)[::2], sorted(shapes)[1::2]), start=1):
        header, end = {}, 0
        for name in part:
            begin, end = end, end + 2 * torch.Size(shapes[name]).numel()
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        with open(folder / f"model-0000{number}-of-00002.safetensors", "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + end)
        names |= dict.fromkeys(part, f"model-0000{number}-of-00002.safetensors")
        total += end
    edit(folder / INDEX, weight_map=names)
    return total


def bytes_read() -> int:
    """By this process until now, with read and its kin."""
    return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])


def memory() -> int:
    """Peak of resident memory, mapped files included."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def test_of_14_gb_the_headers_alone_are_read(folder):
    # torch and transformers are imported, and allocators warm.
    check(folder)
    assert sparse_7b(folder) > 13e9
    read, resident = bytes_read(), memory()
    assert check(folder) == {"instruct": "llava"}
    assert bytes_read() - read < 1_000_000
    assert memory() - resident < 300e6
    with open(folder / SHARD, "r+b") as file:
        file.truncate((folder / SHARD).stat().st_size - 2)
    assert f"{SHARD} is not a whole safetensors file" in told(lambda: check(folder))


@pytest.mark.parametrize("spoil", [cut, lambda file: file.write_bytes(b""), lambda file: file.unlink()])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_file_that_breaks_between_the_check_and_the_reading_is_an_error_that_names_it(folder, spoil, form):
    if form == "bin":
        save_bin(folder, weights(folder))
    blueprint, *_ = llava._plan(folder)
    blueprint.matched()
    file = folder / ("pytorch_model.bin" if form == "bin" else SHARD)
    spoil(file)
    assert file.name in told(lambda: blueprint.fill(torch.device("cpu"), torch.float32))


def test_another_shape_between_the_check_and_the_reading_is_an_error_that_names_the_file(folder):
    blueprint, *_ = llava._plan(folder)
    for file in folder.glob("*.safetensors"):
        save_file({name: torch.zeros(3) for name in load_file(file)}, file)
    assert "changed while it was read" in told(lambda: blueprint.fill(torch.device("cpu"), torch.float32))


@pytest.mark.parametrize("command", ["run", "validate"])
def test_run_and_validate_tell_it_before_they_write(folder, goldens, tmp_path, capsys, command):
    (folder / SHARD).write_bytes(POINTER)
    flags = {"instruct_model_path": goldens / "llava/instruct", "reward_model_path": folder}
    flags |= {"dataset_path": goldens / "llava/dataset/questions.parquet", "work_dir": tmp_path / "work"}
    assert main.main([command, *(f"--{name}={value}" for name, value in flags.items()), "--device=cpu"]) == 2
    error = capsys.readouterr().err
    assert f'error: --reward_model_path "{folder}": {folder / SHARD} is a Git LFS pointer' in error
    assert not (tmp_path / "work/run.json").exists()


def test_headers_are_those_that_safetensors_itself_reads(goldens):
    for name in ("llava/instruct", "llava/reward", "omnilmm/instruct"):
        expected = {name: tuple(value.shape) for name, value in weights(goldens / name).items()}
        assert {name: one.shape for name, one in headers(goldens / name).items()} == expected
