"""What is wrong with a checkpoint is told before the work, from headers alone, as loading would tell it."""

import json
import shutil
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from folders import edit, replace_weights, weights
from refusals import (
    INDEX,
    POINTER,
    SHARD,
    TOWER,
    assert_refused,
    check,
    cut,
    first,
    load,
    pad,
    set_header,
    set_weight_map,
    told,
    without_first,
)
from safetensors.torch import load_file, save_file

from data_engine.commands import main
from data_engine.models.checkpoints.checkpoint import headers
from data_engine.models.checkpoints.json_files import ModelError
from data_engine.models.native.decoder import check_vocabulary


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


def repeat_first(file: Path) -> None:
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = content[8 : 8 + length].decode()
    name, told = next((name, told) for name, told in json.loads(header).items() if name != "__metadata__")
    text = f"{{{json.dumps(name)}: {json.dumps(told)}, {header[1:]}".encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


HELD_BY_THE_FIRST = "model.embed_tokens.weight"
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
    (lambda f: set_header(f / SHARD, lambda h: first(h).update(data_offsets=[0])), "its header does not describe"),
    (lambda f: set_header(f / SHARD, lambda h: first(h).update(data_offsets=[0, 4, 8])), "its header does not desc"),
    (lambda f: repeat_first(f / SHARD), "a name stands in the header twice"),
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
    (lambda f: set_weight_map(f, **{HELD_BY_THE_FIRST: SHARD}), f"holds {HELD_BY_THE_FIRST}, but it does not"),
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
    (config(model_type=["llava"]), "model_type ['llava']; expected the name of a family of models"),
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
    # A LLaVA with another tower is none of the native family's, and transformers knows no such type.
    (config(model_type="llava_llama", vision_config={"model_type": "siglip_vision_model"}), "model_type 'llava_llama'"),
    (config(text_config={}, vision_config={"image_size": "big"}), "image_size 'big'; expected a positive integer"),
    (config(mm_vision_select_layer=[-2]), "selects vision layer [-2]"),
    (config(mm_vision_select_feature=["patch"]), "selects vision feature ['patch']"),
    (config(mm_vision_tower=7), "has no mm_vision_tower"),
    (config(mm_vision_tower="a\0b"), "mm_vision_tower 'a\\x00b'"),
    (config(mm_vision_tower="x" * 5000), "mm_vision_tower 'xxx"),
    (config(quantization_config={"quant_method": "bitsandbytes"}), "quantization_config (bitsandbytes): quantised"),
    (config(compression_config={"format": "pack"}), "has a compression_config (of unknown method): quantised"),
    (config(llm_config={"quantization_config": {"quant_method": "fp8"}}), "quantization_config (fp8): quantised"),
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


def test_special_tokens_that_a_row_begins_and_ends_with_need_an_embedding_too():
    """No text is encoded to them, so they do not count to what the tokenizer gives."""
    for special in ({"bos": 12, "eos": 2}, {"bos": 1, "eos": 12}):
        tokenizer = SimpleNamespace(num_ids=10, **special)
        check_vocabulary(tokenizer, 13, Path("config.json"))
        with pytest.raises(ModelError, match="vocab_size 12, but the tokenizer beside it gives ids up to 12"):
            check_vocabulary(tokenizer, 12, Path("config.json"))


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
        (
            config(f"{TOWER}/config.json", vision_config={"image_size": 8, "patch_size": 14}),
            "has image_size 8, less than one patch of 14",
        ),
        (lambda f: clip_without(f / TOWER, "pre_layrnorm"), "336 lacks 2 weights that config.json asks for: vision"),
        (lambda f: clip_without(f / TOWER, "patch_embedding", torch.zeros(3, 3)), "shape [3, 3], config.json makes it"),
    ],
)
@pytest.mark.parametrize("role", ["instruct", "reward"])
def test_the_clip_tower_is_checked_too_and_the_flag_named_of_the_model_that_asks_for_it(
    folder, monkeypatch, spoil, message, role
):
    monkeypatch.setattr("data_engine.models.native.llava_config.fetch", lambda name: told_missing(name))
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
