"""The attention of a prompt: that of the model, what is noted of it, and what answers behind it cannot follow."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gemma2 import modeling_gemma2 as gemma2
from transformers.models.gpt_oss import modeling_gpt_oss as gpt_oss

from data_engine.models.layers.attention import NAME, DoesNotFit, LayerCall, attending
from data_engine.models.layers.layer_kind import LayerKind
from data_engine.models.layers.noting import Finding, Noting, forget
from data_engine.models.layers.prefix import run_prefix, run_prefixes

SINKS = torch.tensor([0.5, -1.0, 2.0, 0.0, 3.0, -4.0])


def attend_once(module: torch.nn.Module, tokens: int, keys: int, mask: torch.Tensor | None = None) -> None:
    query, key = (torch.ones(1, 1, rows, 8) for rows in (tokens, keys))
    ALL_ATTENTION_FUNCTIONS[NAME](module, query, key, key, mask)


@pytest.mark.parametrize("new", [5, 2], ids=["a prompt", "behind others"])
@pytest.mark.parametrize("kind", ["softcap", "sinks"])
def test_what_sdpa_does_not_know_is_computed_as_transformers_does(kind, new):
    """By the formula of Gemma 2, and of GPT-OSS: of 6 heads, three look at the same keys."""
    drawn = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, rows, 8, generator=drawn) for heads, rows in ((6, new), (2, 5), (2, 5)))
    module = SimpleNamespace(num_key_value_groups=3, training=False, sinks=SINKS)
    mask = torch.full((new, 5), -torch.inf).triu(1 + 5 - new)[None, None]
    if kind == "softcap":
        theirs, ours = partial(gemma2.eager_attention_forward, softcap=2.0), {"softcap": 2.0}
    else:
        theirs, ours = gpt_oss.eager_attention_forward, {"s_aux": SINKS}
    wanted, _ = theirs(module, query, key, value, mask, scaling=0.5)
    found, _ = ALL_ATTENTION_FUNCTIONS[NAME](module, query, key, value, None, scaling=0.5, **ours)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_a_module_that_did_not_attend_for_a_prompt_does_not_fit_for_answers():
    """The layout does not know its keys, and attention to the new tokens alone would be wrong without a word."""
    attend, part = ALL_ATTENTION_FUNCTIONS[NAME], torch.ones(1, 1, 2, 8)
    for describes_masks in (True, False):
        with attending(SimpleNamespace(describes_masks=describes_masks), {}):
            if describes_masks:
                with pytest.raises(DoesNotFit, match="Linear attends for answers, and did not for a prompt"):
                    attend(torch.nn.Linear(1, 1), part, part, part, None)
            else:
                assert torch.equal(attend(torch.nn.Linear(1, 1), part, part, part, None)[0], part.transpose(1, 2))


def test_an_option_that_is_set_and_not_known_does_not_fit_since_it_may_change_numbers():
    part = torch.zeros(1, 1, 1, 8)

    def call(**options: object) -> LayerCall:
        return LayerCall(None, 0, part, part, part, None, 1.0, options)

    call(softcap=5.0, s_aux=torch.zeros(1), dropout=0.1, position_ids=part, strange=None).require_known()
    with pytest.raises(DoesNotFit, match="its attention is called with other, strange"):
        call(strange=1, other=False, softcap=5.0).require_known()


def test_a_layer_that_runs_twice_in_a_prompt_does_not_fit_and_what_failed_is_forgotten():
    """Its second keys would take the place of the first ones."""
    part, modules = torch.ones(1, 1, 3, 8), [torch.nn.Identity(), torch.nn.Identity()]
    finding = Finding(3, set(modules))
    with attending(finding, finding.layers):
        attend = partial(ALL_ATTENTION_FUNCTIONS[NAME], query=part, key=part, value=part, attention_mask=None)
        attend(modules[1])
        with pytest.raises(DoesNotFit, match="a layer runs twice in a pass"):
            attend(modules[1])
        # As where a prompt is run again: layers are numbered from the first one.
        forget()
        for module in modules:
            attend(module)
    assert [finding.layers[module] for module in modules] == list(finding.noted) == [0, 1]


def test_of_image_states_those_that_the_last_token_of_a_prompt_does_not_see_are_hidden_from_answers():
    hidden = torch.zeros(1, 1, 3, 5)
    hidden[..., :2, 1] = hidden[..., 2, 4] = -torch.inf
    module, noting = torch.nn.Identity(), Noting(3)
    with attending(noting, {module: 0}):
        attend_once(module, 3, 5, hidden)
    [noted] = noting.noted.values()
    assert noted.cross
    assert noted.bias.tolist() == [[0, 0, 0, 0, -torch.inf]]
    assert noted.bias.untyped_storage().nbytes() == noted.bias.nbytes, "it does not keep the mask of the prompt alive"


def test_a_layer_that_keeps_other_keys_than_those_of_the_prompt_does_not_fit():
    module = torch.nn.Identity()
    model = SimpleNamespace(
        attention_layers={module: 0}, layers=[LayerKind(1, 8, 8)], run_prompt=lambda _: attend_once(module, 3, 5)
    )
    with pytest.raises(DoesNotFit, match="layer 0 keeps 5 keys of 3 tokens"):
        run_prefix(model, SimpleNamespace(length=3))


def test_prompts_of_a_model_that_masks_them_do_not_run_in_one_pass():
    """Cut from the mask of the whole row, each prompt's part would not be the mask that it has alone."""
    module = torch.nn.Identity()
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()
    model = SimpleNamespace(
        attention_layers={module: 0}, layers=[LayerKind(1, 8, 8)],
        run_prompts=lambda *_: attend_once(module, 6, 6, mask),
    )  # fmt: skip
    with pytest.raises(DoesNotFit, match="prompts that run in one pass attend without a mask"):
        run_prefixes(model, [SimpleNamespace(length=3), SimpleNamespace(length=2)], 6)
