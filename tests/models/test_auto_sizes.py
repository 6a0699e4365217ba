"""What the layers of a model of transformers keep, found of its config.json alone; each number by hand."""

from pathlib import Path

import pytest
from torch.distributions import Distribution
from transformers import Lfm2VlConfig, Llama4Config, MllamaConfig, PreTrainedConfig, Qwen2_5_VLConfig

from data_engine.models.auto import config as configs
from data_engine.models.auto import sizes
from data_engine.models.base import CacheSizes, Description
from data_engine.models.layers.attention import DoesNotFit

# Keys and values of two heads, 16 wide.
KEPT = 2 * 2 * 16
TEXT = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 96, "vocab_size": 100, "max_position_embeddings": 500}  # fmt: skip

ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}


def qwen(**text: object) -> PreTrainedConfig:
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 64}
    return Qwen2_5_VLConfig(text_config=TEXT | {"rope_parameters": ROPE} | text, vision_config=vision)


def llama4() -> PreTrainedConfig:
    """Its layers see chunks."""
    text = TEXT | {"head_dim": 16, "intermediate_size_mlp": 96, "num_local_experts": 2, "attention_chunk_size": 8}
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    return Llama4Config(text_config=text, vision_config=vision)


def mllama() -> PreTrainedConfig:
    """The second of its layers looks at images: 4 tiles of 2 x 2 patches and one more each."""
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_global_layers": 1, "attention_heads": 2,
              "image_size": 28, "patch_size": 14, "max_num_tiles": 4}  # fmt: skip
    return MllamaConfig(text_config=TEXT | {"cross_attention_layers": [1], "pad_token_id": 0}, vision_config=vision)


def lfm2() -> PreTrainedConfig:
    """Two of its layers keep three steps of 64 channels."""
    text = TEXT | {"layer_types": ["conv", "full_attention", "conv"], "conv_L_cache": 3, "model_type": "lfm2"}
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    return Lfm2VlConfig(text_config=text, vision_config=vision)


DYNAMIC = ROPE | {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 200}
CASES = [
    (qwen(attention_dropout=0.1), Description("qwen2_5_vl, attention alone", CacheSizes(3 * KEPT), 500)),
    (
        qwen(use_sliding_window=True, sliding_window=16, max_window_layers=1),
        Description("qwen2_5_vl, attention alone, windows", CacheSizes(3 * KEPT), 500),
    ),
    # The table grows, which a device without numbers cannot know.
    (
        qwen(rope_parameters=DYNAMIC),
        Description("qwen2_5_vl, attention alone", CacheSizes(3 * KEPT), 500, most_shared=200),
    ),
    (llama4(), Description("llama4, attention alone, windows", CacheSizes(3 * KEPT), 500)),
    (
        mllama(),
        Description(
            "mllama, attention alone, layers for image states", CacheSizes(2 * KEPT, 0, KEPT * 4 * (2 * 2 + 1)), 500
        ),
    ),
    (lfm2(), Description("lfm2_vl, attention and recurrent states", CacheSizes(KEPT, 2 * 3 * 64), 500)),
]


def folder_of(config: PreTrainedConfig, folder: Path) -> Path:
    config.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("config", "expected"), CASES)
def test_kind_and_sizes_of_layers_are_known_without_weights(tmp_path, config, expected, monkeypatch):
    # A release that computes Llama 4 wrongly knows its sizes.
    monkeypatch.setattr(configs, "refuse_faulty", lambda where, raw: None)
    checks = Distribution._validate_args
    folder = folder_of(config, tmp_path)
    assert sizes.describe(folder) == expected
    assert sizes.cache_sizes(folder) == expected.sizes
    assert sizes.are_known(folder)
    # Layers for image states have nothing to look at, and LFM2's read the weights of their convolutions themselves.
    assert sizes.text_calls_all(folder) == expected.kind.startswith(("qwen2_5_vl", "llama4"))
    assert Distribution._validate_args == checks


def test_of_a_model_that_does_not_fit_the_reason_is_told_and_sizes_are_those_of_full_attention(tmp_path, monkeypatch):
    def refuse(layers: object) -> None:
        raise DoesNotFit("its layers choose keys")

    monkeypatch.setattr(sizes, "require_shareable", refuse)
    folder = folder_of(lfm2(), tmp_path)
    found = sizes.describe(folder)
    assert found == Description("lfm2_vl", CacheSizes(3 * KEPT), 500, "its layers choose keys")
    assert not sizes.are_known(folder)


def test_nor_does_one_whose_layers_attend_in_a_way_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(sizes, "Attention", lambda decoder: None)
    found = sizes.describe(folder_of(qwen(), tmp_path))
    why = "no layer of its decoder attends through transformers' attention interface"
    assert found == Description("qwen2_5_vl", CacheSizes(3 * KEPT), 500, why)
