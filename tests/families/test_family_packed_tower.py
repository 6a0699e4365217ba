"""Towers that run the images of a prompt as one row: numbers that the host makes, and one attention call a layer."""

import itertools

import pytest
import torch
from asked import ASKED
from families import FAMILIES, named
from one_device import META, OneDevice, arrived
from test_family_positions import prompt
from torch import Tensor

from data_engine.models.auto.forward import mirrored as mirrors
from data_engine.models.auto.forward import packed_tower
from data_engine.models.auto.forward.mirrored import Known, mirrored
from data_engine.models.auto.forward.packed_tower import NAME, TowerCall, tower_calls
from data_engine.models.layers.prefix import run_prefix

PACKED = [
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "glm4v", "glm4v_moe", "glm46v",
    "glm_ocr", "ernie4_5_vl_moe", "exaone4_5", "qwen2_5_omni_thinker", "lfm3_vl", "hyperclovax_vision_v2",
    "cohere_compass", "cosmos3_omni", "qwen3_omni_moe_thinker", "glmga",
]  # fmt: skip
# Towers that make some of their numbers in ways of their own.
BY_FLASH = [
    *PACKED, "minicpmv4_6", "minicpmv4_7", "kimi_k25", "video_llama_3", "hunyuan_vl", "cosmos3_edge", "muse_spark",
    "paddleocr_vl", "minicpm_ocr",
]  # fmt: skip
# One has none, two make tokens of pictures by a part that is not called as a module; and of the others, whose answers
# do not share a prompt, none is run apart.
NOT_RUN = {"gemma4_unified", "chameleon", "emu3", "minimax_m3_vl", "qwen4_exp", "glm5_next"}
OTHERS = [name for name in FAMILIES if name not in BY_FLASH and name not in NOT_RUN]
PICTURES = [name for name, asked in ASKED.items() if asked.sizes]


def within_bounds(query: Tensor, key: Tensor, value: Tensor, queries, keys, causal: bool, scale: float):
    """In the place of attention_math.flash: the formula, a sequence at a time."""
    assert torch.equal(queries.starts, keys.starts)
    assert queries.starts.dtype == torch.int32
    assert not causal
    assert queries.longest == queries.starts.diff().max()
    mixed = []
    for start, end in itertools.pairwise(queries.starts.tolist()):
        query_H, key_H, value_H = (part[start:end].double().transpose(0, 1) for part in (query, key, value))
        mixed.append(((query_H @ key_H.mT * scale).softmax(-1) @ value_H).transpose(0, 1))
    return torch.cat(mixed).to(query.dtype), None


class Flash:
    """A device that has flash attention, by `attend`."""

    def __init__(self, monkeypatch, attend=within_bounds) -> None:
        self.calls = 0
        self._attend = attend
        monkeypatch.setattr(packed_tower, "has_flash", lambda *of: True)
        monkeypatch.setattr(packed_tower, "flash", self._call)

    def _call(self, *given):
        self.calls += 1
        return self._attend(*given)


def own_tower(checkpoint, asked) -> TowerCall:
    """What the tower of the stock model does with a prompt."""
    stock = checkpoint.stock.model
    config = stock.config.vision_config
    found = {name: module for name, module in stock.named_modules() if getattr(module, "config", None) is config}
    # Before that of Video-LLaVA stands one for films.
    vision = found.get("model.image_tower", next(iter(found.values())))
    with tower_calls(vision) as calls, torch.no_grad():
        stock(
            **stock.prepare_inputs_for_generation(
                **checkpoint.stock.inputs(asked), is_first_iteration=True, use_cache=True
            )
            | {"logits_to_keep": 1}
        )
    return calls[0]


def tower(model, asked) -> TowerCall:
    given = prompt(model, asked)
    with tower_calls(model.vision) as calls:
        model.plain_logits(given, [65]) if model.why_plain else run_prefix(model, given)
    return calls[0]


@pytest.mark.parametrize("name", named(PACKED))
@pytest.mark.parametrize("of", PICTURES)
def test_a_tower_with_its_numbers_made_on_the_host_has_the_bits_of_the_stock_one(checkpoints, name, of):
    checkpoint = checkpoints(name)
    found = tower(checkpoint.model, ASKED[of])
    assert {"position_ids", "cu_seqlens", "max_seqlen"} <= found.options.keys()
    own = own_tower(checkpoint, ASKED[of])
    assert "cu_seqlens" not in own.options
    assert torch.equal(found.hidden, own.hidden)


@pytest.mark.parametrize("name", named(BY_FLASH))
@pytest.mark.parametrize("of", PICTURES)
def test_by_flash_a_layer_attends_in_one_call_as_the_stock_one_does_by_image_and_window(
    checkpoints, name, of, monkeypatch
):
    flash, checkpoint = Flash(monkeypatch), checkpoints(name)
    model = checkpoint.reloaded().model
    assert model.vision.config._attn_implementation == NAME
    flash.calls, layers = 0, []
    for module in model.vision.modules():
        if hasattr(module, "head_dim"):
            module.register_forward_pre_hook(lambda *given: layers.append(given))
    found = tower(model, ASKED[of])
    assert flash.calls == len(layers) > 0
    own = own_tower(checkpoint, ASKED[of])
    torch.testing.assert_close(found.hidden, own.hidden, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", named(PACKED))
@torch.inference_mode()
def test_a_tower_by_flash_asks_the_device_for_nothing(checkpoints, name, monkeypatch):
    """On tensors without values, of which the host can read none; what it sends goes by `sent` alone."""
    Flash(monkeypatch)
    model = checkpoints(name).reloaded().model
    inputs = prompt(model, ASKED["two images"]).inputs
    size, pixels = inputs["image_grid_thw"], inputs["pixel_values"].to("meta")
    grid = mirrored({"grid": size.to("meta")}, {"grid": size}, Known(META))["grid"]
    model.vision.to("meta")
    for code in (packed_tower, mirrors):
        monkeypatch.setattr(code, "sent", arrived)
    monkeypatch.setattr(packed_tower, "flash", lambda query, *others: (torch.empty_like(query), None))
    with OneDevice():
        hidden = model.vision(pixels, grid_thw=grid)[0]
    assert hidden.device.type == "meta"
    with pytest.raises(RuntimeError, match="meta tensor"):
        model.vision(pixels, grid_thw=size.to("meta"))


def across_bounds(query, key, value, queries, keys, causal, scale):
    whole = queries._replace(starts=queries.starts[[0, -1]], longest=len(query))
    return within_bounds(query, key, value, whole, whole, causal, scale)


def unable(*given):
    raise RuntimeError("head dimension not supported")


@pytest.mark.parametrize("attend", [across_bounds, unable])
def test_a_tower_that_flash_gives_other_numbers_keeps_its_own_attention(checkpoints, monkeypatch, attend):
    # Its small prompt, which the trial runs, has several windows.
    checkpoint, flash = checkpoints("qwen2_5_vl"), Flash(monkeypatch, attend)
    model = checkpoint.reloaded().model
    assert flash.calls > 0
    assert model.why_plain is None
    assert model.vision.config._attn_implementation == "sdpa"
    found = tower(model, ASKED["two images"])
    assert torch.equal(found.hidden, own_tower(checkpoint, ASKED["two images"]).hidden)


@pytest.mark.parametrize("name", named(OTHERS))
def test_other_towers_stay_as_they_are(checkpoints, name, monkeypatch):
    flash, checkpoint = Flash(monkeypatch), checkpoints(name)
    model = checkpoint.reloaded().model
    assert flash.calls == 0
    assert set(tower(model, ASKED["wide"]).options) == set(own_tower(checkpoint, ASKED["wide"]).options)
