"""No text of a row forges the format of a prompt: control tokens stay text, or the row is left out by name."""

from types import SimpleNamespace

import chat_folders
import pytest
from chat_prompts import (
    FORGED_TURN,
    IMAGE_TOKEN,
    NEVER_PLAIN,
    PICTURES,
    asked,
    bytes_of,
    controls_of,
    families,
    ids_of,
    spelled,
)
from tokenizers import normalizers

from data_engine.chat_settings import ChatSettings
from data_engine.errors import BadRow
from data_engine.models.auto.text.chat import Chat
from data_engine.models.auto.text.control_tokens import ControlTokens, end_ids, fingerprint, media_ids
from data_engine.questions.conversation import Conversation, Message

# numpy of torch's tensors, in the processors of PaliGemma and InternVL.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


@families
def test_a_question_forges_no_turn(name, chats):
    chat, forged = chats(name), FORGED_TURN[name]
    found = controls_of(chat, asked(0, forged))
    # Where transformers can keep such a question plain, it is kept.
    if chat._keeps_plain and name not in NEVER_PLAIN:
        assert found == controls_of(chat, asked(0, "Who?"))
        assert forged in spelled(chat, ids_of(chat, asked(0, forged)))
    else:
        assert found.startswith("question contains the control token <")


@families
def test_a_literal_image_token_is_no_image(name, chats):
    token = IMAGE_TOKEN[name]
    found = controls_of(chats(name), asked(0, f"Is {token} a token?"))
    assert found in (controls_of(chats(name), asked(0, "Who?")), f"question contains the control token {token}")
    found = controls_of(chats(name), Conversation.of(f"Is {token} a token?", 0))
    assert isinstance(found, str) or token not in found


def test_a_token_put_together_of_two_texts_is_refused(chats):
    with pytest.raises(BadRow, match=r"question contains the control token <\|im_end\|>"):
        chats("qwen3_vl").inputs(asked(0, "Hm.<|im_", "end|>\nSo?"), PICTURES)
    # Beside one that is kept plain, too.
    with pytest.raises(BadRow, match="question contains the control token"):
        chats("qwen3_vl").inputs(asked(0, "<|vision_end|>.<|im_", "end|>\nSo?"), PICTURES)


@pytest.mark.parametrize("name", ["qwen3_vl", "mllama", "llava"])
def test_no_text_of_a_conversation_forges_a_turn(name, chats):
    chat, forged = chats(name), FORGED_TURN[name]
    turns = Message("user", (0, "Who?")), Message("assistant", (forged,))
    for named, conversation, clean in (
        ("system text", Conversation.of("Who?", 1, forged), Conversation.of("Who?", 1, "x")),
        ("beginning of the answer", asked(0, "Who?", start=forged), asked(0, "Who?", start="x")),
        ("earlier answer", asked("So?", before=turns), asked("So?", before=(turns[0], Message("assistant", ("x",))))),
    ):
        found = controls_of(chat, conversation)
        if chat._keeps_plain and name not in NEVER_PLAIN:
            assert found == controls_of(chat, clean)
        else:
            assert found.startswith(f"{named} contains the control token <")


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "mllama"])
def test_ids_for_an_engine_that_expands_pictures_itself_forge_no_turn(name, chats):
    """They are the prompt's own, each picture's many tokens made one again."""
    chat = chats(name)
    for text in ("Who?", FORGED_TURN[name]) if chat._keeps_plain else ("Who?",):
        written, whole = chat.written_ids(asked(0, text), PICTURES), ids_of(chat, asked(0, text))
        assert spelled(chat, written) == spelled(chat, whole)
        assert chat._controls.counted(written).keys() == chat._controls.counted(whole).keys()


@families
def test_angle_brackets_and_added_words_pass(name, chats):
    ids_of(chats(name), asked(0, "Is <that> a </tag>, <|or|> not?\n\n<cat>"))


def test_an_added_token_that_is_no_control_token_stays_a_token(chats):
    # Gemma has runs of line feeds as added tokens.
    line_feeds = chats("gemma3")._tokenizer.convert_tokens_to_ids("\n\n")
    chat = chats("gemma3")
    assert ids_of(chat, asked(0, "a\n\nb")).count(line_feeds) == 1 + ids_of(chat, asked(0, "a\nb")).count(line_feeds)
    assert chat.answer_ids(asked(0, "Who?"), "a\n\nb")[:-1] == [*bytes_of("a"), line_feeds, *bytes_of("b")]
    assert line_feeds in chat.answer_ids(asked(0, "Who?"), "a\n\nb<end_of_turn>")


def test_space_that_the_template_writes_is_no_control_token(tmp_path):
    tok = chat_folders.bytes_tokenizer(
        ["<|im_start|>", "<|im_end|>"], "<|im_end|>", plain=["\n\n\n"], **chat_folders.QWEN
    )
    config, processor = chat_folders.qwen2_5_vl(tok)
    processor.chat_template += "\n\n\n{{ '' }}"
    chat = Chat.load(chat_folders.saved((config, processor), tmp_path))
    assert "\n\n\n" not in chat.markers
    assert ids_of(chat, asked(0, "Who?\n\n\nHe?"))


def test_a_token_that_the_template_writes_is_a_control_token_though_it_is_not_special(folders):
    source = chat_folders.chatml("<|image_pad|>") + "{% if add_generation_prompt %}<think>{% endif %}"
    chat = Chat.load(folders("qwen2_5_vl"), ChatSettings(source))
    assert "<think>" in chat.markers
    found = controls_of(chat, asked(0, "Is <think> a tag?"))
    assert found in (controls_of(chat, asked(0, "Who?")), "question contains the control token <think>")


def test_control_tokens_are_those_that_tokenizer_template_and_processor_name():
    tok = chat_folders.bytes_tokenizer(
        ["<end>", "<end><end>"], plain=["<tool>", "<word>", "::"], merges=[("p", "i")], image_token="<image>"
    )
    tok.chat_control_tokens = ["<tool>"]
    # A piece of the vocabulary, and a text that stands for several tokens.
    processor = SimpleNamespace(tokenizer=tok, image_token="pi", video_token="<a film>")
    controls = ControlTokens(processor, "Assistant::{{ messages }}")
    assert set(controls.texts) == {
        "<s>", "</s>", "<pad>", "<image>", "<end>", "<end><end>", "<tool>", "pi", "<a film>",
    }  # fmt: skip
    assert controls.first_in("Hm.<end><end> So?") == "<end><end>"
    assert controls.counted(tok.convert_tokens_to_ids(["pi", "<tool>", "pi", "::"])) == {"pi": 2, "<tool>": 1}


def test_ids_of_pictures_films_and_sounds_are_those_that_any_part_names():
    tok = chat_folders.bytes_tokenizer(plain=["<pic>"], image_token="<image>")
    processor = SimpleNamespace(tokenizer=tok, image_token="<pic>", audio_token="<none>", _image_ids=(3, 4))
    config = SimpleNamespace(
        image_token_index=0, video_token_id=-1, boi_token_id=None, bos_token_id=256, image_size=28,
        vision_config=SimpleNamespace(vocab_offset=300, vocab_size=2), audio_config=None,
    )  # fmt: skip
    named = tok.convert_tokens_to_ids(["<image>", "<pic>"])
    assert media_ids(processor, config) == (0, 3, 4, *named, 300, 301)


def test_ends_of_the_generation_settings_come_before_that_of_the_tokenizer():
    tok = SimpleNamespace(eos_token_id=2)
    assert end_ids(tok, {}) == end_ids(tok, {"eos_token_id": None}) == (2,)
    assert end_ids(tok, {"eos_token_id": [7, 0, 7, -1]}) == (7, 0, 2)


def test_the_same_tokens_under_other_ids_are_another_vocabulary():
    one, other = (SimpleNamespace(get_vocab=lambda last=last: {"a": 0, "b": last}) for last in (1, 2))
    assert fingerprint(one) == fingerprint(one) != fingerprint(other)


def test_a_token_that_normalisation_makes_of_a_text_is_refused(tmp_path):
    """Of full-width brackets, which no text with the token has."""
    tok = chat_folders.bytes_tokenizer(
        ["<|im_start|>", "<|im_end|>"], "<|im_end|>", plain=["<turn>"], **chat_folders.QWEN
    )
    tok.backend_tokenizer.normalizer = normalizers.NFKC()
    config, processor = chat_folders.qwen2_5_vl(tok)
    processor.chat_template += "<turn>"
    chat = Chat.load(chat_folders.saved((config, processor), tmp_path))
    assert ids_of(chat, asked(0, "Is ＜turm＞ a tag?"))
    with pytest.raises(BadRow, match=r"^question contains the control token <turn>$"):
        ids_of(chat, asked(0, "Is ＜turn＞ a tag?"))
    # An answer's are text, in the letters that the tokenizer knows.
    assert chat.answer_ids(asked(0, "Who?"), "<turn>＜a")[:-1] == bytes_of("<turn><a")
