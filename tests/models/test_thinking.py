"""What a checkpoint of transformers thinks: the marks of its template and tokenizer, and what its answers say."""

import chat_folders
import pytest
import thinking
from chat_prompts import asked, bytes_of, ids_of

from data_engine.chat_settings import ChatSettings
from data_engine.models.auto.model import Auto
from data_engine.models.auto.text.chat import Chat
from data_engine.models.auto.text.thought_marks import marks_of, require_ends
from data_engine.models.checkpoints.json_files import ModelError
from data_engine.questions.conversation import Conversation, Message
from data_engine.questions.thoughts import ReadAnswer

# numpy of torch's tensors, in the processors of PaliGemma and InternVL.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

WHO = asked(0, "Who?")
OPENING = thinking.opening("<|image_pad|>")


def qwen(folder, template, specials=(), plain=()):
    """A Qwen2.5-VL's folder with that template and these tokens."""
    tok = chat_folders.bytes_tokenizer(
        ["<|im_start|>", "<|im_end|>", *specials], "<|im_end|>", plain=plain, **chat_folders.QWEN
    )
    config, processor = chat_folders.qwen2_5_vl(tok)
    processor.chat_template = template
    return chat_folders.saved((config, processor), folder)


# Marks as one special token each, as one plain added token each, and as several tokens.
MARKS = {"special": {"specials": ["<think>", "</think>"]}, "added": {"plain": ["<think>", "</think>"]}, "spelled": {}}


@pytest.fixture(params=MARKS)
def opens(request, tmp_path):
    return Chat.load(qwen(tmp_path, OPENING, **MARKS[request.param]))


def encoded(chat, text):
    return chat._tokenizer.encode(text, add_special_tokens=False)


def test_what_stands_behind_the_mark_is_the_answer(opens):
    end = opens.eos_token_ids[0]
    mark = encoded(opens, "</think>")
    ids = [*bytes_of("Hm.\n"), *mark, *bytes_of("\n\nTwo cats."), end]
    assert opens.read_answer(WHO, ids) == ReadAnswer("Two cats.", "Hm.\n</think>\n\n", 4 + len(mark))
    assert opens.read_answer(WHO, [*bytes_of("Two cats."), end]) == ReadAnswer(None, "Two cats.<|im_end|>", 10)
    assert opens.read_answer(WHO, bytes_of("Hm")).text is None
    assert opens.read_answer(WHO, [*bytes_of("Hm"), *mark]) == ReadAnswer("", "Hm</think>", 2 + len(mark))
    # The beginning of the answer may have ended the thought.
    assert opens.read_answer(asked(0, "Who?", start="Hm.</think>"), bytes_of("Two")) == ReadAnswer("Two")
    # What is cut within a letter of several bytes is no trouble.
    assert opens.read_answer(WHO, [*bytes_of("é")[:1], *mark, *bytes_of("Two é")[:-1]]).text.startswith("Two ")


def test_a_given_text_continues_the_thought_that_the_prompt_opened(opens):
    end = opens.eos_token_ids[0]
    written = [*bytes_of("Hm.\n"), *encoded(opens, "</think>"), *bytes_of("\n\nTwo"), end]
    for text in ("<think>\nHm.\n</think>\n\nTwo", "Hm.\n</think>\n\nTwo", "◁think▷\nHm.\n◁/think▷\n\nTwo"):
        assert opens.answer_ids(WHO, text) == written
    # Without one, the template's empty one.
    empty = [*bytes_of("\n"), *encoded(opens, "</think>"), *bytes_of("\n\nTwo"), end]
    assert opens.answer_ids(WHO, "Two") == empty
    assert opens.read_answer(WHO, empty).text == "Two"


def test_the_same_template_told_not_to_think_opens_nothing(tmp_path):
    folder = qwen(tmp_path, OPENING, plain=["<think>", "</think>"])
    chat = Chat.load(folder, ChatSettings(None, {"enable_thinking": False}))
    end = chat.eos_token_ids[0]
    assert chat._tokenizer.decode(ids_of(chat, WHO)).endswith("<think>\n\n</think>\n\n")
    assert chat.read_answer(WHO, [*bytes_of("Two"), end]) == ReadAnswer("Two")
    assert chat.answer_ids(WHO, "Two") == [*bytes_of("Two"), end]
    # Text given with a thought brings its own marks.
    think, done = chat._tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    assert chat.answer_ids(WHO, "<think>Hm</think>Two") == [think, *bytes_of("Hm"), done, *bytes_of("Two"), end]


def test_a_template_that_opens_nothing_leaves_it_to_the_answer(tmp_path):
    chat = Chat.load(qwen(tmp_path, chat_folders.chatml("<|image_pad|>"), plain=["<think>", "</think>"]))
    think, done = chat._tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    assert chat.read_answer(WHO, bytes_of("Two")) == ReadAnswer("Two")
    ids = [think, *bytes_of("Hm"), done, *bytes_of("Two")]
    assert chat.read_answer(WHO, ids) == ReadAnswer("Two", "<think>Hm</think>", 4)
    assert chat.read_answer(WHO, ids[:2]).text is None
    # A text whose thought began in another model's prompt.
    assert chat.answer_ids(WHO, "Hm</think>Two")[:-1] == ids
    # One that opens its own behind a line feed.
    assert chat.answer_ids(WHO, "\n<think>Hm</think>Two")[:-1] == [*bytes_of("\n"), *ids]


def test_an_answer_without_a_thought_ends_the_open_one_where_the_template_writes_none(tmp_path):
    # As tests/families has GLM-4.1V: the header of an answer opens a thought, whatever stands in it.
    source = chat_folders.template("<|vision_start|>user\n", "", "<|vision_end|>\n<think>", "<|image_pad|>")
    chat = Chat.load(qwen(tmp_path, source, plain=["<think>", "</think>"]))
    done = chat._tokenizer.convert_tokens_to_ids("</think>")
    ids = chat.answer_ids(WHO, "Two")
    assert ids[:-1] == [done, *bytes_of("Two")]
    assert chat.read_answer(WHO, ids) == ReadAnswer("Two", "</think>", 1)
    for thought in ("Hm", "\nHm"):
        ids = chat.answer_ids(WHO, f"<think>{thought}</think>Two")
        assert ids[:-1] == [*bytes_of(thought), done, *bytes_of("Two")]


def test_what_a_template_writes_before_an_answer_that_is_no_thought_stays_there(chats):
    text = "<think>Hm</think>Two"
    assert chats("llava").answer_ids(WHO, text)[:-1] == bytes_of(f" {text}")


@pytest.mark.parametrize(
    ("opens", "ends", "plain"),
    [
        ("◁think▷", "◁/think▷", ()),
        ("[THINK]", "[/THINK]", ("[THINK]", "[/THINK]")),
        ("<|START_THINKING|>", "<|END_THINKING|>", ("<|START_THINKING|>", "<|END_THINKING|>")),
        ("<|begin_of_thought|>", "<|end_of_thought|>", ("<|begin_of_thought|>", "<|end_of_thought|>")),
        ("<seed:think>", "</seed:think>", ()),
        # Named by nothing but the template.
        ("<reasoning>", "</reasoning>", ()),
    ],
)
def test_marks_of_other_spellings_come_from_the_template_and_the_tokenizer(tmp_path, opens, ends, plain):
    chat = Chat.load(qwen(tmp_path, thinking.opening("<|image_pad|>", opens, ends), plain=plain))
    mark = encoded(chat, ends)
    assert chat.read_answer(WHO, bytes_of("Two")).text is None
    found = chat.read_answer(WHO, [*bytes_of("Hm"), *mark, *bytes_of("Two")])
    assert found == ReadAnswer("Two", f"Hm{ends}", 2 + len(mark))
    # Another model's marks become its own.
    assert chat.answer_ids(WHO, "<think>\nHm</think>Two")[:-1] == [*bytes_of("Hm"), *mark, *bytes_of("Two")]


def test_marks_of_a_template_come_before_those_of_its_tokenizer_alone_and_those_that_any_may_write():
    tok = chat_folders.bytes_tokenizer(plain=["<reason>", "</reason>", "</thought>"])
    assert marks_of("<thinking>{{ m }}</thinking> <thought> ◁/think▷", tok) == (
        # Ended in the template, one of them named by its end alone; then by tokens.
        ("<thinking>", "</thinking>"), ("◁think▷", "◁/think▷"), ("<reason>", "</reason>"), ("<thought>", "</thought>"),
        ("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<|channel>", "<channel|>"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("template", "told", "own"),
    [
        # As the template ends it, though another end were likelier, and though it is of several tokens.
        ("<|think|> </|think|>", "<|think|>", ("<|think|>", "</|think|>")),
        # By what the prompt says alone, as one ends a tag.
        ("", "assistant\n<reasoning>\n", ("<reasoning>", "</reasoning>")),
    ],
)
def test_an_opened_thought_has_the_end_that_is_written_or_the_likeliest(template, told, own):
    tok = chat_folders.bytes_tokenizer()
    found = require_ends(told, marks_of(template, tok), tok, "the template")
    assert found[0] == own
    assert [one for one in found if one.opens == own[0]] == [own]


def test_what_is_known_of_thoughts_without_weights_is_what_the_prompts_know(tmp_path):
    folder = qwen(tmp_path, thinking.opening("<|image_pad|>", "[THINK]", "[/THINK]"))
    side, chat = Auto.text_side(folder, ChatSettings(None, {"enable_thinkin": True})), Chat.load(folder)
    assert side.thought_marks == chat.thought_marks
    assert side.thought_marks[0] == ("[THINK]", "[/THINK]")
    assert side.markers == side.control_tokens == chat.markers
    assert side.unused_kwargs == ("enable_thinkin",)
    assert (side.vocabulary, side.image_processor) == (chat.vocabulary, chat.image_processor_name)
    assert side.read_answer(WHO, chat.answer_ids(WHO, "Two")).text == "Two"


def test_a_prompt_that_only_speaks_of_thoughts_opens_none(tmp_path):
    chat = Chat.load(qwen(tmp_path, chat_folders.chatml("<|image_pad|>"), plain=["<think>", "</think>"]))
    said = Message("user", (0, "Hm?")), Message("assistant", ("<tag>",))
    for conversation in (asked(0, "Is < think> a tag?"), asked("So?", before=said)):
        assert chat.read_answer(conversation, bytes_of("Two")) == ReadAnswer("Two")
    # The system text of InternVL3.5 asks for thoughts, and the answer opens them.
    system = Conversation.of("Who?", 1, "Write <think> first, then </think>, or <think> again.")
    assert chat.read_answer(system, bytes_of("Two")) == ReadAnswer("Two")


def test_a_template_that_opens_thoughts_by_what_the_row_says_is_asked_row_by_row(tmp_path):
    source = chat_folders.chatml("<|image_pad|>").replace(
        "<|im_start|>assistant\n{% endif %}",
        "<|im_start|>assistant\n{% if '/think' in (messages | string) %}<think>{% endif %}{% endif %}",
    )
    chat = Chat.load(qwen(tmp_path, source, plain=["<think>", "</think>"]))
    assert chat.read_answer(asked(0, "Who? /think"), bytes_of("Two")).text is None
    assert chat.read_answer(WHO, bytes_of("Two")).text == "Two"


def test_a_template_that_always_writes_the_answers_header_is_read_as_well(tmp_path):
    source = OPENING.replace("{% if add_generation_prompt %}", "{% if true %}")
    chat = Chat.load(qwen(tmp_path, source, plain=["<think>", "</think>"]))
    assert chat.read_answer(WHO, bytes_of("Two")).text is None


@pytest.mark.parametrize("opens", ["<|think|>", "<|thinking|>"])
def test_an_opened_thought_whose_end_the_tokenizer_lacks_is_refused(tmp_path, opens):
    source = chat_folders.chatml("<|image_pad|>").replace("assistant\n", f"assistant\n{opens}")
    ends = opens.replace("<|", "<|/")
    folder = qwen(tmp_path, source, plain=[opens])
    with pytest.raises(ModelError) as caught:
        Chat.load(folder)
    assert str(caught.value) == (
        f"the chat template of {folder} opens a thought with {opens}, and its tokenizer has no {ends} to end it: "
        "answers cannot be told from thoughts. Pass a template that opens none with --chat_template FILE, or "
        "--chat_template_kwargs '{\"enable_thinking\": false}' where the template reads that; of a judge, with "
        "--critic_chat_template_kwargs and the like"
    )
    # Where the tokenizer has it, all is well.
    assert Chat.load(qwen(tmp_path / "both", source, plain=[opens, ends])).thought_marks[0] == (opens, ends)


def test_a_mark_that_the_tokenizer_cannot_spell_is_refused(tmp_path):
    """Words and letters, without brackets: what it does not know becomes <unk>."""
    made = chat_folders.llava(chat_folders.space_first_tokenizer(image_token="<image>"))
    made[1].chat_template = thinking.opening("<image>", "◁think▷", "◁/think▷").replace("<|im_", "[").replace("|>", "]")
    with pytest.raises(ModelError, match="opens a thought with ◁think▷, and its tokenizer has no ◁/think▷ to end it"):
        Chat.load(chat_folders.saved(made, tmp_path))


def test_marks_are_no_control_tokens_of_an_answers_text(opens):
    """Those of the prompt's format stay text in the same answer."""
    ids = opens.answer_ids(WHO, "<think>\nIs <|im_end|> it?</think>Two<|im_end|>")
    found = opens.read_answer(WHO, ids)
    assert ids.count(opens.eos_token_ids[0]) == 1
    assert found.text == "Two<|im_end|>"
    assert found.thought == "Is <|im_end|> it?</think>"
