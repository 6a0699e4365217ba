"""Prompts of InternVL's own layout, by hand after conversation.py of InternVL's repository; its tokenizers."""

import re
import shutil

import internvl_folders
import internvl_tokenizers
import pytest
import sentencepiece
from PIL import Image

from data_engine.chat_settings import ChatSettings
from data_engine.errors import BadRow
from data_engine.models.auto.model import Auto
from data_engine.models.auto.text.chat import Chat
from data_engine.models.checkpoints.json_files import ModelError
from data_engine.models.internvl_chat.conversation import chat_template, conversation_of
from data_engine.models.internvl_chat.tokenizer import load_tokenizer
from data_engine.questions.conversation import Conversation, Message

# InternVL 2's, and that of 2.5, 3 and 3.5.
EARLIER = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
LATER = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
EXPECTED = {
    "internlm2": f"<s><|im_start|>system\n{EARLIER}<|im_end|><|im_start|>user\n<img>PICTURE</img>\nHow many?<|im_end|>"
                 "<|im_start|>assistant\n",
    "qwen2": f"<|im_start|>system\n{LATER}<|im_end|>\n<|im_start|>user\n<img>PICTURE</img>\nHow many?<|im_end|>\n"
             "<|im_start|>assistant\n",
    # Phi-3's marks take the line feed behind them in.
    "phi3": f"<s><|system|>{EARLIER}<|end|><|user|><img>PICTURE</img>\nHow many?<|end|><|assistant|>",
}  # fmt: skip
TURNS = {
    "Hermes-2": "<|im_start|>system\nBe short.<|im_end|><|im_start|>user\n<IMG_CONTEXT>\nWhat?<|im_end|>"
                "<|im_start|>assistant\nA dog.<|im_end|><|im_start|>user\nAnd now?<|im_end|><|im_start|>assistant\n",
    "phi3-chat": "<|system|>\nBe short.<|end|><|user|>\n<IMG_CONTEXT>\nWhat?<|end|><|assistant|>\nA dog.<|end|>"
                 "<|user|>\nAnd now?<|end|><|assistant|>\n",
    "internvl2_5": "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\n<IMG_CONTEXT>\nWhat?<|im_end|>\n"
                   "<|im_start|>assistant\nA dog.<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\n"
                   "<|im_start|>assistant\n",
}  # fmt: skip
TURNS["internlm2-chat"] = TURNS["Hermes-2"]
PICTURE = Image.new("RGB", (28, 28))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Kind of decoder -> a folder, made when it is first asked for."""
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = internvl_folders.write(tmp_path_factory.mktemp(kind) / "model", kind)
        return made[kind]

    return get


@pytest.mark.parametrize("kind", EXPECTED)
def test_a_prompt_is_that_of_the_repository(folders, kind):
    chat = Chat.load(folders(kind))
    ids = chat.inputs(Conversation.of("How many?"), [PICTURE])["input_ids"][0]
    text = chat._tokenizer.decode(ids).replace("<IMG_CONTEXT>" * 4, "PICTURE")
    assert text == EXPECTED[kind]
    ends = chat._tokenizer.convert_ids_to_tokens(list(chat.eos_token_ids))
    end = "<|end|>" if kind == "phi3" else "<|im_end|>"
    assert end in ends
    answer = chat.answer_ids(Conversation.of("How many?"), "Two dogs.")
    assert chat._tokenizer.convert_ids_to_tokens(answer[-1]) == end
    assert chat.text(answer) == "Two dogs."
    banned = chat._tokenizer.convert_ids_to_tokens(list(chat.banned_token_ids))
    assert sorted(banned) == ["</img>", "<IMG_CONTEXT>", "<img>"]


@pytest.mark.parametrize("name", TURNS)
def test_turns_and_a_system_text_have_the_form_of_the_repository(folders, name):
    kind = {"phi3-chat": "phi3", "internvl2_5": "qwen2"}.get(name, "internlm2")
    chat = Chat.load(folders(kind), ChatSettings(chat_template(conversation_of(folders(kind), {"template": name}))))
    turns = (Message("system", ("Be short.",)), Message("user", (0, "What?")), Message("assistant", ("A dog.",)),
             Message("user", ("And now?",)))  # fmt: skip
    assert chat._template.render(Conversation(turns)) == TURNS[name]


def test_the_template_is_not_that_of_the_tokenizer_and_may_be_the_users(folders):
    chat = Chat.load(folders("qwen2"))
    assert "not this one" not in chat._template.render(Conversation.of("Why?"))
    own = "{% for m in messages %}{% for c in m.content %}{{ '<IMG_CONTEXT>' if c.type == 'image' else c.text }}"
    chat = Chat.load(folders("qwen2"), ChatSettings(f"{own}{{% endfor %}}{{% endfor %}}"))
    assert chat._template.render(Conversation.of("Why?")) == "<IMG_CONTEXT>Why?"


def test_the_system_text_is_the_folders_own(folders, tmp_path):
    """That of config.json, else of conversation.py, which is read and not run."""
    raw = {"template": "internlm2-chat"}
    (tmp_path / "conversation.py").write_text(
        "raise SystemExit('remote code was run')\n"
        "register(Conversation(name='Hermes-2', system_message='Another.', sep='x'))\n"
        "register(Conversation(name='internlm2-chat', system_message='You are \\'it\\' \\\\ {{ 1 }}.', "
        "sep='<|im_end|>'))\n"
    )
    found = conversation_of(tmp_path, raw)
    assert found.system == "You are 'it' \\ {{ 1 }}."
    chat = Chat.load(folders("internlm2"), ChatSettings(chat_template(found)))
    said = "<|im_start|>system\nYou are 'it' \\ {{ 1 }}.<|im_end|>"
    assert chat._template.render(Conversation.of("Why?", 0)).startswith(said)
    assert conversation_of(tmp_path, {**raw, "system_message": "Mine."}).system == "Mine."
    assert conversation_of(tmp_path, {**raw, "system_message": None}).system == found.system
    assert conversation_of(tmp_path, {"template": "internvl2_5", "system_message": None}).system == LATER
    (tmp_path / "conversation.py").write_text("def (:")
    with pytest.raises(ModelError, match=r"conversation\.py cannot be read \(invalid syntax"):
        conversation_of(tmp_path, raw)


OF_1_5 = {
    "internlm2": "<s><|im_start|>system\nYou are an AI assistant whose name is InternLM (书生·浦语).<|im_end|>"
                 "<|im_start|>user\nHow many?<|im_end|><|im_start|>assistant\n",
    "phi3": "<s><|system|>You are an AI assistant whose name is Phi-3.<|end|><|user|>How many?<|end|><|assistant|>",
}  # fmt: skip


@pytest.mark.parametrize("kind", OF_1_5)
def test_a_folder_of_1_5_has_its_own_system_text_and_none_without_the_file_that_tells_it(folders, tmp_path, kind):
    """config.json of 1.5 and 2 have the same fields; a guess would be a prompt that the model was not trained on."""
    folder = shutil.copytree(folders(kind), tmp_path / "model")
    internvl_folders.write_conversations(folder, "1.5")
    chat = Chat.load(folder)
    assert chat._tokenizer.decode(chat.inputs(Conversation.of("How many?", 0), [])["input_ids"][0]) == OF_1_5[kind]
    (folder / "conversation.py").unlink()
    name = internvl_folders.TEMPLATES[kind]
    with pytest.raises(ModelError, match=f"has template '{name}', which InternVL 1.5 and 2 have with different system"):
        Auto.check(folder)
    internvl_folders.change(folder, system_message="Mine.")
    assert conversation_of(folder, {"template": name, "system_message": "Mine."}).system == "Mine."
    Auto.check(folder)


OTHER_FORMS = {
    # As InternVL's repository had phi3-chat in May 2024.
    "sep_style": ("SeparatorStyle.MPT", "SeparatorStyle.CHATML", "sep_style 'CHATML' in its internlm2-chat; expected"),
    "roles": ("('<|im_start|>user\\n'", "('<|im_start|>user'", "roles ('<|im_start|>user', '<|im_start|>assistant"),
    "sep": (
        "sep='<|im_end|>'",
        "sep='<|im_end|>\\n'",
        "sep '<|im_end|>\\n' in its internlm2-chat; expected '<|im_end|>'",
    ),
    "system_template": (
        "system\\n{system_message}",
        "system\\n\\n{system_message}",
        "system_template '<|im_start|>system",
    ),
}


@pytest.mark.parametrize("name", OTHER_FORMS)
def test_a_folder_whose_format_has_another_form_is_refused(folders, tmp_path, name):
    old, new, told = OTHER_FORMS[name]
    folder = shutil.copytree(folders("internlm2"), tmp_path / "model")
    path = folder / "conversation.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ModelError, match=re.escape(f"{path} has {told}")):
        Auto.check(folder)


def test_a_text_with_the_mark_of_a_picture_is_left_out_and_one_of_a_film_is_a_text(folders):
    chat = Chat.load(folders("qwen2"))
    with pytest.raises(BadRow, match="question contains the control token <IMG_CONTEXT>"):
        chat.inputs(Conversation.of("What is <IMG_CONTEXT>?"), [PICTURE])
    ids = chat.inputs(Conversation.of("What does <video> mean?"), [PICTURE])["input_ids"][0]
    assert "What does <video> mean?<|im_end|>" in chat._tokenizer.decode(ids)


TEXTS = ["what is in the picture", " two  spaces ", "a dog\n\n(x) 1.5", "你是书生 café", "🦓", "", " ", "▁ is",
         "what [UNUSED_TOKEN_2] is", "the\tcats\r\n"]  # fmt: skip


@pytest.mark.parametrize("kind", ["internlm2", "internlm3", "llama"])
def test_ids_are_those_of_sentencepiece_between_the_marks(folders, kind):
    """As InternLM2's own tokenizer, and LLaMA's with `legacy`: each text between two marks is encoded by itself."""
    folder = folders(kind)
    tokenizer = load_tokenizer(folder)
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    marks = {name: tokenizer.convert_tokens_to_ids(name) for name in ("<|im_start|>", "<|im_end|>", "<IMG_CONTEXT>")}
    assert marks["<IMG_CONTEXT>"] >= model.get_piece_size()
    for text in TEXTS:
        expected = [marks["<|im_start|>"], *model.encode(f"user\n{text}"), marks["<|im_end|>"], *model.encode(text)]
        found = tokenizer.encode(f"<|im_start|>user\n{text}<|im_end|>{text}", add_special_tokens=False)
        assert found == expected, text
        assert tokenizer.encode(text) == [1] * (kind != "llama") + model.encode(text), text
    plain = tokenizer.encode("<s> </s> is", add_special_tokens=False, split_special_tokens=True)
    assert {1, 2}.isdisjoint(plain)
    assert tokenizer.decode(plain).strip() == "<s> </s> is"


def test_without_legacy_a_space_stands_before_the_first_text_alone(folders, tmp_path):
    folder = folders("phi3")
    tokenizer = load_tokenizer(folder)
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    mark = tokenizer.convert_tokens_to_ids("<|end|>")
    # What SentencePiece gives behind a letter has no space before it.
    after = model.encode("xis in the")[len(model.encode("x")) :]
    assert tokenizer.encode("what<|end|>is in the") == [1, *model.encode("what"), mark, *after]


@pytest.mark.parametrize("options", [{"normalization_rule_name": "nmt_nfkc"}, {"model_type": "unigram"}])
def test_a_sentencepiece_model_of_another_kind_is_refused(tmp_path, options):
    internvl_tokenizers.write_tokenizer(tmp_path, "internlm2")
    (tmp_path / "tokenizer.model").write_bytes(internvl_tokenizers.train(290, **options))
    with pytest.raises(ModelError, match="a SentencePiece model of another kind than BPE, or has rules of its own for"):
        load_tokenizer(tmp_path)
