"""Modules on the meta device: what they are made of takes no memory, and leaves no gaps in it."""

from pathlib import Path

import pytest
import torch
from torch import nn

from data_engine import load_model
from data_engine.models.checkpoints.json_files import ModelError
from data_engine.models.checkpoints.model_config import on_meta

WHERE = Path("config.json")


class Layer(nn.Module):
    """2**45 weights of 4 bytes: 2**47 bytes, all that a process can address."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1 << 23, 1 << 22)
        self.embedding = nn.Embedding(1 << 23, 1 << 22)
        self.register_buffer("position_ids", torch.arange(3))


def test_modules_on_meta_take_no_memory_while_they_are_made():
    layer = on_meta(WHERE, Layer)
    assert {name: (value.device.type, tuple(value.shape)) for name, value in layer.named_parameters()} == {
        "linear.weight": ("meta", (1 << 22, 1 << 23)), "linear.bias": ("meta", (1 << 22,)),
        "embedding.weight": ("meta", (1 << 23, 1 << 22)),
    }  # fmt: skip
    assert layer.position_ids.tolist() == [0, 1, 2]


def test_loading_leaves_the_random_numbers_of_a_notebook_as_they_were(goldens):
    """Modules draw first values that the checkpoint's own replace."""
    for family in ("llava", "omnilmm"):
        torch.manual_seed(3)
        before = torch.random.get_rng_state()
        load_model(None, str(goldens / family / "instruct"), device="cpu", dtype="float32")
        assert torch.equal(torch.random.get_rng_state(), before), family


def test_tensors_that_are_told_a_device_are_there_and_those_made_later_too():
    assert on_meta(WHERE, lambda: torch.empty(2, device="cpu")).device.type == "cpu"
    assert torch.empty(2).device.type == "cpu"


def test_first_values_are_given_to_tensors_in_memory_alone():
    made = on_meta(WHERE, lambda: [nn.init.ones_(torch.empty(2, device=device)) for device in ("cpu", "meta")])
    assert made[0].tolist() == [1, 1]
    assert made[1].is_meta


def test_after_an_error_tensors_are_made_in_memory_again():
    with pytest.raises(ModelError, match="ZeroDivisionError"):
        on_meta(WHERE, lambda: 1 // 0)
    assert torch.empty(2).device.type == "cpu"
