"""Prompts for vLLM: token ids and pictures of the model's family, and what shows that it made others of them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import LlavaConfig

from data_engine.errors import UserError
from data_engine.models import family_class
from data_engine.models.native.llava import LlavaPrompts, square
from data_engine.models.prompt_maker import TokenPrompt
from data_engine.questions.conversation import Conversation
from data_engine.questions.images import decode
from data_engine.scoring.drawn_check import Drawn, check_drawn
from data_engine.store import units


def test_the_pictures_of_llava_are_cut_before_any_processor_sees_them(folders, golden_images):
    maker = family_class("llava").prompt_maker(folders["instruct"])
    for image in golden_images:
        for crop in (True, False):
            made = maker.prompt(Conversation.of("Why?"), [image], crop, 64)
            [shown] = made.images
            assert shown.size == (56, 56)
            assert np.array_equal(np.asarray(shown), np.asarray(square(image, 56, crop, 64)))
            assert made.expanded.count(4) == 16
            assert made.ids.count(4) == 1


@pytest.mark.parametrize(
    "told", [{}, {"image_token_index": 7}, {"image_token_id": 7}, {"image_token_id": 7, "image_token_index": 9}]
)
def test_the_id_that_stands_for_a_picture_is_that_of_transformers(folders, tmp_path, told):
    folder = Path(shutil.copytree(folders["instruct"], tmp_path / "copy"))
    raw = json.loads((folder / "config.json").read_text())
    raw = {name: value for name, value in raw.items() if not name.startswith("image_token_i")} | told
    (folder / "config.json").write_text(json.dumps(raw))
    assert LlavaPrompts(folder).banned_token_ids == (LlavaConfig.from_dict(raw).image_token_id,)


@pytest.mark.parametrize("name", ["instruct", "qwen"])
def test_a_template_is_written_with_its_pictures_not_yet_expanded(folders, goldens, name):
    """The processor's ids, each picture's many tokens made one again."""
    image = pq.read_table(goldens / "llava/dataset/questions.parquet")["image"][0].as_py()["bytes"]
    pictures = [decode(image, 64), decode(image, 64).resize((140, 84))]
    maker = family_class("auto").prompt_maker(folders[name])
    token = {"instruct": 4, "qwen": 6 + 2}[name]
    for number in (0, 1, 2):
        conversation = Conversation.of("What is on <b>it</b>?", number, system="Be brief.")
        made = maker.prompt(conversation, pictures[:number], True, 64)
        assert made.ids.count(token) in (number, 0)
        media = set(maker.banned_token_ids)
        kept = [one for at, one in enumerate(made.expanded) if one not in media or made.expanded[at - 1] != one]
        assert made.ids == kept


def test_an_expansion_that_is_not_the_familys_is_refused_at_once(settings, vllm, tmp_path, monkeypatch, refusal):
    honest = LlavaPrompts.prompt

    def other(*asked):
        made = honest(*asked)
        return TokenPrompt(made.ids, made.images, [*made.expanded, 7])

    monkeypatch.setattr(LlavaPrompts, "prompt", other)
    assert "vLLM makes another prompt than the engine, which scores answers" in refusal(settings())
    assert not units.published(tmp_path / "work", "sampled_answer")


def gradient(size: tuple[int, int]) -> Image.Image:
    return Image.linear_gradient("L").resize(size).convert("RGB")


PLANTED = {
    "template": lambda made, ids: TokenPrompt([one for one in made.ids if one not in ids], made.images,
                                              [one for one in made.expanded if one not in ids]),
    # Of another kind: the random tower of this model sees little of a picture that is only turned.
    "picture": lambda made, ids: TokenPrompt(made.ids, [gradient(one.size) for one in made.images], made.expanded),
}  # fmt: skip


@pytest.mark.parametrize("same_pixels", [True, False])
@pytest.mark.parametrize("planted", PLANTED)
def test_another_prompt_or_picture_shows_in_the_log_probs(settings, vllm, monkeypatch, planted, same_pixels, refusal):
    honest, letters = LlavaPrompts.prompt, set(range(60, 130))
    monkeypatch.setattr(LlavaPrompts, "prompt", lambda *a: PLANTED[planted](honest(*a), letters))
    said = refusal(settings(same_pixels=same_pixels))
    assert said.startswith("vLLM drew these answers from another distribution than they are scored by: ")
    assert "more than 0.05 allows for rounding in float32" in said


def test_log_probs_are_compared_token_by_token_over_the_answers_that_were_scored():
    """By hand: 0.2 over 2 tokens, 0.3 over 3 and 0.3 over 1; the last answer was not scored."""
    keys = {"idx": ["a", "a", "b", "b"], "sample_index": [0, 1, 0, 1]}
    scored = {"idx": ["b", "a", "a"], "sample_index": [0, 1, 0], "sum": [-3.3, -9.3, -4.2]}
    scored["token_logps"] = [[-3.3], [-3.1] * 3, [-2.1] * 2]
    asked = (pa.table(keys), [-4.0, -9.0, -3.0, -1.0], pa.table(scored))
    assert check_drawn(*asked, torch.bfloat16) == Drawn(pytest.approx(0.5 / 3), pytest.approx(0.3), "b")
    with pytest.raises(UserError, match=r"0\.167 nat a token off .* more than 0\.05 .* row 'b', 0\.3"):
        check_drawn(*asked, torch.float32)


def test_log_probs_that_are_no_numbers_are_those_of_another_distribution():
    keys = {"idx": ["a"], "sample_index": [0]}
    scored = pa.table({**keys, "sum": [-1.0], "token_logps": [[-1.0]]})
    with pytest.raises(UserError, match="nan nat a token off"):
        check_drawn(pa.table(keys), [float("nan")], scored, torch.float32)
