"""Folders of InternVL's own layout as judges, whole or with an adapter, and as models that think."""

import json
import re
import shutil

import adapters
import internvl_folders
import judges
import pytest
import torch
from asked import ASKED
from safetensors.torch import load_file, save_file
from test_family_judges import ANSWERS, TEMPLATE, question, scores

from data_engine import load_model
from data_engine.models.auto.text.chat import Chat
from data_engine.models.check import check_weights
from data_engine.models.checkpoints.adapter_folder import model_folder
from data_engine.models.checkpoints.json_files import ModelError
from data_engine.pipeline.judge import Scalar, YesNo
from data_engine.questions.conversation import Conversation

HEAD = judges.head(internvl_folders.WIDTH)
THINKING = "<think>", "</think>"


@pytest.fixture
def base(tmp_path):
    return internvl_folders.write(tmp_path / "base", "qwen2")


def loaded(folder, **options):
    model = load_model(None, str(folder), device="cpu", dtype="float32", **options)
    assert model.why_plain is None
    return model


def whole_prompts(model, reading, asked, answers):
    """Each answer by the model's own forward over a prompt of its own."""
    pictures = ASKED["wide"].images()
    conversations = [reading.conversation(asked.conversation, answer) for answer in answers]
    ends = [model.plain_end(model.prompt(one, pictures, True, 64)) for one in conversations]
    return torch.tensor([float(reading.of_end(*end)) for end in ends])


@pytest.mark.parametrize("place", ["among the weights", "in a file of its own", "beside an adapter"])
def test_a_reward_model_is_read_with_its_head(base, tmp_path, place):
    folder = tmp_path / "scalar"
    if place == "among the weights":
        judges.with_tensors(base, folder, HEAD)
    else:
        shutil.copytree(base, folder)
        save_file(HEAD, folder / "value_head.safetensors")
    if place == "beside an adapter":
        weights = load_file(base / "model.safetensors")
        pairs = adapters.matrices({name: value for name, value in weights.items() if "attn.qkv.weight" in name})
        adapter = adapters.write(tmp_path / "adapter", base, adapters.stored(pairs), task_type="SEQ_CLS")
        save_file(HEAD, adapter / "value_head.safetensors")
        moved = {name: adapters.added(weights[name], *pair) for name, pair in pairs.items()}
        save_file(weights | moved, folder / "model.safetensors", {"format": "pt"})
        expected, folder = loaded(folder, headed=True), model_folder(str(adapter))
    else:
        expected = loaded(folder, headed=True)
    check_weights(folder, "auto", headed=True)
    asked, model = question("wide"), loaded(folder, headed=True)
    found = scores(model, Scalar(model), asked)
    torch.testing.assert_close(found, whole_prompts(expected, Scalar(expected), asked, ANSWERS), atol=1e-4, rtol=0)
    assert found[0] == pytest.approx(found[4].item(), abs=1e-4)
    assert found[:4].std() > 0.5


def test_a_folder_without_a_head_is_refused_before_it_is_loaded(base):
    for act in (lambda: check_weights(base, "auto", headed=True), lambda: load_model(None, str(base), headed=True)):
        with pytest.raises(ModelError, match="has no head of a reward model"):
            act()


def test_a_head_is_no_weight_of_another_role(base, tmp_path):
    folder = judges.with_tensors(base, tmp_path / "scalar", HEAD)
    with pytest.raises(ModelError, match=re.escape("unexpected weight v_head.summary.")):
        check_weights(folder, "auto")


def test_yes_and_no_are_read_behind_its_own_prompts(tmp_path):
    base = internvl_folders.write(tmp_path / "base", "qwen3")
    # Yes and no as tokens, in the place of the first bytes.
    vocab = json.loads((base / "vocab.json").read_text())
    letters = sorted(vocab, key=vocab.__getitem__)
    unused = [letter for letter in letters if ord(letter) > 0x7F and letter not in "ĠĊ"]
    for number, piece in enumerate(judges.PIECES):
        vocab[piece] = vocab.pop(unused[number])
    (base / "vocab.json").write_text(json.dumps(vocab))
    merges = "".join(f"{one} {other}\n" for one, other in judges.MERGES)
    (base / "merges.txt").write_text(f"#version: 0.2\n{merges}")
    asked, model = question("wide"), loaded(base)
    reading = YesNo(model, TEMPLATE)
    found = scores(model, reading, asked)
    torch.testing.assert_close(found, whole_prompts(model, reading, asked, ANSWERS), atol=1e-4, rtol=0)


@pytest.mark.parametrize("added", [True, False], ids=["one token each", "spelled"])
def test_its_thoughts_are_cut_and_written_behind_a_system_text(tmp_path, added):
    """InternVL3.5 thinks where its system text asks for it; Qwen3's tokenizer has the marks, as no special tokens."""
    folder = internvl_folders.write(tmp_path / "base", "qwen3")
    if added:
        numbered = json.loads((folder / "added_tokens.json").read_text())
        first = max(numbered.values()) + 1
        more = {mark: first + place for place, mark in enumerate(THINKING)}
        (folder / "added_tokens.json").write_text(json.dumps(numbered | more))
        told = json.loads((folder / "tokenizer_config.json").read_text())
        plain = told["added_tokens_decoder"][str(numbered["<|im_end|>"])]
        told["added_tokens_decoder"] |= {
            str(number): plain | {"content": mark, "special": False} for mark, number in more.items()
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(told))
    chat = Chat.load(folder)
    asked = Conversation.of("What is it?")
    assert chat.thought_marks[0] == THINKING
    ids = chat.answer_ids(asked, "<think>\nHm, a cat?\n</think>\n\nA cat.")
    text, thought, size = chat.read_answer(asked, ids)
    assert (text, thought) == ("A cat.", "<think>\nHm, a cat?\n</think>\n\n")
    assert chat.text(ids[size:]) == "A cat."
    assert chat._tokenizer.decode(ids) == "<think>\nHm, a cat?\n</think>\n\nA cat.<|im_end|>"
    assert (len(ids) < 30) == added
    assert chat.read_answer(asked, ids[:3] if added else ids[:12]).text is None
    assert not set(THINKING) & set(chat.markers)
