"""Folders of internvl_chat that are refused: other generations, unknown parts, weights of another config.json."""

import json
import shutil

import internvl_folders
import pytest
import torch
from runs import few
from safetensors.torch import load_file, save_file

from data_engine import load_model
from data_engine.commands.main import main
from data_engine.models.auto.model import Auto
from data_engine.models.check import check_folder
from data_engine.models.checkpoints.json_files import ModelError

SUPPORTED = "InternLM2ForCausalLM, InternLM3ForCausalLM, LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Qwen3Moe"
FIELDS = {
    "transposed tiles": ({"ps_version": "v1"}, "has ps_version 'v1'; expected 'v2': an InternVL before 1.5"),
    "no ps_version": ({"ps_version": None}, "has ps_version 'v1'; expected 'v2'"),
    "earlier layer": ({"select_layer": -4}, "has select_layer -4; expected -1: an InternVL before 1.5"),
    "padded": ({"pad2square": True}, "has pad2square True; expected False"),
    "InternVL 1.1": ({"template": "internvl_zh"}, "has template 'internvl_zh'; of internvl_chat these are supported: "
                     "Hermes-2, internlm2-chat, phi3-chat, internvl2_5"),
    "gpt-oss": ({"template": "internvl3_5_gpt_oss"}, "has template 'internvl3_5_gpt_oss'"),
    "no template": ({"template": None}, "has template None"),
    "decoder": ({"llm_config__architectures": ["GptOssForCausalLM"]}, "has an llm_config of the architecture "
                f"'GptOssForCausalLM'; of internvl_chat these are supported: {SUPPORTED}"),
    "InternLM": ({"llm_config__architectures": ["InternLMForCausalLM"]}, "the architecture 'InternLMForCausalLM'"),
    "no decoder": ({"llm_config__architectures": None}, "has an llm_config of the architecture None"),
    "no llm_config": ({"llm_config": None}, "has no llm_config: not a model of internvl_chat"),
    "no width": ({"vision_config__hidden_size": None}, "has no hidden_size in its vision_config"),
    "layers": ({"llm_config__num_hidden_layers": -1}, "has num_hidden_layers -1; expected a positive integer"),
    "many layers": ({"llm_config__num_hidden_layers": 9999}, "has num_hidden_layers 9999, but there are only"),
    "no thumbnail": ({"use_thumbnail": False}, "has use_thumbnail false: tiles without a thumbnail are not supported"),
    "tiles": ({"min_dynamic_patch": 5}, "has min_dynamic_patch 5 above max_dynamic_patch 4"),
    "no tiles": ({"max_dynamic_patch": 0}, "has max_dynamic_patch 0; expected a positive integer up to 1000"),
    "ratio": ({"downsample_ratio": 0.3}, "has downsample_ratio 0.3; expected 0.5 or 0.25"),
    "odd tile": ({"force_image_size": 35}, "35 pixels, patches of 7 and downsample_ratio 0.5: that is no whole"),
    "adapters": ({"use_llm_lora": 16}, "has use_llm_lora 16: its adapters stand beside the weights; merge them"),
    "Flash": ({"flash_mode": True}, "has flash_mode True: InternVL3.5-Flash is not supported"),
    "system": ({"system_message": 3}, "has system_message 3; expected a text"),
    "activation": ({"llm_config__hidden_act": "zelu"}, "config.json does not describe a model"),
    "norm": ({"vision_config__norm_type": "group"}, "config.json does not describe a model"),
    "eps": ({"vision_config__qk_normalization": True, "vision_config__layer_norm_eps": 1e-5}, "eps 1e-05 with"),
    "quantised": ({"llm_config__quantization_config": {"quant_method": "awq"}}, "has a quantization_config (awq)"),
    "sizes": ({"llm_config__intermediate_size": 80}, "config.json makes it [64, 80]"),
    "vocabulary": ({"llm_config__vocab_size": 999}, "config.json makes it [999, 64]"),
}  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return internvl_folders.write(tmp_path_factory.mktemp("internvl") / "model", "qwen2")


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "model")


def assert_refused(folder, told: str) -> None:
    """By the check, and by loading, with the same sentence."""
    said = []
    for act in (lambda: Auto.check(folder) if check_folder(folder) else None, lambda: load_model(None, str(folder))):
        with pytest.raises(ModelError) as caught:
            act()
        said.append(str(caught.value))
    assert told in said[0]
    assert said[0] == said[1]


@pytest.mark.parametrize("name", FIELDS)
def test_a_config_that_is_not_computed_here_is_refused(folder, name):
    fields, told = FIELDS[name]
    internvl_folders.change(folder, **fields)
    assert_refused(folder, told)


def edit_weights(folder, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


ATTENTION = "vision_model.encoder.layers.1.attn.qkv.weight"
WEIGHTS = {
    "missing": (lambda found: found.pop("mlp1.3.bias"), "lacks weights for model.multi_modal_projector.linear_2.bias"),
    "missing packed one": (lambda found: found.pop(ATTENTION), "lacks weights for model.vision_tower.encoder.layer.1."),
    "extra": (lambda found: found.update({"mlp3.0.weight": torch.zeros(3)}), "unexpected weight mlp3.0.weight in"),
    "Flash": (
        lambda found: found.update({"gating.mlp.0.weight": torch.zeros(3)}),
        "is of the router of an InternVL3.5-Flash, which is not supported",
    ),
    "extra in the tower": (
        lambda found: found.update({"vision_model.encoder.layers.0.attn.q_norm.weight": torch.zeros(32)}),
        "unexpected weight vision_model.encoder.layers.0.attn.q_norm.weight in",
    ),
    "a layer more": (
        lambda found: found.update({"language_model.model.layers.2.mlp.up_proj.weight": torch.zeros(96, 64)}),
        "unexpected weight language_model.model.layers.2.mlp.up_proj.weight in",
    ),
    "shape": (
        lambda found: found.update({"mlp1.1.bias": torch.zeros(63)}),
        "has shape [63], config.json makes it [64]",
    ),
    "packed shape": (
        lambda found: found.update({ATTENTION: torch.zeros(95, 32)}),
        "has shape [95, 32], config.json makes it [96, 32]",
    ),
    "adapter": (
        lambda found: found.update({"language_model.base_model.model.lm_head.weight": torch.zeros(3)}),
        "unexpected weight language_model.base_model.model.lm_head.weight in",
    ),
    "packed numbers": (
        lambda found: found.update({"mlp1.1.weight": torch.zeros(64, 128, dtype=torch.uint8)}),
        "is stored as U8: quantised checkpoints are not read",
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_are_not_those_of_the_config_are_refused(folder, name):
    change, told = WEIGHTS[name]
    edit_weights(folder, change)
    assert_refused(folder, told)


@pytest.mark.parametrize(("kind", "field"), [("internlm2", "bias"), ("internlm3", "qkv_bias")])
def test_an_internlm_with_bias_is_refused(tmp_path, kind, field):
    folder = internvl_folders.write(tmp_path / "model", kind)
    internvl_folders.change(folder, **{f"llm_config__{field}": True})
    assert_refused(folder, f"has an llm_config with {field}, which no published InternVL has")


def test_weights_of_another_decoder_are_refused(tmp_path):
    folder = internvl_folders.write(tmp_path / "model", "internlm2")
    edit_weights(folder, lambda found: found.update({"language_model.lm_head.weight": torch.zeros(3, 64)}))
    assert_refused(folder, "unexpected weight language_model.lm_head.weight in")
    edit_weights(
        folder, lambda found: [found.pop("language_model.lm_head.weight"), found.pop("language_model.output.weight")]
    )
    assert_refused(folder, "lacks weights for lm_head.weight")


@pytest.mark.parametrize("expert", [3, 7])
def test_experts_that_are_missing_or_too_many_are_refused(tmp_path, expert):
    folder = internvl_folders.write(tmp_path / "model", "qwen3_moe")
    name = f"language_model.model.layers.1.mlp.experts.{expert}.up_proj.weight"
    if expert == 3:
        edit_weights(folder, lambda found: found.pop(name))
        assert_refused(
            folder, "lacks weights for model.language_model.layers.1.mlp.experts.gate_up_proj (transformers'"
        )
    else:
        edit_weights(folder, lambda found: found.update({name: torch.zeros(24, 64)}))
        assert_refused(folder, f"unexpected weight {name} in")


def test_a_tokenizer_that_needs_remote_code_or_does_not_fit_is_refused(folder):
    path = folder / "tokenizer_config.json"
    kept = path.read_text()
    path.write_text(json.dumps(json.loads(kept) | {"tokenizer_class": "InternLMTokenizer"}))
    assert_refused(folder, "has tokenizer_class 'InternLMTokenizer'; of internvl_chat these are supported")
    path.write_text(kept)
    numbered = json.loads((folder / "added_tokens.json").read_text())
    (folder / "added_tokens.json").write_text(json.dumps(numbered | {"<box>": 300}))
    assert_refused(folder, "gives <box> the id")
    (folder / "added_tokens.json").unlink()
    path.write_text(kept.replace("<IMG_CONTEXT>", "<ELSE>"))
    assert_refused(folder, "has no <IMG_CONTEXT> among its added tokens")


def test_files_that_are_missing_are_named(folder):
    (folder / "merges.txt").unlink()
    assert_refused(folder, "has no merges.txt")
    (folder / "tokenizer_config.json").unlink()
    (folder / "added_tokens.json").rename(folder / "kept.json")
    assert_refused(folder, "has no <IMG_CONTEXT> among its added tokens")


def test_a_tokenizer_that_is_cut_off_is_told_where_the_trainer_left_no_processor(folder):
    """InternVL's own trainer saves none, and none is needed."""
    (folder / "preprocessor_config.json").unlink()
    Auto.check(folder)
    (folder / "vocab.json").write_text('{"a": ')
    assert_refused(folder, "cannot be used (Exception: Error while initializing BPE: EOF while parsing")


def test_the_command_says_so_and_ends_with_2(folder, tmp_path, capsys):
    internvl_folders.change(folder, template="internvl_zh")
    words = ["validate", "--instruct_model_path", str(folder), "--reward_model_path", str(folder), "--dataset_path",
             few(tmp_path), "--work_dir", str(tmp_path / "work")]  # fmt: skip
    assert main(words) == 2
    told = capsys.readouterr().err
    assert f'--instruct_model_path "{folder}" and --reward_model_path "{folder}": ' in told
    assert "template 'internvl_zh'" in told
    assert "Traceback" not in told
