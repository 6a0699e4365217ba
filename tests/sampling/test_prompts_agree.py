"""Which prompts may run in one pass: those of which every layer's bits were measured not to depend on the others."""

import pytest
import torch
from changed_layers import by_number, by_place, changed, larger
from prompts import EmbeddedPrompt
from torch import Tensor

from data_engine.models.base import VisionLanguageModel
from data_engine.models.layers.prefix import run_prefix, run_prefixes
from data_engine.sampling.memory import rows_of_prompts
from data_engine.sampling.native.packing import Packing

NO_LIMIT = 10**6
PARTS = (
    "layers.0.input_layernorm", "layers.0.self_attn.q_proj", "layers.0.self_attn.v_proj", "layers.0.self_attn.o_proj",
    "layers.0.post_attention_layernorm", "layers.0.mlp.gate_proj", "layers.0.mlp.down_proj",
    "layers.1.input_layernorm", "layers.1.self_attn.k_proj",
)  # fmt: skip


def made_up(*lengths: int) -> list[EmbeddedPrompt]:
    generator = torch.Generator().manual_seed(0)
    return [EmbeddedPrompt(torch.randn(length, 64, generator=generator)) for length in lengths]


def found_to_differ(model: VisionLanguageModel) -> Packing:
    """The measurements of a model once prompts of 65 and 71 tokens ran in one pass, and their bits were others."""
    packing = Packing(model)
    assert packing.may_go([65, 71], NO_LIMIT)
    assert len(packing.run(made_up(65, 71), NO_LIMIT)) == 1
    return packing


@pytest.mark.parametrize("change", [by_number, by_place])
@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_a_layer_whose_bits_depend_on_the_other_rows_is_seen(instruct, part, change):
    assert Packing(instruct).agree([65, 71])
    with changed(instruct, change, part):
        assert not Packing(instruct).agree([65, 71])


def test_the_last_rows_count_though_they_are_no_whole_block(instruct):
    def last(made: Tensor) -> Tensor:
        made[:, 122:] = larger(made[:, 122:])
        return made

    with changed(instruct, last):
        assert Packing(instruct).fingerprint(128) is None
    assert Packing(instruct).fingerprint(128) is not None


def test_a_window_that_hides_something_in_the_pass_keeps_prompts_apart(omni_instruct):
    """The decoder's window is 4,096 tokens: from there on transformers makes a mask."""
    assert omni_instruct.decoder.config.sliding_window == 4096
    packing = Packing(omni_instruct)
    assert packing.agree([2000, 1900])
    assert not packing.agree([2000, 2000])


def test_a_number_of_rows_is_measured_once(instruct, monkeypatch):
    run, measured = instruct.run_answers, []
    monkeypatch.setattr(instruct, "run_answers", lambda ids, *rest: measured.append(ids.shape[1]) or run(ids, *rest))
    packing = Packing(instruct)
    for _ in range(2):
        assert packing.agree([65, 71, 65])
        assert packing.agree([71, 80])
    assert sorted(measured) == [128, 256]


def test_a_pass_that_was_found_to_change_bits_is_not_planned_again(instruct):
    with changed(instruct, by_place):
        packing = found_to_differ(instruct)
        assert not packing.may_go([65, 71], NO_LIMIT)
        assert packing.may_go([61, 61], NO_LIMIT)


def test_no_pass_is_planned_for_a_prompt_that_was_found_to_agree_with_none(instruct):
    """Passes have bits of their own here, so the prompts of later questions would be run early for nothing."""
    with changed(instruct, by_number):
        packing = found_to_differ(instruct)
        assert packing.fingerprint(256) is not None
        assert not packing.may_go([65, 71], NO_LIMIT)
        # Of these, one was not measured, and the other is known to differ.
        assert not packing.may_go([150, 65], NO_LIMIT)


@pytest.mark.parametrize(
    ("lengths", "room", "together"),
    [
        ([65] * 5, NO_LIMIT, 4),
        ([65, 70], NO_LIMIT, 2),
        ([65], NO_LIMIT, 1),
        # 3,000 tokens are 3,072 rows, and 4,100 too many.
        ([1500, 1500, 1100], NO_LIMIT, 2),
        ([4000, 97], NO_LIMIT, 1),
        ([4097, 97], NO_LIMIT, 0),
        # 195 tokens are 256 rows.
        ([65, 65, 65], 256, 3),
        # A prompt has a pass of its own whatever the room.
        ([65, 65, 65], 255, 1),
        ([65, 65, 65], 0, 1),
        # Shorter than the block that is repeated.
        ([60, 30, 65], NO_LIMIT, 3),
    ],
)
def test_how_many_prompts_go_in_one_pass(instruct, lengths, room, together):
    found = Packing(instruct).run(made_up(*lengths), room)
    assert [one.length for one in found] == lengths[:together]


def test_a_prompt_whose_own_number_of_rows_is_another_algorithm_runs_alone(instruct):
    def odd(made: Tensor) -> Tensor:
        return larger(made) if made.shape[1] == 256 else made

    with changed(instruct, odd):
        # Alone, the fourth has 256 rows; so have two of the others together, and three have 384.
        packing, prompts = Packing(instruct), made_up(100, 110, 90, 130, 100, 110, 90)
        assert [len(packing.run(prompts[first:], NO_LIMIT)) for first in range(7)] == [3, 1, 1, 1, 3, 1, 1]


def test_a_prompt_has_the_same_bits_alone_whatever_its_pass_is_filled_up_with(instruct):
    """Where a row's bits follow from the number of rows, those of a prompt alone are those of its own pass."""
    with changed(instruct, by_number):
        [prompt] = made_up(130)
        [found] = Packing(instruct).run([prompt], 0)
        [expected] = run_prefixes(instruct, [prompt], 256)
        assert torch.equal(found.end.hidden_D, expected.end.hidden_D)
        # One of 130 rows has others.
        assert not torch.equal(found.end.hidden_D, run_prefix(instruct, prompt).end.hidden_D)


def test_room_for_prompts_by_hand():
    """Caches of 8,000 bytes are 0.8 of the memory on a GPU: half of the other 2,000, at 5 bytes a row."""
    assert rows_of_prompts(8000, 2, 3, "cuda") == pytest.approx(200, abs=1)
    assert rows_of_prompts(8000, 2, 3, "cpu") == pytest.approx(800, abs=1)


def test_split_models_and_rotary_tables_that_follow_the_longest_prompt_run_prompts_one_at_a_time(
    instruct, omni_instruct, monkeypatch
):
    for model in (instruct, omni_instruct):
        assert model.packs_prompts
        with monkeypatch.context() as patch:
            patch.setattr(model, "is_split", True)
            assert not model.packs_prompts
        with monkeypatch.context() as patch:
            patch.setattr(model.decoder.rotary_emb, "rope_type", "dynamic")
            assert not model.packs_prompts
