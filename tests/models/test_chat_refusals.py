"""Checkpoints and settings that no prompt can be made with: one sentence says what is wrong and how to mend it."""

import json
from fnmatch import fnmatch

import chat_folders
import pytest
import torch
import transformers
from PIL import Image
from tokenizers.processors import TemplateProcessing
from transformers.utils import DummyObject

from data_engine.chat_settings import ChatSettings
from data_engine.errors import UserError
from data_engine.models.auto.config import load_config
from data_engine.models.auto.text import processor
from data_engine.models.auto.text.chat import Chat
from data_engine.models.auto.text.processor import explained
from data_engine.models.checkpoints.json_files import ModelError
from data_engine.models.checkpoints.places import fetch
from data_engine.questions.conversation import Conversation

# numpy of torch's tensors, in PaliGemma's processor.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

PICTURE = Image.radial_gradient("L").convert("RGB")


@pytest.fixture
def folder(tmp_path):
    return chat_folders.saved(chat_folders.qwen3_vl(), tmp_path / "model")


def rewrite(path, **fields):
    told = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in told.items() if value is not None}))


def refused(folder, settings=None):
    with pytest.raises(ModelError) as caught:
        Chat.load(folder, settings or ChatSettings())
    told = str(caught.value)
    assert "\n" not in told
    return told


def test_no_chat_template(folder):
    (folder / "chat_template.jinja").unlink()
    assert refused(folder) == f"{folder} has no chat template: pass one with --chat_template FILE"
    chat = Chat.load(folder, ChatSettings(chat_folders.chatml("<|image_pad|>")))
    assert "Who?" in chat.text(chat.inputs(Conversation.of("Who?"), [PICTURE])["input_ids"][0].tolist())


def test_files_as_older_checkpoints_have_them(folder):
    told = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").unlink()
    pixels = told["image_processor"] | {"image_processor_type": "Qwen2VLImageProcessorFast",
                                        "processor_class": "Qwen3VLProcessor"}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    chat = Chat.load(folder)
    assert chat.image_processor_name == "Qwen2VLImageProcessorPil"
    assert "Who?" in chat.text(chat.inputs(Conversation.of("Who?"), [PICTURE])["input_ids"][0].tolist())


def test_a_download_brings_every_file_that_a_processor_is_read_from(folder, monkeypatch):
    asked = {}
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **more: asked.update(more) or folder)
    fetch("org/name")
    files = [path.name for path in folder.iterdir()] + ["merges.txt", "vocab.json", "tokenizer.model"]
    assert "chat_template.jinja" in files
    assert all(any(fnmatch(name, pattern) for pattern in asked["allow_patterns"]) for name in files)


def test_several_templates_without_a_default(folder):
    (folder / "chat_template.jinja").unlink()
    rewrite(folder / "tokenizer_config.json", chat_template=[{"name": "tool_use", "template": "x"}])
    assert "has chat templates tool_use, and none of the name default" in refused(folder)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}",
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
        "{% for m in messages %}{% for c in m.content %}{% if c.type == 'image' %}[picture]{% else %}{{ c.text }}"
        "{% endif %}{% endfor %}{% endfor %}",
    ],
)
def test_a_template_without_a_place_for_images(folder, template):
    assert "--chat_template has no place for images: pass one that has" in refused(folder, ChatSettings(template))


def test_a_template_that_is_no_jinja(folder):
    assert "--chat_template is not a Jinja template" in refused(folder, ChatSettings("{% for m in messages %}"))
    (folder / "chat_template.jinja").write_text("{% for m in messages %}")
    assert f"the chat template of {folder} is not a Jinja template" in refused(folder)


def test_a_template_that_fails(folder):
    told = refused(folder, ChatSettings("{{ raise_exception('no roles today') }}"))
    assert told == "--chat_template cannot be used: no roles today; --chat_template FILE replaces it"


def test_variables_of_the_template(folder):
    source = chat_folders.chatml("<|image_pad|>") + "{% if enable_thinking is false %}<think>{% endif %}"
    chat = Chat.load(folder, ChatSettings(source, {"enable_thinking": False, "enable_thinkin": True}))
    ids = chat.inputs(Conversation.of("Who?"), [PICTURE])["input_ids"][0].tolist()
    assert chat._tokenizer.decode(ids).endswith("assistant\n<think>")
    begun = chat.inputs(Conversation(Conversation.of("Who?").messages, "It"), [PICTURE])["input_ids"][0].tolist()
    assert chat._tokenizer.decode(begun).endswith("assistant\n<think>It")
    assert chat.unused_kwargs == ("enable_thinkin",)
    with pytest.raises(UserError, match="--chat_template_kwargs has 'tokenize', which the engine sets by itself"):
        Chat.load(folder, ChatSettings(kwargs={"tokenize": False}))


def test_a_prompt_does_not_change_by_the_day(folder):
    source = "{{ strftime_now('%d %b %Y') }} {{ strftime_now('%Y-%m-%d') }}\n" + chat_folders.chatml("<|image_pad|>")
    chat = Chat.load(folder, ChatSettings(source))
    ids = chat.inputs(Conversation.of("Who?"), [PICTURE])["input_ids"][0].tolist()
    assert chat._tokenizer.decode(ids).startswith("26 Jul 2024 2024-07-26\n<|im_start|>user\n")


def test_a_text_only_model(folder):
    rewrite(folder / "config.json", model_type="qwen2")
    assert "model_type 'qwen2', which is a text-only model to transformers" in refused(folder)


def test_a_model_of_no_image_text_to_text_kind(folder):
    rewrite(folder / "config.json", model_type="clip")
    assert "model_type 'clip', which is no image-text-to-text model to transformers" in refused(folder)


def test_an_encoder_decoder(folder):
    transformers.Florence2Config().save_pretrained(folder)
    assert "encoder-decoder (florence2)" in refused(folder)


def test_a_model_that_transformers_does_not_know(folder):
    rewrite(folder / "config.json", model_type="qwen99_vl")
    assert "model_type 'qwen99_vl', which transformers" in refused(folder)
    assert "pip install -U transformers" in refused(folder)


def test_remote_code_of_a_model_is_never_run(folder):
    (folder / "own.py").write_text("raise SystemExit('this code was run')")
    rewrite(folder / "config.json", model_type="own", auto_map={"AutoConfig": "own.Config"})
    assert "remote code is never run" in refused(folder)


def test_remote_code_of_a_processor_is_never_run(folder):
    (folder / "own.py").write_text("raise SystemExit('this code was run')")
    for name in ("processor_config.json", "tokenizer_config.json"):
        rewrite(folder / name, processor_class="OwnProcessor", auto_map={"AutoProcessor": "own.OwnProcessor"})
    # The class of transformers for this kind of model does as well.
    Chat.load(folder)


FROM_THE_BASE = (
    "which a trainer saves apart from the model: copy the files of processor and tokenizer from the model that it was "
    "trained from"
)


def test_no_processor(folder):
    (folder / "processor_config.json").unlink()
    files = "processor_config.json or preprocessor_config.json"
    assert refused(folder) == f"{folder} has no processor ({files}), {FROM_THE_BASE}"


@pytest.mark.parametrize("name", list(chat_folders.FAMILIES))
def test_no_tokenizer(name, tmp_path):
    folder = chat_folders.saved(chat_folders.FAMILIES[name](), tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    assert refused(folder) == f"{folder} has no tokenizer (tokenizer.json or tokenizer.model), {FROM_THE_BASE}"


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "internvl"])
def test_a_tokenizer_that_writes_an_end_behind_each_text(name, tmp_path):
    """As LLaMA's with add_eos_token, which texts to be trained on were made with; answers would follow that end."""
    config, processor = chat_folders.FAMILIES[name]()
    tokenizer = processor.tokenizer
    end = (tokenizer.eos_token, tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(f"$A {end[0]}", f"$A $B {end[0]}", [end])
    folder = chat_folders.saved((config, processor), tmp_path)
    assert refused(folder).startswith(f"the tokenizer of {folder} writes {end[0]} behind each text, prompts too, as ")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "chat_template.jinja", "merges.txt"])
def test_a_pointer_of_git_lfs(folder, name):
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert 'run "git lfs pull"' in refused(folder)


def test_a_processor_that_needs_torchvision(folder):
    rewrite(folder / "config.json", model_type="cohere2_vision")
    rewrite(folder / "processor_config.json", processor_class="Cohere2VisionProcessor",
            image_processor={"image_processor_type": "Cohere2VisionImageProcessor"})  # fmt: skip
    assert "needs torchvision: pip install torchvision==0." in refused(folder)


def test_the_torchvision_that_is_named_is_the_one_of_this_torch(folder, monkeypatch):
    # As PyTorch lists its releases.
    for torch_version, release in {"2.0.1": "0.15", "2.11.0+cpu": "0.26"}.items():
        monkeypatch.setattr(torch, "__version__", torch_version)
        told = str(explained(folder, ImportError("it needs torchvision")))
        assert told == f"the processor of {folder} needs torchvision: pip install torchvision=={release}.*"


def test_the_processor_is_the_one_that_the_folder_names_before_that_of_the_kind_of_model(tmp_path):
    """Pixtral's configuration, for one, is LLaVA's."""
    config = transformers.LlavaConfig()
    (tmp_path / "processor_config.json").write_text('{"processor_class": "LlavaOnevisionProcessor"}')
    assert processor._class(tmp_path, config) is transformers.LlavaOnevisionProcessor
    (tmp_path / "processor_config.json").write_text("{}")
    assert processor._class(tmp_path, config) is transformers.LlavaProcessor


def test_a_processor_that_is_hidden_without_torchvision_is_not_replaced_by_another(folder, monkeypatch):
    """As transformers hides Pixtral's: that of LLaVA would leave its line breaks out of prompts."""

    class Hidden(metaclass=DummyObject):
        _backends = ("torchvision",)

    monkeypatch.setattr(transformers, "HiddenProcessor", Hidden, raising=False)
    rewrite(folder / "processor_config.json", processor_class="HiddenProcessor")
    assert "needs torchvision: pip install torchvision==0." in refused(folder)


def test_a_processor_without_a_part_for_images(folder):
    rewrite(folder / "processor_config.json", processor_class="WhisperProcessor")
    told = refused(folder)
    assert told == f"the processor of {folder} (WhisperProcessor) has no image processor: it takes no images"


def test_a_processor_that_asks_a_part_that_is_not_there_needs_torchvision(folder):
    """As one asks its video processor, of which the error does not speak."""
    asked = AttributeError("'NoneType' object has no attribute 'merge_size'", name="merge_size", obj=None)
    assert "needs torchvision: pip install torchvision==0." in str(explained(folder, asked))
    other = AttributeError("no attribute 'merge_size'", name="merge_size", obj=folder)
    assert "cannot be used (AttributeError" in str(explained(folder, other))


def test_what_attends_is_not_for_a_configuration_to_say(folder):
    """A training by FlashAttention may leave its name there, which this machine need not have."""
    rewrite(folder / "config.json", attn_implementation="flash_attention_2", _attn_implementation="flash_attention_2")
    assert load_config(folder)._attn_implementation is None


def test_a_package_that_a_processor_needs_is_named(folder):
    words = "Package `num2words` is required to run SmolVLM processor. Install it with `pip install num2words`."
    assert str(explained(folder, ImportError(words))) == (
        f"the processor of {folder} needs num2words: pip install num2words"
    )
    missing = ModuleNotFoundError("No module named 'timm'", name="timm")
    assert str(explained(folder, missing)) == f"the processor of {folder} needs timm: pip install timm"


def test_no_end_of_an_answer(tmp_path):
    config, processor = chat_folders.paligemma()
    processor.tokenizer.eos_token = None
    folder = chat_folders.saved((config, processor), tmp_path)
    assert "names no token that ends an answer: set eos_token" in refused(folder)
