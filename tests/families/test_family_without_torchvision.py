"""Families for films and pictures take pictures without torchvision, which their video processors need."""

import pytest
from asked import ASKED
from families import named

from data_engine.models.auto.config import load_config
from data_engine.models.auto.text import processor as code
from data_engine.models.auto.text.chat import Chat
from data_engine.models.checkpoints.json_files import ModelError
from data_engine.questions.conversation import Conversation


@pytest.fixture
def without_torchvision(monkeypatch) -> None:
    found = code.find_spec
    monkeypatch.setattr(code, "find_spec", lambda name: None if name == "torchvision" else found(name))


# Those name the video processor first, in the middle and last.
@pytest.mark.parametrize("name", named(["llava_next_video", "video_llava", "qwen2_5_vl"]))
def test_a_picture_becomes_the_same_inputs(checkpoints, name, without_torchvision):
    checkpoint = checkpoints(name)
    expected = checkpoint.stock.inputs(ASKED["wide"])
    loaded = code.load_processor(checkpoint.folder, load_config(checkpoint.folder))
    assert getattr(loaded, "video_processor", None) is None
    found = loaded.apply_chat_template(
        ASKED["wide"].messages(), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert found.keys() == expected.keys()
    assert all((found[name] == value).all() for name, value in expected.items())


@pytest.mark.parametrize("name", named(["minicpm_ocr"]))
def test_a_class_that_asks_its_video_processor_for_something_is_refused(checkpoints, name, without_torchvision):
    folder = checkpoints(name).folder
    with pytest.raises(ModelError, match="needs torchvision: pip install torchvision=="):
        code.load_processor(folder, load_config(folder))


@pytest.mark.parametrize("name", named(["qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"]))
def test_a_class_that_asks_it_for_what_its_model_does_not_take_is_not_asked(checkpoints, name, without_torchvision):
    folder, asked = checkpoints(name).folder, ASKED["wide"]
    loaded = Chat.load(folder)
    assert loaded._processor.video_processor is None
    found = loaded.inputs(Conversation.of(asked.question, 1), asked.images())
    expected = checkpoints(name).stock.inputs(asked)
    assert (found["input_ids"] == expected["input_ids"]).all()
