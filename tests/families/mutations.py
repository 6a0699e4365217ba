"""Three faults, put into the product one at a time: each must turn the suite red."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from data_engine.models.auto.model import Auto
from data_engine.models.layers import attention
from data_engine.scoring import self_check


@contextmanager
def windows_off() -> Iterator[None]:
    """Answers see all of the prompt and of themselves, whatever the layer's mask says."""
    with patch.object(attention.LayerCall, "seen", lambda call, length: None):
        yield


@contextmanager
def positions_counted() -> Iterator[None]:
    """An answer's first position is the number of the prompt's tokens, instead of what follows the last position."""
    run_prompt = Auto.run_prompt

    def counted(model, prompt):
        return run_prompt(model, prompt)._replace(next_position=prompt.length)

    with patch.object(Auto, "run_prompt", counted):
        yield


@contextmanager
def no_mask_function() -> Iterator[None]:
    """The product's attention is registered without a mask function, so that no mask reaches a layer."""
    # A registry of transformers takes nothing back.
    registered = ALL_MASK_ATTENTION_FUNCTIONS._global_mapping
    with patch.dict(registered):
        del registered[attention.NAME]
        yield


@contextmanager
def unchecked() -> Iterator[None]:
    """The product does not hold its shared prefix against the plain path before it uses it."""
    with patch.object(self_check, "why_not_shared", lambda model, prompt: None):
        yield
