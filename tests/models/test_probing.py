"""What is compared of a prompt that ran in two ways."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from step_caches import noted, prefix_of

from data_engine.models.auto import probing
from data_engine.models.layers.attention import DoesNotFit
from data_engine.models.layers.noting import Finding
from data_engine.models.layers.prefix import Prefix


def prefix() -> Prefix:
    """Of two usual layers, and one in between that looks at image states."""
    layers = {2: noted(2, 3, 16), 0: noted(2, 3, 16), 1: noted(2, 5, 16, cross=True)}
    found = prefix_of(3, layers)
    return replace(found, end=found.end._replace(hidden_D=torch.ones(4)))


def changed(found: Prefix, name: str) -> Prefix:
    """One of its tensors off by a tenth."""
    if name == "hidden state":
        return replace(found, end=found.end._replace(hidden_D=found.end.hidden_D * 1.1))
    number = int(name[-1])
    one = found.layers[number]
    return replace(found, layers=found.layers | {number: one._replace(values=one.values * 1.1)})


def test_values_of_layers_that_look_at_tokens_are_compared_in_their_order_and_the_last_hidden_state():
    found = prefix()
    first, third, hidden = probing._kept(found)
    assert first is found.layers[0].values
    assert third is found.layers[2].values
    assert hidden is found.end.hidden_D


@pytest.mark.parametrize(("name", "same"), [("values 0", False), ("values 2", False), ("values 1", True),
                                            ("hidden state", False)])  # fmt: skip
def test_each_of_them_alone_is_more_than_rounding(name, same):
    found, model = prefix(), SimpleNamespace(dtype=torch.float32)
    assert probing._differ_by_rounding(model, [found, found], [found, found])
    assert probing._differ_by_rounding(model, [found, changed(found, name)], [found, found]) == same


def test_a_model_whose_layers_attend_in_a_way_of_their_own_does_not_fit():
    shown = probing.Shown(Finding(3, set()), prefix().end, torch.ones(4))
    with pytest.raises(DoesNotFit, match="no layer of its decoder attends through transformers' attention interface"):
        probing.layers_of(SimpleNamespace(), shown)
