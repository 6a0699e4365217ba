"""Families of transformers whose tower takes the images of several prompts at a time."""

import pytest
import torch
from families import named
from internvl_folders import write
from PIL import Image
from transformers import GenerationMixin

from data_engine.models import image_groups, load_model
from data_engine.models.auto import probing
from data_engine.models.auto.model import Auto
from data_engine.questions.conversation import Conversation
from data_engine.scoring import logprobs
from data_engine.scoring.logprobs import Scored, plain_token_logps, score_pass

# Wide, tall and square ones: InternVL cuts them into different numbers of tiles.
SIZES = [(112, 40), (50, 120), (64, 64), (90, 90)]
ANSWERS = [[72, 33, 90], [12, 8]]


@pytest.fixture
def as_on_a_gpu(monkeypatch) -> None:
    """Where several prompts run in one row of the decoder besides."""
    monkeypatch.setattr(image_groups, "images_a_call", lambda model: 64)
    monkeypatch.setattr(logprobs, "prompts_together", lambda model: 3 if model.packs_prompts else 1)


def questions(model) -> list[Scored]:
    pictures = [Image.effect_noise(size, 60).convert("RGB") for size in SIZES]
    return [
        Scored(model.prompt(Conversation.of("What is in it?"), [picture], True, 64), ANSWERS) for picture in pictures
    ]


def assert_as_plain(model, asked: list[Scored]) -> None:
    for one, found in zip(asked, score_pass(model, asked), strict=True):
        for ids, logps in zip(one.answers, found, strict=True):
            torch.testing.assert_close(logps, plain_token_logps(model, one.prompt, ids), rtol=0, atol=2e-5)


def assert_one_call(model, asked: list[Scored]) -> None:
    assert model.encodes_together
    # Prompts that it tries go through the tower too.
    assert model.packs_prompts == (model.text_config.model_type != "gemma3_text")
    calls: list[int] = []
    with model.vision.register_forward_pre_hook(
        lambda module, args, options: calls.append(len(options["pixel_values"] if not args else args[0])),
        with_kwargs=True,
    ):
        score_pass(model, asked)
    assert calls == [sum(len(one.prompt.inputs["pixel_values"]) for one in asked)]


@pytest.mark.parametrize("name", named(["llava", "vipllava", "fast_vlm", "internvl", "gemma3"]))
def test_images_of_a_pass_go_through_the_tower_together(checkpoints, name, as_on_a_gpu):
    model = load_model("auto", str(checkpoints(name).folder))
    asked = questions(model)
    assert_one_call(model, asked)
    assert_as_plain(model, asked)


def test_internvls_own_layout_too(tmp_path, as_on_a_gpu):
    model = load_model(None, str(write(tmp_path / "internvl", "qwen2")))
    asked = questions(model)
    assert_one_call(model, asked)
    assert_as_plain(model, asked)


@pytest.mark.parametrize("name", named(["qwen2_5_vl", "llava_onevision", "aria", "deepseek_vl_hybrid"]))
def test_a_family_whose_tower_does_not_take_them_runs_each_prompt_whole(checkpoints, name, as_on_a_gpu):
    model = load_model("auto", str(checkpoints(name).folder))
    assert not model.encodes_together
    assert_as_plain(model, questions(model))


@pytest.mark.parametrize("name", named(["internvl", "gemma3"]))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tower_that_gives_other_features_is_found_out(checkpoints, name, dtype, as_on_a_gpu, monkeypatch):
    """Those of another picture, and none; what rounding leaves of them is no fault."""
    model, features = load_model("auto", str(checkpoints(name).folder), dtype=dtype), Auto.image_features
    assert model.encodes_together
    for wrong in (torch.Tensor.flip, lambda found, first: 0 * found):
        monkeypatch.setattr(Auto, "image_features", lambda model, pixels, w=wrong: w(features(model, pixels), 0))
        assert not probing.encodes_together(model)
    step = {"float32": 1e-5, "bfloat16": 1 / 128}[dtype]
    monkeypatch.setattr(Auto, "image_features", lambda *given: rounded(features(*given), step))
    assert probing.encodes_together(model)


def test_memory_that_runs_out_while_they_are_tried_says_nothing_of_the_tower(checkpoints, as_on_a_gpu, monkeypatch):
    model = load_model("auto", str(checkpoints("internvl").folder))

    def full(model, pixels):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(Auto, "image_features", full)
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        probing.encodes_together(model)


def rounded(found: torch.Tensor, step: float) -> torch.Tensor:
    """Each number off by up to this share of it."""
    generator = torch.Generator().manual_seed(0)
    return found * (1 + step * (2 * torch.rand(found.shape, generator=generator) - 1)).to(found.dtype)


def test_an_older_transformers_takes_them_one_by_one_and_that_is_told_once(tmp_path, as_on_a_gpu, monkeypatch, caplog):
    monkeypatch.delattr(GenerationMixin, "_supports_mm_encoder_outputs", raising=False)
    probing.takes_features.cache_clear()
    folder = write(tmp_path / "internvl", "qwen2")
    models = [load_model(None, str(folder)) for _ in range(2)]
    probing.takes_features.cache_clear()
    assert [model.encodes_together for model in models] == [False, False]
    assert caplog.text.count("go through the vision tower one by one") == 1
    assert_as_plain(models[0], questions(models[0]))
