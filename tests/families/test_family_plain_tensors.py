"""A model whose code fails on tensors that the host has a copy of goes on without, with the same bits."""

import pytest
import torch
from asked import ASKED
from families import named
from test_family_positions import prompt

from data_engine.errors import BadRow, LostRankError, UserError
from data_engine.models.auto.forward.mirrored import Mirrored
from data_engine.models.layers.attention import DoesNotFit
from data_engine.models.layers.prefix import Prefix, run_prefix, run_prefixes

ASKED_FIRST, ASKED_LATER = ASKED["two images"], ASKED["wide"]
NAMES = named(["llava", "qwen2_5_vl"])


class Failing:
    """A part of the model that fails where the prompt's tensors are mirrored, or wherever."""

    def __init__(self, model, part, error: Exception, always: bool = False) -> None:
        self.calls, self._model, self._error, self._always = 0, model, error, always
        part.register_forward_pre_hook(self._call)

    def _call(self, *given) -> None:
        self.calls += 1
        if self._always or self._model.own_forward.takes_mirrored:
            raise type(self._error)(f"{self._error}, call {self.calls}")


def same(found: Prefix, expected: Prefix) -> bool:
    both = [(found.layers[number], expected.layers[number]) for number in expected.layers]
    tensors = [(found.end.hidden_D, expected.end.hidden_D), *((one.keys, other.keys) for one, other in both)]
    return all(torch.equal(*pair) for pair in tensors) and found.end.next_position == expected.end.next_position


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_takes_no_mirrored_tensors_is_loaded_without(checkpoints, name, monkeypatch):
    checkpoint = checkpoints(name)
    expected = run_prefix(checkpoint.model, prompt(checkpoint.model, ASKED_FIRST))
    assert checkpoint.model.own_forward.takes_mirrored

    def refusing(*given) -> None:
        raise TypeError("unsupported operand")

    monkeypatch.setattr(Mirrored, "__torch_function__", refusing)
    plain = checkpoint.reloaded().model
    assert plain.why_plain is None
    assert not plain.own_forward.takes_mirrored
    assert same(run_prefix(plain, prompt(plain, ASKED_FIRST)), expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", ["whole", "last layer"])
def test_one_that_fails_on_them_in_a_later_prompt_goes_on_without_and_says_so_once(checkpoints, name, part, caplog):
    """Behind the first layers, whose keys and values are noted anew, or before them."""
    checkpoint = checkpoints(name)
    expected = [run_prefix(checkpoint.model, prompt(checkpoint.model, one)) for one in (ASKED_FIRST, ASKED_LATER)]
    model = checkpoint.reloaded().model
    failing = Failing(model, model._model if part == "whole" else model.decoder.layers[-1], TypeError("no overload"))
    found = [run_prefix(model, prompt(model, one)) for one in (ASKED_FIRST, ASKED_LATER)]
    assert all(map(same, found, expected))
    assert failing.calls == 3
    [told] = [record for record in caplog.records if "plain tensors" in record.message]
    assert told.levelname == "WARNING"
    assert "TypeError: no overload, call 1" in told.message


def test_so_does_one_whose_prompts_run_in_one_pass(checkpoints, caplog):
    checkpoint = checkpoints("qwen2_5_vl")
    prompts = [prompt(checkpoint.model, one) for one in (ASKED_FIRST, ASKED_LATER)]
    assert checkpoint.model.packs_prompts
    num_rows = sum(one.length for one in prompts)
    expected = run_prefixes(checkpoint.model, prompts, num_rows)
    model = checkpoint.reloaded().model
    assert model.packs_prompts
    failing = Failing(model, model._model, TypeError("no overload"))
    assert all(map(same, run_prefixes(model, prompts, num_rows), expected))
    assert failing.calls == 3
    assert len([record for record in caplog.records if "plain tensors" in record.message]) == 1


def test_where_plain_tensors_fail_as_well_their_error_is_raised_and_the_model_stays_as_it_was(checkpoints, caplog):
    model = checkpoints("llava").reloaded().model
    Failing(model, model._model, KeyError("sizes"), always=True)
    with pytest.raises(KeyError, match="call 2") as raised:
        run_prefix(model, prompt(model, ASKED_FIRST))
    assert raised.value.__context__ is None
    assert model.own_forward.takes_mirrored
    assert not [record for record in caplog.records if "plain tensors" in record.message]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), RuntimeError("CUDA out of memory")])
def test_memory_that_runs_out_is_no_reason_to_try_again(checkpoints, error):
    model = checkpoints("llava").reloaded().model
    failing = Failing(model, model._model, error)
    with pytest.raises(type(error), match="call 1"):
        run_prefix(model, prompt(model, ASKED_FIRST))
    assert failing.calls == 1
    assert model.own_forward.takes_mirrored


@pytest.mark.parametrize("error", [UserError, BadRow, LostRankError, DoesNotFit])
def test_nor_is_what_says_nothing_of_the_models_code(checkpoints, error):
    model = checkpoints("llava").reloaded().model
    failing = Failing(model, model._model, error("no such row"))
    with pytest.raises(error, match="call 1"):
        run_prefix(model, prompt(model, ASKED_FIRST))
    assert failing.calls == 1
    assert model.own_forward.takes_mirrored


def test_one_that_runs_without_is_not_called_again(checkpoints):
    model = checkpoints("llava").reloaded().model
    model.own_forward.takes_mirrored = False
    failing = Failing(model, model._model, KeyError("sizes"), always=True)
    with pytest.raises(KeyError, match="call 1"):
        run_prefix(model, prompt(model, ASKED_FIRST))
    assert failing.calls == 1


def test_a_split_model_is_not_called_again(checkpoints, monkeypatch):
    """Other ranks would wait in the call that failed."""
    model = checkpoints("llava").reloaded().model
    monkeypatch.setattr(model, "is_split", True)
    failing = Failing(model, model._model, TypeError("no overload"))
    with pytest.raises(TypeError, match="call 1"):
        run_prefix(model, prompt(model, ASKED_FIRST))
    assert failing.calls == 1
