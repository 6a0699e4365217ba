"""What is noted of a prompt's forward in the decoder: its last hidden state, and where answers go on."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from data_engine.models.auto.forward.mirrored import Known, mirrored
from data_engine.models.auto.forward.own_forward import OwnForward
from data_engine.models.auto.forward.processed import ProcessedPrompt
from data_engine.models.layers.attention import DoesNotFit

PROMPT = ProcessedPrompt({"input_ids": torch.zeros(1, 5, dtype=torch.int64)})
# With multimodal RoPE: the largest of all axes is in the middle.
POSITIONS = torch.tensor([[[0, 1, 1, 1, 2]], [[0, 1, 7, 3, 2]], [[0, 1, 2, 4, 2]]])


class Model(nn.Module):
    """A decoder, and a rule for its positions where it is given some."""

    def __init__(self, positions: Tensor | None = None) -> None:
        super().__init__()
        self.decoder = Decoder()
        if positions is not None:
            self.compute_3d_position_ids = lambda input_ids: positions

    def prepare_inputs_for_generation(self, **given):
        return {"input_ids": given["input_ids"]}

    def forward(self, input_ids, logits_to_keep, position_ids=None):
        return self.decoder(position_ids=position_ids)


class Decoder(nn.Module):
    def forward(self, position_ids=None):
        return SimpleNamespace(last_hidden_state=torch.arange(10.0).view(1, 5, 2))


def own(model: Model) -> OwnForward:
    return OwnForward(model, model.decoder, None)


def known(value: Tensor) -> Tensor:
    return mirrored({"it": value}, {"it": value}, Known(value.device))["it"]


def test_the_last_hidden_state_is_that_of_the_last_token_and_keeps_no_other_alive():
    model = Model()
    forward = own(model)
    with pytest.raises(DoesNotFit, match="its text decoder is not called as a module"):
        forward.hidden_D  # noqa: B018
    model.decoder()
    assert forward.hidden_D.tolist() == [8, 9]
    assert forward.hidden_D.untyped_storage().nbytes() == 2 * 4


@pytest.mark.parametrize(
    ("positions", "expected", "asks"),
    [(None, 5, False), (torch.arange(3, 8)[None], 8, True), (POSITIONS, 8, True), (known(POSITIONS), 8, False)],
)
def test_answers_go_on_behind_the_largest_position(positions, expected, asks):
    """Where the device has to be asked for it, the host counts from then on."""
    model = Model()
    forward = own(model)
    model.decoder(position_ids=positions)
    assert forward.next_position(PROMPT) == expected
    assert forward._sending.knows_counted == asks


def test_positions_of_the_host_are_not_asked_of_the_device():
    model = Model(POSITIONS)
    forward = own(model)
    forward.run(PROMPT, PROMPT.inputs, None, sends=True)
    assert forward.next_position(PROMPT) == 8
    assert not forward._sending.knows_counted
