"""What a model of transformers takes, by its configuration: pictures, prompts that are shared, and embeddings."""

import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from transformers import (
    Blip2ForConditionalGeneration,
    IdeficsConfig,
    Llama4TextConfig,
    PreTrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from data_engine.errors import UserError
from data_engine.models.auto.limits import (
    check_size,
    fast_positions,
    known_ids,
    needs_pixels,
    num_embeddings,
    takes_token_types,
)
from data_engine.models.auto.model import Auto
from data_engine.models.auto.text.prompts import AutoPrompts
from data_engine.models.checkpoints.json_files import ModelError
from data_engine.questions.conversation import Conversation
from data_engine.questions.images import BadImage

CONTEXT = 1000


def llama4(**own: object) -> Llama4TextConfig:
    return Llama4TextConfig(max_position_embeddings=CONTEXT, **own)


def rope(kind: str, **own: object) -> Qwen2Config:
    told = {"rope_type": kind, "factor": 2.0, "rope_theta": 10000.0, **own}
    return Qwen2Config(max_position_embeddings=CONTEXT, rope_parameters=told)


def by_kind_of_layer(original: int) -> PreTrainedConfig:
    """As Gemma 3's: a table for each kind of layer."""
    tables = {"sliding": {"rope_type": "default"}, "full": rope("dynamic", original_max_position_embeddings=original)}
    tables["full"] = tables["full"].rope_parameters
    return PreTrainedConfig(max_position_embeddings=CONTEXT, rope_parameters=tables)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (rope("default"), CONTEXT),
        (rope("dynamic", original_max_position_embeddings=300), 300),
        # Without that number, the table grows from the context on.
        (rope("dynamic"), CONTEXT),
        # A table of another kind is the same wherever a prompt ends.
        (rope("yarn", original_max_position_embeddings=300), CONTEXT),
        # A context that was cut is the limit.
        (rope("dynamic", original_max_position_embeddings=5000), CONTEXT),
        # Learned positions, as those of OPT.
        (PreTrainedConfig(max_position_embeddings=CONTEXT), CONTEXT),
        (by_kind_of_layer(300), 300),
        (llama4(attn_temperature_tuning=True, floor_scale=300), 300),
        (llama4(attn_temperature_tuning=True, floor_scale=8192), CONTEXT),
        (llama4(attn_temperature_tuning=False, floor_scale=300), CONTEXT),
    ],
)  # fmt: skip
def test_prompts_are_shared_up_to_where_places_are_counted_otherwise(config, expected):
    assert fast_positions(config) == expected


def idefics() -> IdeficsConfig:
    """With embeddings of 3 tokens in a table behind that of 100."""
    small = {"num_hidden_layers": 1, "intermediate_size": 16}
    return IdeficsConfig(
        vocab_size=100, additional_vocab_size=3, hidden_size=16, num_attention_heads=2, **small,
        vision_config={"embed_dim": 16, "image_size": 28, "patch_size": 14, "num_attention_heads": 2, **small},
        perceiver_config={"resampler_depth": 1, "resampler_n_heads": 2, "resampler_head_dim": 8},
    )  # fmt: skip


def test_embeddings_are_those_of_both_tables_of_idefics():
    assert num_embeddings(idefics(), 100) == 103


def test_a_model_that_cannot_be_made_without_numbers_has_embeddings_of_its_vocabulary():
    assert num_embeddings(Qwen2Config(), 7) == 7


@pytest.mark.parametrize(
    ("prompt_ids", "last_of_tokenizer", "expected"),
    [([5, 99], 99, sys.maxsize), ([5], 100, 103), ([5, 102], 99, 103), ([5, 100], 200, 103)],
)
def test_ids_beyond_the_vocabulary_are_known_up_to_the_last_embedding(prompt_ids, last_of_tokenizer, expected):
    tokenizer = SimpleNamespace(get_vocab=lambda: {"a": 0, "b": last_of_tokenizer})
    assert known_ids(prompt_ids, idefics(), tokenizer, Path("model")) == expected


def test_a_token_of_every_prompt_that_the_model_has_no_embedding_of_is_refused():
    tokenizer = SimpleNamespace(get_vocab=lambda: {"<image>": 103}, convert_ids_to_tokens={103: "<image>"}.get)
    with pytest.raises(ModelError, match="have the token '<image>' of id 103, and the model has embeddings of 103 "):
        known_ids([5, 103, 9], idefics(), tokenizer, Path("model"))


@pytest.mark.parametrize(
    ("model", "needed"),
    [
        (Blip2ForConditionalGeneration, True),
        (Qwen2_5_VLForConditionalGeneration, False),
        # Of text alone.
        (Qwen2ForCausalLM, False),
    ],
)
def test_pixels_are_needed_where_a_forward_has_no_default_for_them(model, needed):
    assert needs_pixels(model) == needed


# A configuration without a model of images and text is as one whose model takes none.
@pytest.mark.parametrize(
    ("config", "taken"), [(Qwen2_5_VLConfig, True), (IdeficsConfig, False), (PreTrainedConfig, False)]
)
def test_types_of_tokens_go_to_models_that_are_called_with_them(config, taken):
    assert takes_token_types(config) == taken


@pytest.mark.parametrize(
    ("size", "shortest_edge", "told"),
    [
        ((4, 4), 336, None),
        ((10, 3), 336, "image is 10 x 3 pixels; this model needs at least 4 on each side"),
        ((1000, 1000), None, None),
        ((1100, 1000), None, "source image 1100 x 1000 has 1.1 megapixels, max_megapixels is 1"),
        # A processor that makes the short side 100 pixels long makes the other one 50,000.
        ((4, 2000), None, None),
        ((4, 2000), 20, None),
        ((4, 2000), 100, "resized image 100 x 50000 has 5.0 megapixels, max_megapixels is 1"),
    ],
)
def test_pictures_of_which_a_processor_would_make_too_much_or_nothing_are_refused(size, shortest_edge, told):
    def check() -> None:
        check_size(Image.new("RGB", size), shortest_edge, 1)

    if told is None:
        check()
    else:
        with pytest.raises(BadImage, match=f"^{told}"):
            check()


def test_every_way_to_a_prompt_looks_at_the_size_of_its_pictures(folders, chats):
    model = object.__new__(Auto)
    vars(model).update(chat=chats("llava"), layers=(), why_plain=None, reads_ahead=False, _needs_pixels=False,
                       _one_at_a_time=threading.Lock())  # fmt: skip
    asked = Conversation.of("Who?")
    for make in (
        lambda picture: model.prompt(asked, [picture], True, 64),
        lambda picture: model.prompts([asked], [picture], True, 64),
        lambda picture: model.shared_prompt([asked, Conversation.of("What?")], [picture], 64),
        lambda picture: AutoPrompts(folders("llava")).prompt(asked, [picture], True, 64),
    ):
        assert make(Image.new("RGB", (4, 10)))
        with pytest.raises(BadImage, match="this model needs at least 4 on each side"):
            make(Image.new("RGB", (3, 10)))


def test_prompts_that_are_read_in_both_directions_share_no_beginning():
    model = object.__new__(Auto)
    vars(model).update(reads_ahead=True)
    with pytest.raises(UserError, match="read in both directions, so none is the beginning of another"):
        model.shared_prompt([Conversation.of("Who?")] * 2, [Image.new("RGB", (9, 9))], 64)
