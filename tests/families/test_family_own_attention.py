"""On the plain path a model attends as transformers has it: some do otherwise for an attention that they do not know.

MiniMax M3 is one (tests/families/families.py), which needs torchvision.
"""

import product
import pytest
from asked import ASKED
from comparisons import TOLERANCE, score_difference, wrong_greedy_rows
from test_family_positions import prompt

from data_engine.models.layers import attention


@pytest.fixture
def checkpoint(checkpoints):
    return checkpoints("qwen2_5_vl").reloaded()


def test_a_model_that_does_so_is_right_on_the_plain_path(checkpoint, monkeypatch):
    layer = type(checkpoint.stock.model.get_decoder().layers[0].self_attn)
    forward = layer.forward

    def otherwise(module, hidden_states, *args, **options):
        known = module.config._attn_implementation in ("eager", "sdpa")
        return forward(module, hidden_states if known else -hidden_states, *args, **options)

    monkeypatch.setattr(layer, "forward", otherwise)
    # Both paths by the name that it does not know would be wrong alike.
    assert score_difference(checkpoint, ASKED["wide"]) <= TOLERANCE
    assert not product.is_fast(checkpoint.model)
    assert wrong_greedy_rows(checkpoint, ASKED["wide"]) == 0


def test_only_the_plain_path_does_also_behind_a_call_that_fails(checkpoint, monkeypatch):
    model, names = checkpoint.model, []
    model.decoder.register_forward_pre_hook(lambda module, args: names.append(module.config._attn_implementation))
    given = prompt(model, ASKED["wide"])
    for run in (
        model.plain_end,
        lambda one: model.plain_logits(one, [65]),
        lambda one: model.plain_steps(one, 2).first(),
    ):
        run(given)
        model.run_prompt(given)
    assert names == ["sdpa", attention.NAME] * 3
    names.clear()
    monkeypatch.setattr(model.decoder.layers[0], "forward", lambda *given, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.plain_end(given)
    assert names == ["sdpa"]
    assert model.decoder.config._attn_implementation == attention.NAME
