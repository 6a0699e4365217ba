"""Linear layers in oneDNN's layout give the numbers of plain ones, and take their place in memory."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from data_engine.models.layers import for_device
from data_engine.models.layers.cpu_linear import PackedLinear, pack_linears
from data_engine_kernels import onednn, reference

pytestmark = pytest.mark.skipif(not onednn.can_pack(torch.zeros(1, 1)), reason="torch was built without oneDNN")


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 40, 700])
def test_a_packed_layer_multiplies_as_a_plain_one(rows, once):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(96, 200), nn.GELU(), nn.Linear(200, 50, bias=False))
    given = torch.randn(2, rows, 96)
    expected = layers(given).double()
    pack_linears(layers, once=once)
    with torch.inference_mode():
        torch.testing.assert_close(layers(given).double(), expected, rtol=0, atol=1e-5)


def test_a_row_does_not_depend_on_how_many_stand_beside_it():
    torch.manual_seed(0)
    weight, rows = onednn.pack(torch.randn(1376, 512)), torch.randn(160, 512)
    whole = onednn.product(rows, weight)
    for count in (2, 5, 16, 33, 80, 159):
        torch.testing.assert_close(onednn.product(rows[:count], weight), whole[:count], rtol=0, atol=1e-5)


def test_the_packed_weight_takes_the_place_of_the_other():
    layer = nn.Linear(64, 32)
    before = weakref.ref(layer.weight)
    pack_linears(layer, once=True)
    gc.collect()
    assert before() is None
    assert isinstance(layer, PackedLinear)
    assert (layer.weight.device.type, layer.weight.shape) == ("meta", (32, 64))


def test_other_devices_types_and_kinds_are_left_alone():
    class Quantised(nn.Linear):
        """One that multiplies in its own way."""

    for layer in (nn.Linear(4, 4, dtype=torch.bfloat16), nn.Linear(4, 4, device="meta"), Quantised(4, 4)):
        kind = type(layer)
        pack_linears(layer, once=True)
        assert type(layer) is kind


@pytest.mark.parametrize(("split", "place"), [(False, "meta"), (True, "cpu")])
def test_weights_that_are_gathered_for_each_call_are_packed_in_each(split, place):
    torch.manual_seed(0)
    decoder, rows = nn.Sequential(nn.Linear(64, 64)), torch.randn(3, 64)
    expected = decoder(rows)
    for_device.fit(decoder, torch.device("cpu"), split=split)
    assert type(decoder[0]) is PackedLinear
    assert decoder[0].weight.device.type == place
    torch.testing.assert_close(decoder(rows), expected, rtol=0, atol=1e-5)


def test_the_loaded_decoders_are_packed(instruct, omni_instruct):
    for model in (instruct, omni_instruct):
        layers = [module for module in model.decoder.modules() if isinstance(module, nn.Linear)]
        assert len(layers) == 7 * model.decoder.config.num_hidden_layers
        assert all(layer.packed_weight is not None for layer in layers)


def test_a_head_that_changes_is_packed_anew_and_goes_with_its_model():
    torch.manual_seed(0)
    hidden, weight = torch.randn(5, 16), nn.Parameter(torch.randn(40, 16), requires_grad=False)
    for _ in range(2):
        torch.testing.assert_close(reference.logits_fp32(hidden, weight), F.linear(hidden, weight))
        weight.mul_(2)
    before = len(onednn._PACKED)
    del weight
    gc.collect()
    assert len(onednn._PACKED) == before - 1


class ReadsWeights(nn.Module):
    """As Gemma 3n's AltUp: its forward reads the weight of one of its layers itself."""

    def __init__(self):
        super().__init__()
        self.read, self.called = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, rows):
        return self.called(rows.to(self.called.weight.dtype)) @ self.read.weight.T


def test_a_layer_whose_weight_is_read_elsewhere_stays_as_it_is():
    torch.manual_seed(0)
    module, rows = ReadsWeights(), torch.randn(3, 64)
    expected = (rows @ module.called.weight.T + module.called.bias) @ module.read.weight.T
    pack_linears(module, once=True)
    assert type(module.read) is nn.Linear
    assert type(module.called) is not nn.Linear
    torch.testing.assert_close(module(rows), expected, rtol=0, atol=1e-5)
