"""Adapters into models of transformers: what the formula gives, to the bit, under old and new names of modules."""

import json
import re
import shutil
from pathlib import Path

import adapters
import pytest
import torch
from families import named
from runs import SETTINGS, Pair, few, read
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from data_engine.config import RunConfig
from data_engine.job import worker
from data_engine.models.auto.weights.loading import check_weights, load_weights
from data_engine.models.auto.weights.merging import merge
from data_engine.models.checkpoints.adapter import Adapter
from data_engine.models.checkpoints.adapter_folder import laid_together, model_folder
from data_engine.models.checkpoints.json_files import ModelError

# In make test, test_family_sampling and test_family_scoring stand for the families.
pytestmark = pytest.mark.families

CPU = torch.device("cpu")
GOLDENS = Path(__file__).parents[1] / "goldens/llava"
PHOTOS = Path(__file__).parents[3] / "shared/photos/questions.parquet"
# What parts were called before transformers 4.52: by today's beginning of a name.
OLD = {
    "llava": {"model.language_model.": "language_model.model.", "lm_head.": "language_model.lm_head.",
              "model.vision_tower.": "vision_tower.", "model.multi_modal_projector.": "multi_modal_projector."},
    "qwen2_5_vl": {"model.language_model.": "model.", "model.visual.": "visual."},
}  # fmt: skip
OLD["internvl"] = OLD["llava"]
# Of decoder and tower, and the head.
MATRICES = r"(q_proj|v_proj|down_proj|qkv|proj|fc1|up_proj|lm_head)\.weight$"
# Trained whole, biases included.
WHOLE = r"(multi_modal_projector\.linear_1|merger\.mlp\.0)\.(weight|bias)$"


def old_name(family: str, name: str) -> str:
    found = next((new for new in OLD[family] if name.startswith(new)), "")
    return OLD[family].get(found, "") + name.removeprefix(found)


def write(folder: Path, base: Path, parameters: dict, rename=lambda name: name) -> tuple[Path, dict]:
    """An adapter of every matrix that MATRICES names, and what the weights become."""
    pairs = adapters.matrices({name: value for name, value in parameters.items()
                               if re.search(MATRICES, name) and value.ndim == 2})  # fmt: skip
    whole = {name: torch.ones_like(value) / 3 for name, value in parameters.items() if re.search(WHOLE, name)}
    assert len(whole) == 2
    assert {name.split(".layers")[0].split(".blocks")[0] for name in pairs} >= {
        "model.language_model",
        "lm_head.weight",
    }
    tensors = adapters.stored({rename(name): pair for name, pair in pairs.items()})
    tensors |= {f"base_model.model.{rename(name)}": value for name, value in whole.items()}
    adapters.write(folder, base, tensors, modules_to_save=["linear_1"])
    return folder, {name: adapters.added(parameters[name], *pair) for name, pair in pairs.items()} | whole


@pytest.mark.parametrize("names", ["old", "new", "inner"])
@pytest.mark.parametrize("name", named(OLD))
def test_every_weight_is_what_the_formula_gives(checkpoints, tmp_path, name, names):
    checkpoint = checkpoints(name)
    before = {name: value.detach() for name, value in checkpoint.built.named_parameters()}
    # Of the model without its head, as AutoModel has it.
    renames = {"old": lambda one: old_name(name, one), "inner": lambda one: one.removeprefix("model.")}
    adapter, changed = write(tmp_path / "adapter", checkpoint.folder, before, renames.get(names, lambda one: one))
    assert any("vis" in one for one in changed)
    folder = model_folder(str(adapter))
    check_weights(folder)
    found = dict(load_weights(folder, CPU, torch.float32).named_parameters())
    assert found.keys() == before.keys()
    for one, value in (before | changed).items():
        assert torch.equal(found[one], value), one


@pytest.mark.parametrize("name", named(["qwen2_5_vl"]))
def test_in_half_precision_the_sum_is_made_in_fp32(checkpoints, tmp_path, name):
    base = shutil.copytree(checkpoints(name).folder, tmp_path / "base")
    tensors = {one: value.bfloat16() for one, value in load_file(base / "model.safetensors").items()}
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    before = dict(load_weights(base, CPU, torch.bfloat16).named_parameters())
    adapter, changed = write(tmp_path / "adapter", base, {one: value.detach() for one, value in before.items()})
    found = dict(load_weights(model_folder(str(adapter)), CPU, torch.bfloat16).named_parameters())
    for one, value in changed.items():
        assert torch.equal(found[one], value.bfloat16()), one
    # The file is mapped while it is merged into.
    assert all(torch.equal(value, tensors[one]) for one, value in load_file(base / "model.safetensors").items())


@pytest.mark.parametrize("name", named(["qwen2_5_vl", "internvl"]))
def test_an_adapter_of_another_model_is_refused_by_the_check_and_by_loading(checkpoints, tmp_path, name):
    checkpoint = checkpoints(name)
    before = {name: value.detach() for name, value in checkpoint.built.named_parameters()}
    adapter, _ = write(tmp_path / "adapter", checkpoint.folder, before)
    tensors = load_file(adapter / "adapter_model.safetensors")
    foreign = "base_model.model.model.language_model.layers.9.mlp.up_proj.lora_{}.weight"
    tensors |= {foreign.format(side): torch.zeros(3, 3) for side in "AB"}
    save_file(tensors, adapter / "adapter_model.safetensors")
    folder = model_folder(str(adapter))
    said = f"changes model.language_model.layers.9.mlp.up_proj, which its base {checkpoint.folder} does not have"
    for act in (check_weights, lambda folder: load_weights(folder, CPU, torch.float32)):
        with pytest.raises(ModelError, match=re.escape(said)):
            act(folder)


@pytest.mark.parametrize("name", named(["qwen2_5_vl"]))
def test_embeddings_that_are_the_head_as_well_are_refused(checkpoints, tmp_path, name):
    base = Path(shutil.copytree(checkpoints(name).folder, tmp_path / "base"))
    raw = json.loads((base / "config.json").read_text())
    raw["text_config"] |= {"tie_word_embeddings": True}
    (base / "config.json").write_text(json.dumps(raw | {"tie_word_embeddings": True}))
    tensors = load_file(base / "model.safetensors")
    shape = tensors.pop("lm_head.weight").shape
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    check_weights(base)
    for module in ("lm_head", "model.language_model.embed_tokens"):
        adapter = adapters.write(tmp_path / module, base, {f"base_model.model.{module}.weight": torch.zeros(shape)})
        folder = model_folder(str(adapter))
        for act in (check_weights, lambda folder: load_weights(folder, CPU, torch.float32)):
            with pytest.raises(ModelError, match="that weight is both the embeddings and the head"):
                act(folder)


def test_weights_that_lie_as_in_by_out_take_the_product_on_its_side(tmp_path):
    """Conv1D of GPT-2, for which peft sets fan_in_fan_out; a square one would take it either way."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=11, n_positions=4))
    name = "transformer.h.0.attn.c_proj.weight"
    before = model.get_parameter(name).detach().clone()
    pair = adapters.matrices({name: before.T})
    (tmp_path / "base").mkdir()
    adapter = adapters.write(tmp_path / "adapter", tmp_path / "base", adapters.stored(pair), fan_in_fan_out=True)
    merge(model, Adapter.of(laid_together(adapter, tmp_path / "base")))
    assert torch.equal(model.get_parameter(name), adapters.added(before.T, *pair[name]).T)
    assert not torch.equal(model.get_parameter(name), adapters.added(before, *pair[name]))


@pytest.fixture
def models(checkpoints, tmp_path):
    """By family: flags of a run whose reward model is an adapter, and of one whose is merged by hand."""

    def make(name: str) -> tuple[dict, dict]:
        if name == "llava":
            for folder in ("instruct", "openai"):
                (tmp_path / folder).symlink_to(GOLDENS / folder)
            base, more = GOLDENS / "reward", {"instruct_model_path": str(tmp_path / "instruct")}
        else:
            base = Pair(checkpoints(name), tmp_path).instruct
            more = {"instruct_model_path": str(base)}
        whole = shutil.copytree(base, tmp_path / "whole")
        tensors = {one: value.float() for one, value in load_file(whole / "model.safetensors").items()}
        pairs = adapters.matrices({one: value for one, value in tensors.items() if re.search(r"[qv]_proj.weight", one)})
        save_file(
            tensors | {one: adapters.added(tensors[one], *pair) for one, pair in pairs.items()},
            whole / "model.safetensors", {"format": "pt"},
        )  # fmt: skip
        adapter = adapters.write(tmp_path / "adapter", base, adapters.stored(pairs))
        return tuple(SETTINGS | more | {"reward_model_path": str(folder)} for folder in (adapter, whole))

    return make


def assert_same_bytes(models, name, dataset, tmp_path) -> None:
    works = []
    for flags in models(name):
        works.append(tmp_path / f"work-{len(works)}")
        assert worker.run(RunConfig(**flags, dataset_path=str(dataset), work_dir=str(works[-1]))) == 0
    ours, theirs = works
    for stage in ("sampled_answer", "instruct_logps", "reward_logps", "pairs"):
        assert read(ours / stage) == read(theirs / stage), stage
    files = [sorted((work / "dataset").iterdir()) for work in works]
    assert files[0]
    assert [one.read_bytes() for one in files[0]] == [one.read_bytes() for one in files[1]]
    assert read(ours / "instruct_logps") != read(ours / "reward_logps")


@pytest.mark.parametrize("name", named(["internvl"]))
def test_a_run_with_an_adapter_is_that_with_the_model_merged_by_hand(models, name, tmp_path):
    assert_same_bytes(models, name, few(tmp_path), tmp_path)


@pytest.mark.families
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_photographs_are_rewarded_by_an_adapter_as_by_the_model_merged_by_hand(models, name, tmp_path):
    if not PHOTOS.exists():
        pytest.skip("../shared/photos is not here: no photographs")
    assert_same_bytes(models, name, PHOTOS, tmp_path)
