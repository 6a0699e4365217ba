"""The models at their published sizes, without memory for one weight: parameters tower by tower, and docs/models.md."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import LlamaConfig

from data_engine.models import describe
from data_engine.models.base import CacheSizes, Description
from data_engine.models.check import Checked
from data_engine.models.checkpoints.json_files import ModelError
from data_engine.models.layers.layer_kind import cache_values_per_token
from data_engine.models.native import llava, llava_config, omnilmm
from data_engine.models.registry import AUTO, FAMILIES, names
from data_engine.models.sharding.zero3 import is_divided

PAGE = Path(__file__).parents[2] / "docs/models.md"

WIDE = 1792
PUBLISHED = {
    "model_type": "omnilmm", "mm_vision_tower": "eva02_enormous_patch14_clip_224.laion2b_plus", "hidden_size": 4096,
    "mm_use_im_start_end": True, "num_query": 64, "image_size": 448, "num_hidden_layers": 32, "vocab_size": 32009,
    "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "sliding_window": 4096, "max_position_embeddings": 32768, "tie_word_embeddings": False,
}  # fmt: skip
TOWER = "model.vision_tower."
TOWER_SHAPES = {
    f"{TOWER}patch_embed.proj.weight": torch.Size([WIDE, 3, 14, 14]),
    f"{TOWER}pos_embed": torch.Size([1, 257, WIDE]),
    **{f"{TOWER}blocks.{i}.mlp.fc1.weight": torch.Size([15360, WIDE]) for i in range(63)},
}


def on_meta(kind: type[nn.Module], config: object) -> nn.Module:
    with init_empty_weights():
        return kind(config)


def count(modules: nn.Module) -> dict[str, int]:
    return {name: sum(value.numel() for value in part.parameters()) for name, part in modules.named_children()}


@pytest.fixture
def published(tmp_path) -> Path:
    """A folder with the published configuration, and no weights."""
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    return tmp_path


def test_the_full_size_model_has_the_parameters_of_the_published_shapes(published):
    config = omnilmm.read_config(published, TOWER_SHAPES)
    modules = on_meta(omnilmm._Modules, config)
    counted = count(modules)
    d, w, mlp = 4096, WIDE, 15360
    # qkv, q and v bias, proj; two norms; two layers of the mlp
    block = 3 * w * w + 2 * w + w * w + w + 2 * 2 * w + w * mlp + mlp + mlp * w + w
    vision = 3 * 14 * 14 * w + w + w + 257 * w + 63 * block + 2 * w
    # positions and queries; kv_proj; attention in and out with biases; three norms; proj
    resampler = 2 * 64 * d + d * w + 4 * d * d + 4 * d + 3 * 2 * d + d * d
    # q and o, k and v of 8 heads 128 wide, the mlp, two norms; 32 layers, embeddings, last norm
    decoder = 32 * (2 * d * d + 2 * d * 1024 + 3 * d * 14336 + 2 * d) + 32009 * d + d
    assert counted == {"vision": vision, "resampler": resampler, "decoder": decoder, "head": 32009 * d}
    assert sum(counted.values()) == 11_614_393_088
    assert config.vision.num_heads == 16
    assert config.max_positions == 4096
    assert all(value.is_meta for value in modules.parameters())


def test_a_published_tower_without_one_of_its_blocks_is_refused(published):
    shapes = {name: shape for name, shape in TOWER_SHAPES.items() if "blocks.62." not in name}
    with pytest.raises(ModelError, match="62 blocks of a vision tower 1792 wide; expected 63"):
        omnilmm.read_config(published, shapes)


def test_a_token_of_the_full_size_model_keeps_this_many_numbers_in_the_cache(published):
    # keys and values of 32 layers, 8 heads, 128 wide
    assert omnilmm.OmniLMM.cache_sizes(published) == (2 * 32 * 8 * 128, 0, 0)


def test_layers_that_differ_keep_what_each_does():
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    config = LlamaConfig(hidden_size=64, num_hidden_layers=3, **heads, per_layer_config={1: {"num_key_value_heads": 2}})
    # Heads of three layers, 16 wide.
    assert cache_values_per_token(config) == 2 * (4 + 2 + 4) * 16


def llava_7b() -> nn.Module:
    text = LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=32, tie_word_embeddings=False,
    )  # fmt: skip
    tower = llava_config.KNOWN_TOWERS["clip-vit-large-patch14-336"]
    return on_meta(llava._Modules, llava_config.LlavaConfig(text, tower, 23, True, None))


def test_the_full_size_llava_has_the_parameters_of_the_published_shapes():
    d, w = 4096, 1024
    # four projections with biases, two norms, the mlp; 23 of 24 layers
    block = 4 * (w * w + w) + 2 * 2 * w + w * 4096 + 4096 + 4096 * w + w
    vision = 3 * 14 * 14 * w + w + 577 * w + 2 * w + 23 * block
    projector = w * d + d + d * d + d
    decoder = 32 * (4 * d * d + 3 * d * 11008 + 2 * d) + 32000 * d + d
    assert count(llava_7b()) == {"vision": vision, "projector": projector, "decoder": decoder, "head": 32000 * d}


def test_the_memory_that_the_page_names_is_that_of_the_parameters(published):
    omni = on_meta(omnilmm._Modules, omnilmm.read_config(published, TOWER_SHAPES))
    modules = {"llava": llava_7b(), "omnilmm": omni}
    gigabytes = r" ([\d.]+) GB \|" * 4
    pattern = rf"^\| `([^`]+)` \| ([^|]+) \| ([\d.]+) B \|{gigabytes}$"
    rows = re.findall(pattern, PAGE.read_text(), re.MULTILINE)
    # A checkpoint of any other family has the size that it has.
    assert {family for _, family, *_ in rows} == {*FAMILIES} - {AUTO}
    assert {name.lower() for name, *_ in rows} | {"llava-v1.5-7b"} == {*names()} - {AUTO}
    for name, family, billions, whole, *shares in rows:
        assert names()[name.lower()] == family
        counted = count(modules[family])
        everything = sum(counted.values())
        assert float(billions) == round(everything / 1e9, 2)
        # two bytes a parameter in bf16
        assert float(whole) == round(2 * everything / 1e9, 1)
        divided = counted["vision"] + counted["decoder"] - modules[family].decoder.embed_tokens.weight.numel()
        for ranks, share in zip((2, 4, 8), shares, strict=True):
            assert float(share) == round(2 * (everything - divided + divided / ranks) / 1e9, 1)


def test_what_is_divided_over_ranks_is_vision_tower_and_decoder_without_embeddings():
    names = ["decoder.layers.0.mlp.up_proj.weight", "vision.blocks.0.attn.q_bias", "decoder.norm.weight"]
    assert all(map(is_divided, names))
    assert not any(
        map(is_divided, ["decoder.embed_tokens.weight", "head.weight", "projector.0.bias", "resampler.proj"])
    )


def test_what_validate_tells_of_the_memory_of_a_model_is_that_of_its_numbers(monkeypatch):
    """In half precision; recurrent states are kept in fp32 all the same."""
    found = Description("kind", CacheSizes(65_536, per_answer=10_000, per_prompt=1_000_000), 4096, most_shared=100)
    code = SimpleNamespace(describe=lambda folder: found, folders=lambda folder: [folder])
    monkeypatch.setattr(describe, "family_class", lambda _: code)
    monkeypatch.setattr(describe, "num_weights", lambda folders: 7 * 10**9)
    told = describe.told(Checked(Path("model"), "auto"), torch.bfloat16)
    assert told == (
        "auto (kind), 14.0 GB of weights and 131.1 kB of cache a token, 40.0 kB an answer, 2.0 MB an image, in "
        "bfloat16; answers share their prompt, up to 100 tokens"
    )
