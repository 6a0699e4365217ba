"""What a pass of answers asks of a GPU, on tensors without values: nothing is read, and what is sent goes by `sent`."""

import pytest
import torch
from one_device import META, NoLists, OneDevice, arrived

from data_engine.bench.bare_llama import TINY_LLAMA, BareLlama
from data_engine.scoring import logprobs
from data_engine.scoring.logprobs import Scored, last_hidden


@pytest.mark.parametrize("in_rows", [False, True])
def test_a_pass_runs_without_a_wait_packed_or_in_rows(in_rows, monkeypatch):
    model = BareLlama(TINY_LLAMA, META, torch.bfloat16)
    model.answers_in_rows, model.encoded = in_rows, iter
    questions = [Scored(model.prompt(length), [[5, 6, 7], [8], [9, 10]]) for length in (11, 14)]
    monkeypatch.setattr(logprobs, "sent", arrived)
    with OneDevice(), NoLists():
        found = last_hidden(model, questions)
    assert [[one.shape for one in question] for question in found] == [[(64,)] * 3] * 2
    assert {one.device for question in found for one in question} == {META}
