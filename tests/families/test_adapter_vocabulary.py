"""Adapters that bring a tokenizer with more tokens than their base has embeddings of."""

import json
import re
import shutil

import adapters
import pytest
from families import named
from safetensors.torch import load_file

from data_engine import load_model, sample_answers, score_answers
from data_engine.errors import BadRow
from data_engine.models.auto.model import Auto
from data_engine.models.checkpoints.adapter_folder import model_folder
from data_engine.models.checkpoints.json_files import ModelError
from data_engine.questions.conversation import Conversation

# Embeddings of the tiny models; their tokenizers have fewer tokens.
SIZE = 400
OPENS, ENDS = "<think>", "</think>"


def with_tokens(base, to, template=""):
    """An adapter with a tokenizer whose last tokens, of the ids from SIZE on, are the marks of thoughts."""
    weights = load_file(base / "model.safetensors")
    pairs = adapters.matrices({name: value for name, value in weights.items() if "lm_head" in name})
    assert [len(weights[name]) for name in pairs] == [SIZE]
    adapters.write(to, base, adapters.stored(pairs))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(base / name, to / name)
    told = json.loads((to / "tokenizer.json").read_text())
    added = told["added_tokens"]
    for number in range(1 + max(one["id"] for one in added), SIZE + 2):
        content = {SIZE: OPENS, SIZE + 1: ENDS}.get(number, f"<|{number}|>")
        added.append({**added[-1], "id": number, "content": content, "special": number < SIZE})
    (to / "tokenizer.json").write_text(json.dumps(told))
    path = to / "chat_template.jinja"
    path.write_text(path.read_text() + template)
    return to


@pytest.mark.parametrize("name", named(["internvl", "qwen2_5_vl"]))
def test_a_prompt_with_a_token_that_has_no_embedding_is_refused_before_any_weight_is_read(checkpoints, tmp_path, name):
    adapter = with_tokens(checkpoints(name).folder, tmp_path / "adapter", f"{OPENS}\n{ENDS}\n")
    told = f"have the token '{ENDS}' of id {SIZE + 1}, and the model has embeddings of {SIZE} tokens: tokenizer or chat"
    for act in (lambda: Auto.check(model_folder(str(adapter))), lambda: load_model(None, str(adapter), device="cpu")):
        with pytest.raises(ModelError, match=re.escape(told)):
            act()


@pytest.mark.parametrize("name", named(["internvl"]))
def test_tokens_beyond_the_embeddings_that_no_prompt_has_do_no_harm(checkpoints, tmp_path, name):
    adapter = with_tokens(checkpoints(name).folder, tmp_path / "adapter")
    model = load_model(None, str(adapter), device="cpu", dtype="float32")
    text = f"{OPENS}Hm.{ENDS}A cat."
    assert max(model.encode_answer(Conversation.of("What is it?"), text)) == SIZE + 1
    assert len(score_answers(model, None, "What is it?", ["A cat."])[0]) == 7
    with pytest.raises(BadRow, match=f"an answer has the id {SIZE + 1} of its tokenizer; the model has {SIZE} ids"):
        score_answers(model, None, "What is it?", [text])


@pytest.mark.parametrize("name", named(["internvl", "qwen2_5_vl"]))
def test_a_question_with_a_token_that_has_no_embedding_is_left_out_by_name(checkpoints, tmp_path, name):
    model = load_model(None, str(with_tokens(checkpoints(name).folder, tmp_path / "adapter")), device="cpu")
    for act in (
        lambda asked: sample_answers(model, None, asked, k=1, max_new_tokens=1),
        lambda asked: score_answers(model, None, asked, ["A cat."]),
    ):
        with pytest.raises(BadRow, match=f"^question contains {OPENS}, which the model has no embedding of$"):
            act(f"What does {OPENS} mean?")
        system = {"role": "system", "content": f"Begin with {ENDS}."}
        with pytest.raises(BadRow, match=f"^system text contains {ENDS}, which"):
            act([system, {"role": "user", "content": "What is it?"}])
        assert len(act("What does <thing> mean?")) == 1
