"""What the fields of a LLaVA's config.json mean: which tower, which of its states, and whether the head is tied."""

import json
import shutil
from pathlib import Path

import pytest
from folders import edit
from refusals import load

from data_engine.models.checkpoints.json_files import ModelError
from data_engine.models.native.llava_config import read_config
from data_engine.questions.conversation import Conversation


def test_of_two_towers_that_of_the_checkpoint_is_read(folder):
    inside = Path(
        shutil.copytree(folder.parent / "openai/clip-vit-large-patch14-336", folder / "clip-vit-large-patch14-336")
    )
    assert read_config(folder, False).tower_folder == inside
    assert read_config(folder, True).tower_folder is None


def test_a_checkpoint_that_does_not_say_which_layer_it_reads_is_read_as_transformers_would(folder):
    """transformers' LlavaConfig says what its own layout means without the fields; LLaVA's own means the same."""
    from transformers import LlavaConfig as Stock

    edit(folder / "config.json", mm_vision_select_layer=..., mm_vision_select_feature=...)
    found, stock = read_config(folder, False), Stock()
    layers = found.vision.num_hidden_layers
    assert (stock.vision_feature_layer, stock.vision_feature_select_strategy) == (-2, "default")
    # hidden_states[-2] is what the last layer but one gives; "default" drops the class token.
    assert (found.vision_layers, found.drop_cls) == (layers - 1, True)


def test_the_selected_state_of_the_tower_is_counted_from_the_embeddings_or_from_the_end(folder):
    """There is one state more than layers, as in transformers' hidden_states."""
    edit(folder / "config.json", mm_vision_select_layer=-1)
    most = read_config(folder, False).vision_layers
    for select, layers in ((0, 0), (1, 1), (most, most), (-2, most - 1), (-most - 1, 0)):
        edit(folder / "config.json", mm_vision_select_layer=select)
        assert read_config(folder, False).vision_layers == layers
    for select in (most + 1, -most - 2):
        edit(folder / "config.json", mm_vision_select_layer=select)
        with pytest.raises(ModelError, match=f"selects vision layer {select}, the tower has {most} layers"):
            read_config(folder, False)


@pytest.mark.parametrize("tied", [True, False])
def test_in_the_layout_of_transformers_the_top_level_says_whether_head_and_embeddings_are_one(tmp_path, goldens, tied):
    text = json.loads((goldens / "llava/instruct/config.json").read_text())
    text |= {"model_type": "llama", "tie_word_embeddings": not tied}
    raw = {"text_config": text, "vision_config": {}, "tie_word_embeddings": tied}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert read_config(tmp_path, True).text.tie_word_embeddings is tied


def test_a_prompt_is_as_long_as_its_embeddings_with_the_class_token_too(folder, golden_images):
    for feature, tokens in (("patch", 16), ("cls_patch", 17)):
        edit(folder / "config.json", mm_vision_select_feature=feature)
        model = load(folder)
        prompt = model.prompt(Conversation.of("What is it?", 1), golden_images[:1], True, 64)
        assert model.image_tokens == tokens
        assert prompt.length == len(prompt.embeds(model))
