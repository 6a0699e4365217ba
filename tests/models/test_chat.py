"""Prompts of any checkpoint of transformers, by its own processor and template; what is known of the checkpoint."""

import chat_folders
import pytest
import torch
from chat_prompts import BY_TOKEN, IMAGE_TOKEN, PICTURES, UNLIKE, asked, bytes_of, families, ids_of, spelled

from data_engine.chat_settings import ChatSettings
from data_engine.errors import BadRow, UserError
from data_engine.models.auto.text.chat import Chat
from data_engine.questions.conversation import Conversation, Message

# numpy of torch's tensors, in the processors of PaliGemma and InternVL.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


@families
def test_inputs_are_what_the_processor_makes_of_the_chat(name, chats):
    chat, question = chats(name), "How many <cats>?"
    content = [{"type": "image", "image": PICTURES[0]}, {"type": "text", "text": question}]
    usual = chat._processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
        return_tensors="pt",
    )  # fmt: skip
    given = chat.inputs(Conversation.of(question), PICTURES)
    assert given.keys() == usual.keys() - {"labels"}
    assert all(torch.equal(given[key], usual[key]) for key in given)
    assert chat._tokenizer.convert_tokens_to_ids(IMAGE_TOKEN[name]) in given["input_ids"][0]


@families
@pytest.mark.parametrize("call", [{"truncation": True, "padding": True}, {"truncation": True, "padding": "max_length"}])
def test_a_tokenizer_by_which_a_trainer_cut_texts_to_a_length_cuts_no_prompt(name, call, chats, tmp_path):
    config, processor = chat_folders.FAMILIES[name]()
    processor.tokenizer(["How many?"], max_length=16, **call)
    folder = chat_folders.saved((config, processor), tmp_path)
    assert '"max_length": 16' in (folder / "tokenizer.json").read_text()
    question = asked(0, "How many cats are in the picture, and what do they do there?")
    assert ids_of(Chat.load(folder), question) == ids_of(chats(name), question)


@families
def test_several_images_stand_where_the_question_has_them(name, chats):
    chat = chats(name)
    token = chat._tokenizer.convert_tokens_to_ids(IMAGE_TOKEN[name])
    ids = ids_of(chat, asked(0, "<or>", 1, "Which?"))
    if name != "llava":
        [at] = [place for place in range(len(ids)) if ids[place : place + 4] == bytes_of("<or>")]
        assert token in ids[:at]
        assert token in ids[at:]
    # LLaVA's template puts all images first.
    assert ids.count(token) == 2 * ids_of(chat, asked(0, "Which?")).count(token) or name in UNLIKE
    # The picture that is named first comes first.
    turned = chat.inputs(asked(1, "or", 0, "Which?"), PICTURES)["pixel_values"]
    assert not torch.equal(chat.inputs(asked(0, "or", 1, "Which?"), PICTURES)["pixel_values"], turned)


def test_images_that_the_template_does_not_place_leave_the_row_out(folders):
    first = chat_folders.chatml("<|image_pad|>").replace("c.type == 'image'", "c.type == 'image' and loop.first")
    first = first.replace("{% else %}{{ c.text }}", "{% elif c.type == 'text' %}{{ c.text }}")
    chat = Chat.load(folders("qwen2_5_vl"), ChatSettings(first))
    assert ids_of(chat, asked(0, "Who?"))
    with pytest.raises(BadRow, match="the chat template places 1 of 2 images"):
        chat.inputs(asked(0, 1, "Who?"), PICTURES)
    # What stands before all of them need not stand before each.
    source = chat_folders.chatml("{% if loop.first %}<|vision_start|>{% endif %}<|image_pad|>")
    chat = Chat.load(folders("qwen2_5_vl"), ChatSettings(source))
    assert spelled(chat, ids_of(chat, asked(0, "or", 1, "?"))).count("<|image_pad|>") == 2


def test_a_message_of_an_image_alone_is_counted_by_a_template_that_looks_at_its_first_part(folders):
    source = chat_folders.chatml("<|image_pad|>").replace(
        "{% for c in m", "{% if m.content[0].type %}{% endif %}{% for c in m"
    )
    chat = Chat.load(folders("qwen2_5_vl"), ChatSettings(source))
    assert ids_of(chat, asked("Who?", before=(Message("user", (0,)), Message("assistant", ("A cat.",)))))


@pytest.mark.parametrize("error", [MemoryError(), ImportError("no num2words")])
def test_what_this_machine_lacks_leaves_no_row_out(chats, monkeypatch, error):
    def fail(*args: object, **options: object) -> None:
        raise error

    chat = chats("qwen3_vl")
    monkeypatch.setattr(type(chat._processor.image_processor), "__call__", fail)
    with pytest.raises(type(error)):
        chat.inputs(asked(0, "Who?"), PICTURES)


@pytest.mark.parametrize("name", [name for name in chat_folders.FAMILIES if name != "paligemma"])
def test_a_question_without_an_image_has_no_pixels(name, chats):
    given = chats(name).inputs(Conversation.of("Who?", 0), [])
    assert "pixel_values" not in given
    assert chats(name)._tokenizer.convert_tokens_to_ids(IMAGE_TOKEN[name]) not in given["input_ids"][0]


def test_a_processor_that_wants_an_image_leaves_a_question_without_one_out_in_its_own_words(chats):
    with pytest.raises(BadRow, match="PaliGemmaProcessor refuses it: `images` are expected"):
        chats("paligemma").inputs(Conversation.of("Who?", 0), [])


def test_a_system_text_and_earlier_turns_stand_in_the_prompt(chats):
    turns = (Message("system", ("Be brief.",)), Message("user", (0, "What?")), Message("assistant", ("A cat.",)))
    prompt = spelled(chats("qwen2_5_vl"), ids_of(chats("qwen2_5_vl"), asked("Sure?", before=turns)))
    assert prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What?<|im_end|>\n"
        "<|im_start|>assistant\nA cat.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    )
    prompt = spelled(chats("llava"), ids_of(chats("llava"), asked("Sure?", before=turns)))
    assert prompt == "<s>Be brief. USER: <image>\nWhat? ASSISTANT: A cat. USER: Sure? ASSISTANT:"


def test_a_role_that_the_template_refuses_leaves_the_row_out_by_its_name(chats):
    with pytest.raises(BadRow, match="takes no system message: System role not supported"):
        chats("paligemma").inputs(Conversation.of("Who?", 1, "Be brief."), PICTURES)


def test_a_role_whose_text_the_template_would_drop_is_refused(folders):
    silent = chat_folders.chatml("<|image_pad|>").replace("{% for m in messages %}",
                                                          "{% for m in messages if m.role != 'system' %}")  # fmt: skip
    chat = Chat.load(folders("qwen2_5_vl"), ChatSettings(silent))
    with pytest.raises(BadRow, match="takes no system message: it leaves their text out"):
        chat.inputs(Conversation.of("Who?", 1, "Be brief."), PICTURES)


def test_a_system_text_reaches_a_template_that_takes_texts_alone(folders):
    # As older templates do: a list would stand in the prompt in Python's words.
    text = (
        "{% if messages[0].role == 'system' %}[{{ messages[0].content }}]{% set messages = messages[1:] %}{% endif %}"
    )
    chat = Chat.load(folders("qwen2_5_vl"), ChatSettings(text + chat_folders.chatml("<|image_pad|>")))
    prompt = spelled(chat, ids_of(chat, Conversation.of("Who?", 1, "Be brief.")))
    assert prompt.startswith("[Be brief.]<|im_start|>user\n<|image_pad|>Who?")
    with pytest.raises(BadRow, match="takes no image in a system message"):
        ids_of(chat, asked("Who?", before=(Message("system", (0, "Be brief.")),)))


def test_a_template_that_wants_turns_in_their_order_takes_a_system_text_and_turns(folders):
    """As Gemma's and Qwen3's: an answer behind a question alone, and no conversation without one."""
    strict = (
        "{% set turns = messages | rejectattr('role', 'equalto', 'system') | list %}"
        "{% if not turns or turns[0].role != 'user' %}{{ raise_exception('begin with a question') }}{% endif %}"
    )
    chat = Chat.load(folders("qwen2_5_vl"), ChatSettings(strict + chat_folders.chatml("<|image_pad|>")))
    turns = Message("system", ("Be brief.",)), Message("user", (0, "Who?")), Message("assistant", ("A cat.",))
    prompt = spelled(chat, ids_of(chat, asked("So?", before=turns)))
    assert prompt.endswith("A cat.<|im_end|>\n<|im_start|>user\nSo?<|im_end|>\n<|im_start|>assistant\n")


def test_the_beginning_of_an_answer_ends_the_prompt(chats):
    for name in ("llava", "qwen3_vl", "gemma3", "mllama"):
        begun = ids_of(chats(name), asked(0, "Who?", start="It is"))
        assert begun == [*ids_of(chats(name), asked(0, "Who?")), *bytes_of("It is")]


def test_a_processor_that_writes_behind_the_prompt_takes_no_beginning_of_an_answer(chats):
    with pytest.raises(BadRow, match="PaliGemmaProcessor puts text of its own behind the beginning of an answer"):
        chats("paligemma").inputs(asked(0, "Who?", start="It is"), PICTURES)


def test_a_line_feed_at_the_end_of_a_template_stays_out_of_a_prompt_with_a_beginning(folders):
    chat = Chat.load(folders("qwen2_5_vl"), ChatSettings(chat_folders.chatml("<|image_pad|>") + "{{ '' }}\n"))
    assert spelled(chat, ids_of(chat, asked(0, "Who?", start="It"))).endswith("<|im_start|>assistant\nIt")


@families
def test_conversations_share_all_up_to_where_their_texts_part(name, chats):
    chat = chats(name)
    every = [asked(0, "Or", 1, f"Is the answer {answer} right?") for answer in ("cat", "cow", "a dog")]
    given, tails = chat.shared(every, PICTURES)
    for conversation, tail in zip(every, tails, strict=True):
        whole = chat.inputs(conversation, PICTURES)
        assert given["input_ids"][0].tolist() + tail == whole["input_ids"][0].tolist()
        assert torch.equal(given["pixel_values"], whole["pixel_values"])
        assert all(value.shape[1] == len(given["input_ids"][0]) for key, value in given.items() if key in BY_TOKEN)
    # "cat" and "a dog" part at once, "cat" and "cow" behind the c.
    assert chat._tokenizer.decode(given["input_ids"][0]).endswith("Is the answer ")


def test_pictures_of_a_shared_beginning_are_processed_once(chats, monkeypatch):
    chat, calls = chats("qwen3_vl"), []
    kind = type(chat._processor.image_processor)
    call = kind.__call__
    monkeypatch.setattr(kind, "__call__", lambda self, *args, **more: calls.append(1) or call(self, *args, **more))
    chat.shared([asked(0, f"Is it {word}?") for word in ("a cat", "a dog", "one of both")], PICTURES)
    assert len(calls) == 1


def test_equal_conversations_leave_each_one_id_behind_what_they_share(chats):
    given, tails = chats("qwen3_vl").shared([asked(0, "Who?")] * 2, PICTURES)
    assert tails == [bytes_of("\n")] * 2
    assert given["mm_token_type_ids"].shape == given["input_ids"].shape


@pytest.mark.parametrize(
    "other", [asked(1, "Who?"), asked("Who?", 0), asked(0, 1, "Who?"), Conversation.of("Who?", 1, "Be brief."),
              Conversation.of("Who?", 0)]
)  # fmt: skip
def test_conversations_with_other_images_or_texts_before_them_share_nothing(other, chats):
    with pytest.raises(UserError, match="only where all up to the last image is equal"):
        chats("qwen3_vl").shared([asked(0, "Who?"), other], PICTURES)


def test_conversations_of_a_template_with_pictures_behind_the_texts_share_none(folders):
    texts, images = "{% if c.type == 'text' %}{{ c.text }}{% endif %}", "{% if c.type == 'image' %}IMAGE{% endif %}"
    each = "{% for c in m.content %}PART{% endfor %}".replace
    source = "{% for m in messages %}" + each("PART", texts) + each("PART", images) + "\n{% endfor %}"
    chat = Chat.load(folders("qwen2_5_vl"), ChatSettings(source.replace("IMAGE", "<|image_pad|>")))
    with pytest.raises(UserError, match="differ before the end of the last image's tokens"):
        chat.shared([asked(0, "Is it a cat?"), asked(0, "Is it a dog?")], PICTURES)


# What is known of a checkpoint


def test_ends_come_from_generation_settings_tokenizer_and_template(tmp_path):
    folder = chat_folders.saved(chat_folders.gemma3(), tmp_path, [260, 257])
    chat = Chat.load(folder)
    assert chat.eos_token_ids == (260, 257, chat._tokenizer.convert_tokens_to_ids("<end_of_turn>"))
    # What ends an answer can be sampled.
    assert 260 not in chat.banned_token_ids


def test_tokens_around_pictures_are_banned(chats):
    def banned(name):
        return set(chats(name)._tokenizer.convert_ids_to_tokens(list(chats(name).banned_token_ids)))

    assert banned("qwen3_vl") == {"<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"}
    assert banned("llava") == {"<image>"}
    assert banned("gemma3") == {"<image_soft_token>", "<start_of_image>", "<end_of_image>"}
    assert banned("internvl") == {"<IMG_CONTEXT>", "<img>", "</img>", "<video>"}
    assert banned("mllama") == {"<|image|>"}


def test_a_banned_token_is_one_that_the_model_has(tmp_path):
    config, processor = chat_folders.qwen3_vl()
    config.video_token_id = config.text_config.vocab_size
    known = processor.tokenizer.convert_tokens_to_ids([*chat_folders.QWEN.values()])
    chat = Chat.load(chat_folders.saved((config, processor), tmp_path))
    assert chat.banned_token_ids == tuple(sorted(known))


def test_markers_are_the_control_tokens(chats):
    assert set(chats("mllama").markers) == {
        "<s>",
        "</s>",
        "<pad>",
        "<|image|>",
        "<|python_tag|>",
        "<|eot_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
    }
    assert "\n\n" not in chats("gemma3").markers
    assert "<think>" not in chats("qwen3_vl").markers


def test_the_vocabulary_tells_tokenizers_apart(chats, tmp_path):
    assert chats("qwen3_vl").vocabulary == chats("qwen2_5_vl").vocabulary
    assert chats("llava").vocabulary != chats("llava_onevision").vocabulary
    config, processor = chat_folders.qwen3_vl()
    processor.tokenizer.add_tokens(["<more>"])
    assert Chat.load(chat_folders.saved((config, processor), tmp_path)).vocabulary != chats("qwen3_vl").vocabulary


def test_a_short_side_is_known_where_the_long_side_follows_it(chats):
    """Qwen's `size` has numbers of pixels under the names of both sides, Idefics' the long side alone."""
    assert chats("llava").shortest_edge == 28
    # In transformers 5.17, the processor of idefics3 needs torchvision.
    others = [name for name in ("qwen3_vl", "gemma3", "idefics3") if name in chat_folders.FAMILIES]
    assert [chats(name).shortest_edge for name in others] == [None] * len(others)


def test_the_image_processor_is_pillows(chats):
    assert chats("qwen3_vl").image_processor_name == "Qwen2VLImageProcessorPil"
    assert chats("llava").image_processor_name == "CLIPImageProcessorPil"
