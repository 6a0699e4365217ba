"""The trainer's model is the engine's: the same ids, the same answers; ids that differ stop the proof."""

import json
from pathlib import Path

import checkpoint
import judge
import numpy as np
import pytest
import transformers

import data_engine.demo
from data_engine import load_model
from data_engine.demo import data, world
from data_engine.questions.conversation import Conversation

INSTRUCT = Path(data_engine.demo.__file__).parent / "checkpoints" / "instruct"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    checkpoint.to_transformers(INSTRUCT, folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return load_model("llava-1.5-7b", str(folder), device="cpu", dtype="float32")


def captions(num):
    for index in range(num):
        scene, rng = world.scene(5, index), np.random.default_rng(index)
        yield scene.question, world.render(data.with_mistakes(world.true_caption(scene, data.random_style(rng)), rng))


def trained_on(folder, questions_and_answers):
    """The rows that train.py writes, as TRL's collator encodes them: prompt and answer each alone."""
    processor = transformers.AutoProcessor.from_pretrained(folder)
    for question, answer in questions_and_answers:
        turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        said = [{"role": "assistant", "content": [{"type": "text", "text": answer}]}]
        prompt = processor.apply_chat_template(turns, add_generation_prompt=True)
        whole = processor.apply_chat_template(turns + said)
        assert whole.startswith(prompt)
        encode = processor.tokenizer
        text = prompt.replace("<image>", "<image>" * 16)
        ids = [encode(part, add_special_tokens=False)["input_ids"] for part in (text, whole.removeprefix(prompt))]
        yield ids


def test_every_prompt_and_answer_has_the_engines_ids(folder, model, tmp_path):
    rows = list(trained_on(folder, captions(300)))
    (tmp_path / "trained_on.json").write_text(json.dumps(rows))
    assert judge.require_same_ids(model, tmp_path / "trained_on.json", checkpoint.IMAGE_TOKEN) == 300


def no_dummy_space(row, dummy):
    """As tokenizers do that have no dummy space behind special tokens."""
    prompt, answer = row
    last_image = len(prompt) - 1 - prompt[::-1].index(checkpoint.IMAGE_TOKEN)
    assert prompt[last_image + 1] == dummy
    return [prompt[: last_image + 1] + prompt[last_image + 2 :], answer]


def no_eos(row, dummy):
    return [row[0], row[1][:-1]]


@pytest.mark.parametrize(
    ("change", "told"), [(no_dummy_space, "no question has the prompt"), (no_eos, "was trained as")]
)
def test_other_ids_are_refused(folder, model, tmp_path, change, told):
    rows = list(trained_on(folder, captions(3)))
    dummy = transformers.AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("\u2581")
    rows[1] = change(rows[1], dummy)
    (tmp_path / "trained_on.json").write_text(json.dumps(rows))
    with pytest.raises(judge.Differs, match=told):
        judge.require_same_ids(model, tmp_path / "trained_on.json", checkpoint.IMAGE_TOKEN)


def test_both_layouts_give_the_same_verdicts(model):
    published = load_model("llava-1.5-7b", str(INSTRUCT), device="cpu", dtype="float32")
    assert judge.judge(model, seed=1, num=6) == judge.judge(published, seed=1, num=6)


def test_verdicts_are_those_of_the_answers_that_the_engine_gives(model):
    """Against the public API, a picture at a time."""
    from data_engine import sample_answers

    found = judge.judge(model, seed=3, num=3)["sampled"]
    for index, counts in enumerate(found):
        scene = world.scene(judge.PICTURE_SEED, index)
        [answer] = sample_answers(
            model, world.draw(scene), scene.question, k=1, seed=3, idx=index, top_k=50, max_new_tokens=40
        )
        said = world.mentioned(answer.text)
        if said:
            assert counts[:2] == [len(said), len(said) - len(set(said) & set(scene.names))]
        assert counts[3:] == [len(scene.names), len(answer.text.split())]


def test_a_conversation_of_one_question_is_what_is_asked(model):
    assert (
        model.prompt_ids("What?")
        == model.prompt(Conversation.of("What?"), [world.draw(world.scene(1, 1))], False, 1).ids
    )
