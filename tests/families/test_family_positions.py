"""Positions of a prompt, which a model with multimodal RoPE computes by a rule of its own: on the host, and once."""

import contextlib
from collections.abc import Iterator
from unittest.mock import patch

import product
import pytest
import torch
from asked import ASKED
from families import FAMILIES, MROPE, named
from torch import Tensor, nn

from data_engine.models.layers.prefix import run_prefix
from data_engine.pipeline.public_arguments import read_question

NAMES = [name for name, family in FAMILIES.items() if MROPE in family.kind and family.fast]


@contextlib.contextmanager
def positions_seen(decoder: nn.Module) -> Iterator[list[Tensor | None]]:
    """Those that a decoder is handed inside; None: it counts."""
    seen: list[Tensor | None] = []
    hook = decoder.register_forward_pre_hook(
        lambda module, args, options: seen.append(options.get("position_ids")), with_kwargs=True
    )
    with hook:
        yield seen


def prompt(model, asked):
    return model.prompt(*read_question(*product._given(asked), 64, "apply"), True, 64)


@pytest.mark.parametrize("name", named(NAMES))
@pytest.mark.parametrize("of", ASKED)
def test_a_prompts_positions_are_those_of_the_stock_model(checkpoints, name, of):
    checkpoint = checkpoints(name)
    stock, asked = checkpoint.stock, ASKED[of]
    with positions_seen(stock.model.get_decoder()) as expected, torch.no_grad():
        stock.model(**stock.model.prepare_inputs_for_generation(**stock.inputs(asked), is_first_iteration=True))
    with positions_seen(checkpoint.model.decoder) as found:
        prefix = run_prefix(checkpoint.model, prompt(checkpoint.model, asked))
    if expected == [None]:
        # A text alone has no pictures to place.
        assert found == [None]
    else:
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        assert prefix.end.next_position == expected[0].max() + 1
    assert (prefix.end.next_position == prefix.length) == (checkpoint.family.counts or not asked.sizes)


@pytest.mark.parametrize("name", named(NAMES))
def test_they_are_computed_from_the_hosts_tensors_once(checkpoints, name):
    model = checkpoints(name).model
    given = prompt(model, ASKED["two images"])
    owner = next(module for module in model._model.modules() if hasattr(module, "compute_3d_position_ids"))
    with patch.object(owner, "get_rope_index", wraps=owner.get_rope_index) as rule:
        run_prefix(model, given)
    [call] = rule.call_args_list
    sizes = next(given.inputs[name] for name in ("image_grid_thw", "target_sizes") if name in given.inputs)
    assert {id(given.inputs["input_ids"]), id(sizes)} <= {id(value) for value in [*call.args, *call.kwargs.values()]}
