"""A model family is one file and one line: the one of docs/adding.md loads, samples and scores."""

import json
import shutil

import pytest
import torch

from data_engine import load_model, sample_answers, score_answers
from data_engine.models.checkpoints.json_files import ModelError
from data_engine.models.registry import family_of


@pytest.fixture
def folder(goldens, tmp_path):
    """A LLaVA checkpoint whose config.json tells another model_type."""
    shutil.copytree(goldens / "llava/instruct", tmp_path / "llava/instruct")
    shutil.copytree(goldens / "llava/openai", tmp_path / "llava/openai")
    path = tmp_path / "llava/instruct/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "loud_llava"}))
    return path.parent


def test_a_family_is_one_file_and_one_line(folder, tmp_path, monkeypatch, instruct, golden_images):
    import contributing

    with pytest.raises(ModelError, match="model_type 'loud_llava'"):
        load_model(None, str(folder), device="cpu")
    key = contributing.add("A model family", "data_engine.models.registry", "FAMILIES", monkeypatch, tmp_path)
    assert family_of(folder, "Loud-7B") == key == "loud"
    loud = load_model("Loud-7B", str(folder), device="cpu")
    assert loud.family == "loud"
    # The same weights, asked otherwise: what it samples and scores is what LLaVA does with the question in capitals.
    image, question, shouted = golden_images[0], "What is it?", "WHAT IS IT?"
    assert sample_answers(loud, image, question, k=2, max_new_tokens=6) == sample_answers(
        instruct, image, shouted, k=2, max_new_tokens=6
    )
    for given in ("A red cube.", [5, 6, 2]):
        [found], [expected] = (
            score_answers(model, image, asked, [given]) for model, asked in ((loud, question), (instruct, shouted))
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
