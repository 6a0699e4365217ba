"""What a model of transformers does with its logits, found by its own."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from data_engine.models.auto.parts import (
    difference,
    find_decoder,
    find_vision,
    fitted_head,
    layer_kinds,
    output_weights,
)
from data_engine.models.layers.attention import DoesNotFit
from data_engine.models.layers.head import Head
from data_engine.models.layers.layer_kind import LayerKind
from data_engine.models.layers.noting import Noted

WIDTH, VOCABULARY = 64, 5000
CONFIG = PreTrainedConfig(logit_scale=0.25, final_logit_softcapping=30.0)


def given(dtype: torch.dtype) -> tuple[Head, Tensor]:
    """Logits of about 4, as far as the weight alone makes them."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator) * 0.5
    return Head(weight.to(dtype)), torch.randn(WIDTH, generator=generator).to(dtype)


@pytest.mark.parametrize(
    ("dtype", "scale"), [(torch.float32, 1.0), (torch.float32, 0.25), (torch.bfloat16, 1.0)], ids=str
)
@pytest.mark.parametrize("cap", [None, 30.0])
def test_scale_and_cap_are_those_of_the_models_own_logits(dtype, scale, cap):
    """Step by step in the model's dtype, as transformers does. The cap changes a logit of 4 by 0.6 %, rounding in bf16
    by 0.2 %.
    """
    head, hidden = given(dtype)
    logits = (hidden @ head.weight.T) * scale
    if cap is not None:
        logits = torch.tanh(logits / cap) * cap
    found = fitted_head(head, hidden, logits, CONFIG)
    assert (found.scale, found.softcap) == (scale, cap)


@pytest.mark.parametrize("scale", [0.125, 8.0])
def test_logits_are_divided_by_their_scaling_or_multiplied_with_it(scale):
    """As Granite does, and HyperCLOVA X."""
    head, hidden = given(torch.float32)
    found = fitted_head(head, hidden, (hidden @ head.weight.T) * scale, PreTrainedConfig(logits_scaling=8.0))
    assert found.scale == scale


def test_logits_are_multiplied_with_what_another_name_says():
    head, hidden = given(torch.float32)
    found = fitted_head(head, hidden, (hidden @ head.weight.T) * 4, PreTrainedConfig(output_multiplier=4.0))
    assert found.scale == 4


def test_a_scale_or_a_cap_of_zero_is_none():
    head, hidden = given(torch.float32)
    config = PreTrainedConfig(logit_scale=0.0, final_logit_softcapping=0.0)
    assert fitted_head(head, hidden, hidden @ head.weight.T, config).is_plain


def test_in_fp32_a_hundredth_is_no_rounding():
    head, hidden = given(torch.float32)
    with pytest.raises(DoesNotFit, match="its logits are not those"):
        fitted_head(head, hidden, (hidden @ head.weight.T) * 1.01, CONFIG)


def test_logits_of_another_kind_do_not_fit():
    head, hidden = given(torch.bfloat16)
    logits = hidden @ head.weight.T
    for wrong in (logits * 0.5, logits.roll(1), logits * torch.nan):
        with pytest.raises(DoesNotFit, match="its logits are not those"):
            fitted_head(head, hidden, wrong, CONFIG)


def test_a_few_numbers_that_rounding_moved_far_are_no_other_logits():
    head, hidden = given(torch.bfloat16)
    logits = (hidden @ head.weight.T).float()
    logits[:5] += 0.5
    assert fitted_head(head, hidden, logits, CONFIG).is_plain


def test_logits_are_those_of_weight_and_bias_then_scaled_then_capped():
    plain, hidden = given(torch.float32)
    bias = torch.linspace(-3, 3, VOCABULARY)
    head = replace(plain, bias=bias, scale=0.25, softcap=2.0)
    expected = 2 * torch.tanh(0.25 * (hidden @ plain.weight.T + bias) / 2)
    torch.testing.assert_close(head.logits(hidden[None])[0], expected)
    found = head.token_logps(hidden.expand(2, -1), torch.tensor([7, 4000]))
    torch.testing.assert_close(found, expected.log_softmax(0)[[7, 4000]])


@pytest.mark.parametrize("target", [-1, VOCABULARY])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_an_id_that_the_model_does_not_have_is_refused_whatever_it_does_with_its_logits(scale, target):
    """By ValueError, before anything runs: on a GPU an index that is too large ends the process."""
    head, hidden = given(torch.float32)
    with pytest.raises(ValueError, match=str(target)):
        replace(head, scale=scale).token_logps(hidden[None], torch.tensor([target]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tokens_that_a_model_never_says_are_found_and_never_said(dtype):
    """As Chameleon's of pictures. Their logits add up to a number, by which a sampler knows that none is broken."""
    head, hidden = given(dtype)
    logits = hidden @ head.weight.T
    never = torch.arange(3, VOCABULARY, 7)
    logits[never] = torch.finfo(dtype).min
    found = fitted_head(head, hidden, logits, CONFIG)
    assert found.never is not None
    assert torch.equal(found.never, never)
    assert found.logits(hidden[None]).sum().isfinite()
    expected = (hidden.float() @ head.weight.float().T).index_fill(0, never, -torch.inf).log_softmax(0)
    said = torch.tensor([0, 1, 4])
    torch.testing.assert_close(found.token_logps(hidden.expand(3, -1), said), expected[said])
    assert found.token_logps(hidden[None], never[:1]) < -1e9


def test_a_difference_is_a_share_of_the_norm():
    assert difference(torch.tensor([3.0, 4.1]), torch.tensor([3.0, 4.0])) == pytest.approx(0.02, rel=1e-5)
    assert difference(torch.zeros(7), torch.full((7,), 2.0)) == 1
    # Whose norm half precision does not hold: 300 x the root of 70,000.
    large = torch.full((70_000,), 300.0, dtype=torch.float16)
    assert difference(torch.zeros_like(large), large) == 1


def test_layers_that_were_handed_the_keys_and_values_of_an_earlier_one_use_those():
    merged, values = torch.randn(4, 3, 8), torch.randn(2, 3, 5)
    first = Noted(merged[:2], values)
    # The second has its keys elsewhere in the same product, the last its own values.
    noted = [first, Noted(merged[2:], values), first, first, Noted(merged[:2], torch.randn(2, 3, 5))]
    same = [None, None, 0, 0, None]
    assert layer_kinds(dict(enumerate(noted))) == [LayerKind(2, 8, 5, same_as=number) for number in same]


class Part(nn.Module):
    """Of a model: what it says of its own parts."""

    def __init__(self, config: object = None, **parts: object) -> None:
        super().__init__()
        self.config = config
        for name, part in parts.items():
            setattr(self, name, part)

    def get_decoder(self) -> object:
        return getattr(self, "decoder", self)

    def get_output_embeddings(self) -> object:
        return getattr(self, "head", None)

    def get_encoder(self, modality: str) -> object:
        return getattr(self, modality, self)


def test_the_decoder_is_what_stands_without_a_head():
    inner = Part()
    assert find_decoder(Part(decoder=inner)) is inner
    # As Llama 4 gives it.
    assert find_decoder(Part(decoder=Part(lm_head=nn.Linear(4, 6), model=inner))) is inner
    itself = Part()
    for model in (itself, Part(decoder=None), Part(decoder=Part(lm_head=nn.Linear(4, 6)))):
        with pytest.raises(DoesNotFit, match="it does not say which part of it is the text decoder"):
            find_decoder(model)


def test_the_tower_is_the_one_for_images_or_the_outermost_of_its_configuration():
    config, films, images = object(), Part(), Part()
    films.config = images.config = config
    films.within = Part(config)
    model = Part(SimpleNamespace(vision_config=config), films=films, pictures=images)
    assert find_vision(model) is films
    object.__setattr__(model, "image", images)
    assert find_vision(model) is images
    object.__setattr__(model, "image", Part())
    assert find_vision(model) is films
    assert find_vision(Part(SimpleNamespace(), head=nn.Linear(4, 6))) is None


def test_a_head_has_weight_and_bias_wherever_it_stands():
    head, plain = nn.Linear(4, 6), nn.Linear(4, 6, bias=False)
    assert output_weights(Part(head=head)) == (head.weight, head.bias)
    assert output_weights(Part(decoder=Part(lm_head=plain))) == (plain.weight, None)
    for model in (Part(), Part(head=nn.Bilinear(4, 4, 6))):
        with pytest.raises(DoesNotFit, match="its output layer is not a linear one"):
            output_weights(model)
