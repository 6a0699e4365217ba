"""What a decoder is handed for prompts one behind the other, and what it may be handed for one."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from data_engine.models.auto.forward import packed_prompts
from data_engine.models.auto.forward.processed import ProcessedPrompt
from data_engine.models.layers.answer_cache import CACHE
from data_engine.models.layers.attention import DoesNotFit

LENGTHS, WIDTH = (2, 3), 4
EMBEDS = [torch.randn(1, length, WIDTH) for length in LENGTHS]
CONFIG = LlamaConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=2)


class Decoder(nn.Module):
    def forward(self, *args, **options):
        raise AssertionError("it ran")


def packed(*handed: object) -> tuple[dict[str, object], list]:
    """What the decoder is handed for two prompts in a row of 7, and the prompts' ends; `handed`: for each alone."""
    joined, decoder, calls = [], Decoder(), iter(handed)

    def run_forward(prompt, cache) -> None:
        given = next(calls)
        if given is not None:
            decoder(*given) if isinstance(given, tuple) else decoder(**given)

    def run_decoder(given) -> Tensor:
        joined.append(given)
        return given["inputs_embeds"][0]

    own = SimpleNamespace(mirrored_or_plain=lambda run: run(), next_position=lambda prompt: 10 * prompt.length)
    model = SimpleNamespace(decoder=decoder, device=torch.device("cpu"), text_config=CONFIG, own_forward=own,
                            cache_layers=[], run_forward=run_forward, run_decoder=run_decoder)  # fmt: skip
    prompts = [ProcessedPrompt({"input_ids": torch.zeros(1, length)}) for length in LENGTHS]
    ends = packed_prompts.run_prompts(model, prompts, 7)
    return joined[0], ends


def each(first: dict | None = None, second: dict | None = None) -> list[dict]:
    return [{"inputs_embeds": embeds} | (more or {}) for embeds, more in zip(EMBEDS, (first, second), strict=True)]


def test_prompts_stand_one_behind_the_other_and_zeros_behind_them():
    given, ends = packed(*each())
    assert given.keys() == {"inputs_embeds", "position_ids"}
    assert torch.equal(given["inputs_embeds"], torch.cat([*EMBEDS, torch.zeros(1, 2, WIDTH)], 1))
    assert given["position_ids"].tolist() == [[0, 1, 0, 1, 2, 0, 0]]
    assert [end.hidden_D.tolist() for end in ends] == [embeds[0, -1].tolist() for embeds in EMBEDS]
    assert [end.next_position for end in ends] == [20, 30]


def test_positions_of_one_axis_are_the_same_on_each_of_several():
    """Of a prompt without a picture beside one with."""
    several = torch.tensor([[[0, 0, 1]], [[0, 1, 0]], [[0, 1, 1]]])
    given, _ = packed(*each({"position_ids": torch.tensor([[5, 6]])}, {"position_ids": several}))
    assert given["position_ids"].tolist() == [[[5, 6, *axis, 0, 0]] for axis in ([0, 0, 1], [0, 1, 0], [0, 1, 1])]


@pytest.mark.parametrize("names", packed_prompts.DEEP)
@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("wide", [False, True])
def test_features_of_images_follow_one_another_and_a_prompt_without_has_no_places(names, by_name, wide):
    """Of the second prompt alone, or of both; by layer in a list, or by its number."""

    def deep(mask: list[bool], *rows: float) -> dict:
        layers = [torch.tensor([[row + layer] * WIDTH for row in rows]) for layer in (0.0, 0.5)]
        mask = torch.tensor([mask])[..., None] if wide else torch.tensor([mask])
        return dict(zip(names, (mask, dict(enumerate(layers, 3)) if by_name else layers), strict=True))

    def features(given: dict) -> list:
        found = given[names[1]]
        assert isinstance(found, dict) == by_name
        return [found[layer][:, 0].tolist() for layer in ((3, 4) if by_name else (0, 1))]

    second = deep([True, False, True], 1, 2)
    given, _ = packed(*each(None, second))
    mask = given[names[0]]
    assert mask.shape == ((1, 7, 1) if wide else (1, 7))
    assert mask.flatten().tolist() == [False, False, True, False, True, False, False]
    assert features(given) == [[1, 2], [1.5, 2.5]]
    given, _ = packed(*each(deep([False, True], 7), second))
    assert given[names[0]].flatten().tolist() == [False, True, True, False, True, False, False]
    assert features(given) == [[7, 1, 2], [7.5, 1.5, 2.5]]


@pytest.mark.parametrize(
    "more",
    [
        {"attention_mask": torch.ones(1, 2), CACHE: object(), "use_cache": True},
        {"cache_position": torch.arange(2), "return_dict": True, "logits_to_keep": 1},
        {"per_layer_inputs": None, "output_attentions": False},
        # Without features that are added there.
        {"visual_pos_masks": torch.ones(1, 2, dtype=torch.bool)},
    ],
)
def test_what_says_nothing_of_single_tokens_is_left_out(more):
    given, _ = packed(*each(more))
    assert given.keys() == {"inputs_embeds", "position_ids"}


@pytest.mark.parametrize(
    ("handed", "told"),
    [
        (None, "its text decoder is not called as a module"),
        ((EMBEDS[0],), "its text decoder is called by place"),
        (each({"per_layer_inputs": EMBEDS[0], "audio": EMBEDS[0]})[0], "is called with audio, per_layer_inputs$"),
        (each({"attention_mask": torch.ones(1, 1, 2, 2)})[0], "it makes masks of its own"),
        (each({"attention_mask": {"full_attention": torch.ones(1, 2)}})[0], "it makes masks of its own"),
    ],
)
def test_a_decoder_that_is_handed_anything_else_does_not_fit(handed, told):
    with pytest.raises(DoesNotFit, match=told):
        packed(handed)
