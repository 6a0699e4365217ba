"""Fields that a training leaves in config.json, and that say nothing of what the model computes."""

import json
import shutil

import pytest
from families import named
from tiny_parts import picture

from data_engine import load_model, sample_answers, score_answers

ASKED = (picture(56, 42, 1), "What is it?")


def computed(folder) -> tuple:
    model = load_model(None, str(folder), device="cpu", dtype="float32")
    assert model.why_plain is None
    answers = sample_answers(model, *ASKED, k=2, max_new_tokens=6)
    return [one.token_ids for one in answers], score_answers(model, *ASKED, [[65, 66, 67]])[0].tolist()


@pytest.mark.parametrize("name", named(["qwen2_5_vl", "internvl"]))
@pytest.mark.parametrize("part", [None, "text_config", "vision_config"])
@pytest.mark.parametrize(
    "fields",
    [
        # Qwen's own training asks to write this there; the package is not needed to sample and score.
        {"_attn_implementation": "flash_attention_2"},
        {"attn_implementation": "flash_attention_2"},
        # With gradient checkpointing no cache is kept.
        {"use_cache": False, "attention_dropout": 0.3, "output_hidden_states": True, "torch_dtype": "bfloat16"},
    ],
    ids=str,
)
def test_it_computes_what_it_computes_without_them(checkpoints, tmp_path, name, part, fields):
    folder = shutil.copytree(checkpoints(name).folder, tmp_path / "trained")
    config = json.loads((folder / "config.json").read_text())
    (config if part is None else config[part]).update(fields)
    (folder / "config.json").write_text(json.dumps(config))
    assert computed(folder) == computed(checkpoints(name).folder)
