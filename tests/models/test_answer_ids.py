"""Answers that are given as text: their ids behind a prompt, and the one token that ends each."""

import chat_folders
import pytest
from chat_prompts import asked, bytes_of, families

from data_engine.chat_settings import ChatSettings
from data_engine.models.auto.text.chat import Chat

# numpy of torch's tensors, in the processors of PaliGemma and InternVL.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


# What the templates write behind an answer, of LLaVA's and PaliGemma's no token: there the tokenizer's end counts.
ENDS = {
    "llava": "</s>", "llava_onevision": "<|im_end|>", "qwen2_5_vl": "<|im_end|>", "qwen3_vl": "<|im_end|>",
    "internvl": "<|im_end|>", "gemma3": "<end_of_turn>", "paligemma": "</s>", "idefics3": "<end_of_utterance>",
    "mllama": "<|eot_id|>",
}  # fmt: skip


@families
def test_an_answer_is_its_text_and_one_end_token(name, chats):
    end, before = ENDS[name], " " if name == "llava" else ""
    chat = chats(name)
    number = chat._tokenizer.convert_tokens_to_ids(end)
    assert number in chat.eos_token_ids
    for conversation in (asked(0, "Who?"), asked(0, "Is </s> it?"), asked(0, 1, "Which?")):
        assert chat.answer_ids(conversation, "Two cats.") == [*bytes_of(before + "Two cats."), number]
    assert chat.answer_ids(asked(0, "Who?"), "") == [*bytes_of(before), number]
    # Written into the text, the end is text.
    assert chat.answer_ids(asked(0, "Who?"), f"Two{end} cats.") == [*bytes_of(f"{before}Two{end} cats."), number]
    # Behind its beginning an answer goes on as it is written.
    assert chat.answer_ids(asked(0, "Who?", start="It is"), " two.") == [*bytes_of(" two."), number]


def test_the_text_of_an_answer_comes_back(chats):
    for name in ("llava", "qwen3_vl", "mllama"):
        assert chats(name).text(chats(name).answer_ids(asked(0, "Who?"), "Two cats.")) == "Two cats."
        assert chats(name).text([]) == ""
        # A model may have more ids than its tokenizer.
        assert chats(name).text([9999, *bytes_of("Two")]) == "Two"


def test_a_tokenizer_that_puts_a_space_before_texts_puts_none_before_an_answer(tmp_path):
    made = chat_folders.llava(chat_folders.space_first_tokenizer(image_token="<image>"))
    chat = Chat.load(chat_folders.saved(made, tmp_path))
    piece = chat._tokenizer.convert_tokens_to_ids
    # LLaVA's template has a space before the answer, which is the word's own.
    assert chat.answer_ids(asked(0, "Who?"), "Two cats") == piece(["▁Two", "▁cats", "</s>"])
    assert chat.answer_ids(asked(0, "Who?", start="It is"), "Two") == piece(["Two", "</s>"])
    assert chat.answer_ids(asked(0, "Who?", start="It is"), " cats") == piece(["▁cats", "</s>"])
    assert chat.answer_ids(asked(0, "Who?"), "Two</s>") == piece(["▁Two", "<", "/", "s", ">", "</s>"])
    # transformers would take spaces before commas out of the text.
    assert chat.text(chat.answer_ids(asked(0, "Who?"), "Two , cats")) == "Two , cats"
    # The whole prompt with the answer has the same ids in its end.
    whole = chat._tokenizer.encode("USER: Who? ASSISTANT: Two cats", add_special_tokens=False)
    assert whole[-2:] == piece(["▁Two", "▁cats"])


def test_an_answer_that_begins_with_a_line_feed_keeps_it(tmp_path):
    # The prompt ends with a line feed, and two of them are one token.
    tok = chat_folders.bytes_tokenizer(
        ["<|im_start|>", "<|im_end|>"], "<|im_end|>", merges=[("Ċ", "Ċ")], **chat_folders.QWEN
    )
    chat = Chat.load(chat_folders.saved(chat_folders.qwen2_5_vl(tok), tmp_path))
    double = tok.convert_tokens_to_ids("ĊĊ")
    assert chat.answer_ids(asked(0, "Who?"), "\nTwo")[:-1] == bytes_of("\nTwo")
    # GPT-2's words leave a text the last of the spaces before it.
    assert chat.answer_ids(asked(0, "Who?"), "\n\n\nTwo")[:-1] == [double, *bytes_of("\nTwo")]
    assert chat.answer_ids(asked(0, "Who?"), "\n\n\n<|im_end|>")[:-1] == [double, *bytes_of("\n<|im_end|>")]


def test_an_answer_ends_with_the_next_turn_where_the_generation_settings_say_so(tmp_path):
    # As GLM's: its template writes nothing behind an answer, and <|user|> ends one.
    config, processor = chat_folders.qwen2_5_vl()
    processor.chat_template = chat_folders.template("<|vision_start|>user\n", "", "<|vision_end|>\n", "<|image_pad|>")
    turn, end = processor.tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<|im_end|>"])
    folder = chat_folders.saved((config, processor), tmp_path / "both", [end, turn])
    assert Chat.load(folder).answer_ids(asked(0, "Who?"), "Two") == [*bytes_of("Two"), turn]
    folder = chat_folders.saved((config, processor), tmp_path / "one", end)
    assert Chat.load(folder).answer_ids(asked(0, "Who?"), "Two") == [*bytes_of("Two"), end]
    # Else with the tokenizer's end, and without one with the first of the settings.
    pad = processor.tokenizer.pad_token_id
    folder = chat_folders.saved((config, processor), tmp_path / "another", [pad, end])
    assert Chat.load(folder).answer_ids(asked(0, "Who?"), "Two")[-1] == end
    processor.tokenizer.eos_token = None
    folder = chat_folders.saved((config, processor), tmp_path / "none", [pad, end])
    assert Chat.load(folder).answer_ids(asked(0, "Who?"), "Two")[-1] == pad


def test_an_answer_ends_with_the_first_end_that_the_template_writes_behind_it(tmp_path):
    tok = chat_folders.bytes_tokenizer(["<turn>"], plain=["<word>"], **chat_folders.QWEN)
    config, processor = chat_folders.qwen2_5_vl(tok)
    processor.chat_template = chat_folders.template("<turn>", "", "<turn>", "<|image_pad|>", close="<word><turn></s>")
    word, turn, end = tok.convert_tokens_to_ids(["<word>", "<turn>", "</s>"])
    chat = Chat.load(chat_folders.saved((config, processor), tmp_path, end))
    # One that is not special is no end, and a token all the same.
    assert chat.eos_token_ids == (end, turn)
    assert chat.answer_ids(asked(0, "Who?"), "Two") == [*bytes_of("Two"), word, turn]
    for text in ("A <turn>", "A <word>"):
        assert chat.answer_ids(asked(0, "Who?"), text) == [*bytes_of(text), word, turn]


def test_nothing_is_put_around_an_answer_where_the_template_changes_the_prompt_for_it_or_writes_it_twice(folders):
    """A prompt that ends with words of its own, which the header of an earlier answer does not have."""
    source = chat_folders.chatml("<|image_pad|>")
    text = "{% if m.content is string %}{{ m.content }}"
    for changed in (
        source.replace("assistant\n", "assistant\nAnswer: "),
        source.replace(text, "{% if m.role == 'assistant' %}{{ m.content }}{% endif %}" + text),
    ):
        assert changed != source
        chat = Chat.load(folders("qwen2_5_vl"), ChatSettings(changed))
        assert chat.answer_ids(asked(0, "Who?"), "Two") == [*bytes_of("Two"), *chat.eos_token_ids]


def test_thoughts_of_an_answer_are_tokens_and_those_of_the_template_are_not_doubled(folders):
    # As Qwen3's: an answer that is given without thoughts has empty ones before it.
    source = chat_folders.chatml("<|image_pad|>").replace(
        "<|im_start|>{{ m.role }}\n",
        "<|im_start|>{{ m.role }}\n{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}",
    )
    chat = Chat.load(folders("qwen2_5_vl"), ChatSettings(source))
    think, done = chat._tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    assert chat.answer_ids(asked(0, "Who?"), "Two") == [
        think, *bytes_of("\n\n"), done, *bytes_of("\n\nTwo"), chat.eos_token_ids[0]
    ]  # fmt: skip
    assert chat.answer_ids(asked(0, "Who?"), "Two<|im_end|>") == [
        think, *bytes_of("\n\n"), done, *bytes_of("\n\nTwo<|im_end|>"), chat.eos_token_ids[0]
    ]  # fmt: skip
    assert chat.answer_ids(asked(0, "Who?"), "<think>Hm</think>Two") == [
        think, *bytes_of("Hm"), done, *bytes_of("Two"), chat.eos_token_ids[0]
    ]  # fmt: skip
