"""What rounding makes of log-probs, in a deep model whose numbers are as far apart as those of trained ones."""

import math
from unittest.mock import patch

import pytest
import torch
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from data_engine import load_model
from data_engine.bench import shapes
from data_engine.models.auto.model import Auto
from data_engine.questions.conversation import Conversation
from data_engine.scoring.logprobs import Scored, score_pass
from data_engine.scoring.self_check import rounding_layers, self_check, why_not_shared

LAYERS, WIDTH = 32, 64
# The mean difference that is taken for rounding in every model.
USUAL = 0.1


@pytest.fixture(scope="module")
def deep(tmp_path_factory, one_thread):
    """A checkpoint of random weights whose logits have a standard deviation of 8."""
    folder = tmp_path_factory.mktemp("deep")
    shapes.write_checkpoint(folder, 400, shapes.QWEN)
    config = Qwen2_5_VLConfig.from_pretrained(folder)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": 2, "num_key_value_heads": 2}
    config.text_config.update(sizes | {"num_hidden_layers": LAYERS, "layer_types": ["full_attention"] * LAYERS})
    config.text_config.rope_parameters["mrope_section"] = [4, 6, 6]
    config.vision_config.out_hidden_size = WIDTH
    model = Qwen2_5_VLForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                size = 1 if "embed" in name else (8 if "lm_head" in name else 1) / math.sqrt(weight.shape[1])
                weight.normal_(0, size, generator=generator)
    model.save_pretrained(folder)
    return folder


def loaded(folder, dtype: str):
    model = load_model(None, str(folder), device="cpu", dtype=dtype)
    return model, model.prompt_without_images(Conversation.of("What is in the picture?", 0))


def answers(model, number: int = 2) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(300, (number, 20), generator=generator).tolist()


def test_a_model_that_rounds_more_than_others_is_neither_refused_nor_slow(deep, caplog):
    """In bfloat16 its paths are further apart than those of most models, and in float32 they are the same."""
    model, prompt = loaded(deep, "float32")
    assert why_not_shared(model, prompt, 40) is None
    ids = answers(model)
    exact = score_pass(model, [Scored(prompt, ids)])[0]
    assert self_check(model, prompt, ids, exact) < 1e-4
    assert "rounding" not in caplog.text
    model, prompt = loaded(deep, "bfloat16")
    assert why_not_shared(model, prompt, 40) is None
    found = score_pass(model, [Scored(prompt, ids)])[0]
    off = self_check(model, prompt, ids, found)
    assert off > USUAL
    assert "rounding in torch.bfloat16 changes this model's log-probs by" in caplog.text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wrong_place_is_no_rounding(deep, dtype):
    """Answers that begin one position late are found out in the same model, in either precision."""
    model, prompt = loaded(deep, dtype)
    ids = answers(model)
    run_prompt = Auto.run_prompt

    def late(model, prompt):
        end = run_prompt(model, prompt)
        return end._replace(next_position=end.next_position + 1)

    with patch.object(Auto, "run_prompt", late):
        assert "off those of the whole row" in why_not_shared(model, prompt, 40)
        found = score_pass(model, [Scored(prompt, ids)])[0]
    with pytest.raises(RuntimeError, match="differ from the plain path by"):
        self_check(model, prompt, ids, found)


class Layer(nn.Module):
    """Gives back what it is given, beside something else, and has a list of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Identity()])

    def forward(self, hidden):
        return self.experts[0](hidden), None


def test_each_layer_is_rounded_once():
    """Two layers in a row, and not their experts: each number is off by at most two units in the last place."""
    decoder = nn.Module()
    decoder.layers = nn.ModuleList([Layer(), nn.Identity()])
    given = torch.linspace(1, 1.99, 1000).to(torch.bfloat16)

    def run():
        return decoder.layers[1](decoder.layers[0](given)[0])

    with rounding_layers(decoder):
        one, again = decoder.layers[1](decoder.layers[0](given)[0]), run()
    with rounding_layers(decoder):
        assert run().equal(one)
    assert not one.equal(again)
    units = (one.view(torch.int16) - given.view(torch.int16)).abs()
    assert set(units.unique().tolist()) == {0, 1, 2}
    assert run().equal(given)
