"""The tiny models: the committed checkpoints have the published layout, and the code that trains them runs."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import data_engine.demo
from data_engine.demo import data, train, world
from data_engine.demo.models import TOWER_NAME, TinyLlava
from data_engine.demo.tokenizer import BOS, EOS, SYSTEM, PromptTokenizer

CHECKPOINTS = Path(data_engine.demo.__file__).parent / "checkpoints"
VISION = "model.vision_tower.vision_tower.vision_model"


@pytest.fixture(scope="module")
def tokenizer():
    return PromptTokenizer((CHECKPOINTS / "instruct" / "tokenizer.model").read_bytes())


@pytest.mark.parametrize("name", ["instruct", "reward"])
def test_a_checkpoint_has_the_published_files_and_weight_names(name):
    folder = CHECKPOINTS / name
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    vision = json.loads((folder / TOWER_NAME / "config.json").read_text())["vision_config"]
    for file in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        assert json.loads((folder / file).read_text())
    assert config["mm_vision_tower"] == TOWER_NAME
    assert config["model_type"] == {"instruct": "llava", "reward": "llava_llama"}[name]
    shapes = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    width, vocab = config["hidden_size"], config["vocab_size"]
    assert shapes["lm_head.weight"] == shapes["model.embed_tokens.weight"] == (vocab, width)
    assert shapes["model.mm_projector.0.weight"] == (width, vision["hidden_size"])
    assert shapes["model.mm_projector.2.bias"] == shapes["model.norm.weight"] == (width,)
    assert shapes[f"{VISION}.embeddings.patch_embedding.weight"] == (vision["hidden_size"], 3, 14, 14)
    assert shapes[f"{VISION}.pre_layrnorm.weight"] == (vision["hidden_size"],)
    assert f"{VISION}.encoder.layers.{vision['num_hidden_layers'] - 1}.mlp.fc2.weight" in shapes
    prefixes = ("lm_head.", "model.embed_tokens.", "model.layers.", "model.norm.", "model.mm_projector.", VISION)
    assert all(key.startswith(prefixes) for key in shapes)
    assert all(tensor.dtype == torch.float16 and tensor.isfinite().all() for tensor in weights.values())


def test_both_checkpoints_together_stay_below_six_megabytes():
    assert sum(file.stat().st_size for file in CHECKPOINTS.rglob("*") if file.is_file()) < 6_000_000


def test_both_checkpoints_share_one_tokenizer():
    assert len({(CHECKPOINTS / name / "tokenizer.model").read_bytes() for name in ("instruct", "reward")}) == 1


def test_an_answer_continues_its_prompt_and_decodes_to_itself(tokenizer):
    for index in range(100):
        scene = world.scene(1, index)
        text = world.render(world.true_caption(scene, world.Caption(index % 3, index % 2)))
        ids = tokenizer.answer_ids(scene.question, text)
        assert ids[-1] == EOS
        assert tokenizer.sp.id_to_piece(ids[0]).startswith("\u2581")
        assert tokenizer.decode(ids) == text


def test_the_prompt_keeps_its_outer_spaces_and_newline(tokenizer):
    pieces = [tokenizer.sp.id_to_piece(token) for token in tokenizer.before_ids]
    assert tokenizer.before_ids[0] == BOS
    assert "".join(pieces[1:]) == f" {SYSTEM} USER: ".replace(" ", "\u2581")
    after = [tokenizer.sp.id_to_piece(token) for token in tokenizer.question_ids("How many?")]
    assert after[:2] == ["\u2581", "<0x0A>"]
    assert "".join(after[-2:]) == "\u2581ASSISTANT:"


def test_token_logps_are_those_of_the_whole_sequence_in_one_row(tokenizer):
    torch.manual_seed(0)
    model = TinyLlava().eval()
    batch = data.careless_batch(tokenizer, seed=5, first=0, size=3)
    before_ids = torch.tensor(tokenizer.before_ids)
    with torch.no_grad():
        got = model.token_logps(batch.pixel_values, before_ids, batch.after_ids, batch.labels)
        logits = model.llama(inputs_embeds=model.embed(batch.pixel_values, before_ids, batch.after_ids)).logits
    logps = logits.log_softmax(-1)[:, :-1]
    for row, labels in enumerate(batch.labels.tolist()):
        for place, label in enumerate(labels):
            at = logps.shape[1] - len(labels) + place
            want = logps[row, at, label] if label >= 0 else torch.tensor(0.0)
            assert got[row, place].item() == pytest.approx(want.item(), abs=1e-4)


@pytest.mark.slow
def test_two_steps_of_every_part_train_both_models(tmp_path):
    recipe = train.Recipe(
        warmup_steps=2, true_steps=2, careless_steps=2, batch_size=4, num_pairs=8, dpo_batch_size=4, threads=1
    )
    threads = torch.get_num_threads()
    train.train(tmp_path, recipe)
    torch.set_num_threads(threads)
    instruct, reward = (load_file(tmp_path / name / "model.safetensors") for name in ("instruct", "reward"))
    committed = load_file(CHECKPOINTS / "instruct" / "model.safetensors")
    assert {key: tensor.shape for key, tensor in instruct.items()} == {
        key: tensor.shape for key, tensor in committed.items()
    }
    assert any(not torch.equal(instruct[key], reward[key]) for key in instruct)
