"""What the caches of decode steps keep of prompts and answers: recurrent states, positions, pages of a pool."""

import pytest
import torch
from step_caches import USUAL, in_buffers, in_pool, model_of, noted, prefix_of
from torch import Tensor
from transformers.cache_utils import (
    DynamicIndexedLayer,
    DynamicLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionLayer,
)
from transformers.models.minimax_m3_vl.modeling_minimax_m3_vl import MiniMaxM3VLSparseCacheLayer

from data_engine.models.layers.answer_cache import (
    RowStates,
    answer_cache,
    is_recurrent,
    nbytes,
    repeated,
    require_shareable,
)
from data_engine.models.layers.attention import DoesNotFit
from data_engine.sampling.native.page_allocator import PAGE
from data_engine.sampling.native.page_pool import FIRST_ROOM, PagePool


def state_layer(rows: int, value: float) -> LinearAttentionLayer:
    """As a prompt leaves it: a convolution's last 3 tokens of 2 channels, and a state of 4 x 5."""
    layer = LinearAttentionLayer()
    layer.update_conv_state(torch.full((rows, 2, 3), value))
    layer.update_recurrent_state(torch.full((rows, 4, 5), 10 * value))
    return layer


def test_recurrent_states_begin_as_their_prompts_left_them_and_move_with_their_rows():
    like = [DynamicLayer(), state_layer(1, 0.0)]
    model = model_of(USUAL, cache_layers=like)
    caches = in_buffers(model, 4, 3, 8)
    for slot, value in ((0, 1.0), (2, 3.0)):
        layers = [DynamicLayer(), state_layer(1, value)]
        caches.store(slot, prefix_of(5, {0: noted(2, 5, 16)}, layers))
    caches.start(torch.tensor([3, 0, 2]), [2, 0, 2])
    conv, state = (kept[0] for kept in (caches.states.layers[1].conv_states, caches.states.layers[1].recurrent_states))
    assert caches.states.layers[0] is None
    assert conv[:, 0, 0].tolist() == [1, 0, 3, 3]
    assert state[:, 3, 4].tolist() == [10, 0, 30, 30]
    # A step of the first three rows updates their states where they lie, and no other.
    cache = caches.answer_cache(3, like)
    own = cache.layers[1]
    seen = own.update_conv_state(torch.full((3, 2, 1), 7.0))
    assert seen[:, 0].tolist() == [[1, 1, 1, 7], [0, 0, 0, 7], [3, 3, 3, 7]]
    own.update_recurrent_state(torch.tensor([11.0, 12.0, 13.0])[:, None, None].expand(3, 4, 5))
    assert conv[:, 0].tolist() == [[1, 1, 7], [0, 0, 7], [3, 3, 7], [3, 3, 3]]
    assert state[:, 0, 0].tolist() == [11, 12, 13, 30]
    caches.move(2, 0, 1)
    assert conv[:, 0].tolist() == [[3, 3, 7], [0, 0, 7], [3, 3, 7], [3, 3, 3]]
    assert state[:, 0, 0].tolist() == [13, 12, 13, 30]
    # A prompt's own states stay as they were, for the answers that begin later.
    caches.start(torch.tensor([1]), [2])
    assert (conv[1, 0, 0], state[1, 0, 0]) == (3, 30)


def test_the_states_of_a_row_take_the_memory_of_all_layers_that_have_one():
    # Of fp32: a convolution's 2 x 3 numbers and a state of 4 x 5, in each of two layers.
    layers = [state_layer(1, 1.0), DynamicLayer(), state_layer(1, 2.0)]
    assert nbytes(layers) == 2 * (2 * 3 + 4 * 5) * 4


def test_copies_of_a_states_are_rows_of_their_own():
    """What scoring hands to the answers of a question: a state each, the prompt's left alone."""
    prompt = [DynamicLayer(), state_layer(1, 2.0)]
    assert [is_recurrent(layer) for layer in prompt] == [False, True]
    cache = answer_cache(prompt, repeated(prompt, 3), {})
    cache.layers[1].update_recurrent_state(torch.zeros(3, 4, 5))
    assert prompt[1].recurrent_states[0].tolist() == torch.full((1, 4, 5), 20.0).tolist()
    # Nothing is kept of keys and values, and nothing counted.
    assert (cache.layers[0].get_seq_length(), cache.layers[0].get_mask_sizes(2)) == (0, (2, 0))
    assert RowStates(prompt, 2).layers[1].conv_states[0].shape == (2, 2, 3)


def with_keys(layer: DynamicLayer) -> DynamicLayer:
    """As a prompt of 5 tokens leaves it: keys and values of 2 heads, 4 wide."""
    layer.update(torch.ones(1, 2, 5, 4), torch.ones(1, 2, 5, 4))
    return layer


def test_layers_that_keep_more_than_answers_can_share_are_told():
    require_shareable([DynamicLayer(), state_layer(1, 2.0)])
    for layer in (DynamicIndexedLayer(), MiniMaxM3VLSparseCacheLayer()):
        assert not is_recurrent(with_keys(layer))
        with pytest.raises(DoesNotFit, match="choose keys by an index"):
            require_shareable([DynamicLayer(), layer])
    with pytest.raises(DoesNotFit, match="both keys and a recurrent state"):
        require_shareable([LinearAttentionAndFullAttentionLayer()])


def test_answers_go_on_where_their_prompts_say():
    """Positions need not be counted in tokens: two prompts of 9 tokens end at the positions 4 and 12."""
    caches = in_buffers(model_of(USUAL), 3, 2, 8)
    for slot, more in ((0, -4), (1, 4)):
        caches.store(slot, prefix_of(9, {0: noted(2, 9, 16)}, more=more))
    assert caches.next_positions_Q.tolist() == [5, 13]
    assert caches.prefix_lengths_Q.tolist() == [9, 9]


def rows_of_pages(pool: PagePool, layer: int, lines: list[int], length: int) -> Tensor:
    """Keys [G, S, D] in order."""
    return torch.cat([pool.keys[layer][page] for page in lines], 1)[:, :length]


@pytest.mark.parametrize("length", [1, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE])
def test_a_prompt_lies_in_its_pages_in_order_and_in_no_other(length):
    caches = in_pool(model_of(USUAL), 2, 2, 8, 6)
    state, lines = noted(2, length, 16), [5, 2, 4][: -(-length // PAGE)]
    assert not caches.store(1, prefix_of(length, {0: state}), lines)
    assert caches.kept.prefix_pages_QB[1, : len(lines)].tolist() == lines
    assert torch.equal(rows_of_pages(caches.kept, 0, lines, length), state.keys)
    others = [page for page in range(7) if page not in lines]
    assert not caches.kept.keys[0][others].any()
    assert not caches.kept.values[0][others].any()
    assert caches.kept.values[0].count_nonzero() == state.values.count_nonzero()


def test_a_prompt_for_which_the_table_is_too_narrow_moves_the_table_and_not_the_pool():
    model = model_of(USUAL)
    model.max_positions = 10 * FIRST_ROOM
    caches = in_pool(model, 2, 2, 8, 100)
    pool = caches.kept
    room, before = FIRST_ROOM // PAGE, pool.keys[0].data_ptr()
    short = noted(2, 5, 16)
    assert not caches.store(0, prefix_of(5, {0: short}), [99])
    assert caches.store(1, prefix_of(FIRST_ROOM + 1, {0: noted(2, FIRST_ROOM + 1, 16)}), list(range(1, room + 2)))
    assert pool.keys[0].data_ptr() == before
    assert pool.prefix_pages_QB.shape == (2, 2 * room)
    assert pool.prefix_pages_QB[:, 0].tolist() == [99, 1]
    assert torch.equal(rows_of_pages(pool, 0, [99], 5), short.keys)
    # No longer than any prompt can be.
    model.max_positions = 100
    assert in_pool(model, 2, 2, 8, 100).kept.prefix_pages_QB.shape == (2, 1)
