"""Omni models as they are published: the part that reads and writes, inside a model that speaks as well."""

import json
import shutil
from pathlib import Path

import product
import pytest
import torch
from asked import ASKED
from comparisons import TOLERANCE, score_difference, wrong_greedy_rows
from families import named
from safetensors.torch import load_file, save_file

from data_engine.bench.model import load_stock
from data_engine.job.checkpoints import Checkpoint
from data_engine.models.auto.model import Auto
from data_engine.models.checkpoints.json_files import ModelError

PARTS = ["qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"]
# What speaks is none of a run's: a weight of it stands for all.
SPEAKING = {"talker.model.norm.weight": torch.ones(8)}


def publish(part: Path, folder: Path) -> Path:
    """The whole model, of which `part` is the folder of the part that reads and writes."""
    shutil.copytree(part, folder)
    config = json.loads((part / "config.json").read_text())
    whole = {"model_type": config["model_type"].removesuffix("_thinker"), "architectures": ["Omni"],
             "talker_config": {"text_config": {"hidden_size": 8}}, "thinker_config": config}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(whole))
    weights = {f"thinker.{name}": value for name, value in load_file(part / "model.safetensors").items()}
    save_file(weights | SPEAKING, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(params=named(PARTS))
def both(request, checkpoints, tmp_path):
    """A checkpoint of the part, and the folder of the whole."""
    part = checkpoints(request.param)
    return part, publish(part.folder, tmp_path / "whole")


def test_it_answers_and_scores_as_the_part_alone(both, caplog):
    part, whole = both
    # Held against the part's folder.
    assert part.stock is not None
    fresh = part.reloaded()
    fresh.folder = whole
    assert score_difference(fresh, ASKED["wide"]) <= TOLERANCE
    assert wrong_greedy_rows(fresh, ASKED["wide"]) == 0
    assert product.is_fast(fresh.model)
    assert "does not use" not in caplog.text


def test_what_is_told_of_it_is_that_of_the_part(both):
    part, whole = both
    Auto.check(whole)
    assert Auto.describe(whole) == Auto.describe(part.folder)
    found, own = (Checkpoint.find(str(folder), "auto") for folder in (whole, part.folder))
    assert found.sizes == own.sizes == {"hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 400}
    assert found.encodes_as(own)
    stock, why_not = load_stock(whole, torch.device("cpu"), torch.float32)
    assert (type(stock), why_not) == (type(part.built), "")


def test_a_whole_that_lacks_a_weight_of_the_part_is_refused(both):
    _, whole = both
    file = whole / "model.safetensors"
    weights = load_file(file)
    del weights["thinker.lm_head.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    for refuse in (Auto.check, product.load):
        with pytest.raises(ModelError, match=r"lacks lm_head.weight: these are not the weights of this config.json"):
            refuse(whole)
