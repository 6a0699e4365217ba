"""Image states in pages of their own: which page is whose, and what prompts leave for those after them."""

from dataclasses import replace

import pytest
import torch
from step_caches import USUAL, in_pool, model_of, noted, prefix_of

from data_engine.models.auto.parts import layer_kinds
from data_engine.models.layers.attention import DoesNotFit
from data_engine.sampling.native.image_states import ImageStates
from data_engine.sampling.native.page_allocator import PAGE
from data_engine.sampling.native.paged_attention import FusedRows
from data_engine_kernels import grouped_decode_attention

CROSS = replace(USUAL, cross=True)


def states(length: int, **rest):
    return noted(2, length, 16, cross=True, **rest)


def stored(pool: ImageStates, slot: int, layer: int) -> torch.Tensor:
    """Keys [G, S, D] that rows of a slot see."""
    pages = pool.pages_QB[slot, : -(-int(pool.lengths_Q[slot]) // PAGE)]
    return torch.cat([pool.layers[layer].keys[page] for page in pages], 1)[:, : pool.lengths_Q[slot]]


def test_each_prompt_has_pages_of_its_own_and_leaves_them_to_the_next():
    pool = ImageStates(model_of(USUAL, CROSS, CROSS), 3)
    of_slot = [{layer: states(length) for layer in (1, 2)} for length in (PAGE + 1, 5, 2 * PAGE)]
    assert pool.store(0, of_slot[0]), "the first ones make the pool"
    pool.store(1, of_slot[1])
    pool.store(2, of_slot[2])
    for slot, each in enumerate(of_slot):
        for layer in (1, 2):
            assert torch.equal(stored(pool, slot, layer), each[layer].keys)
    number = len(pool.layers[1].keys)
    # As many pages as slots could fill with the longest so far, beside the dummy.
    assert 1 + 2 + 1 + 2 <= number <= 1 + 3 * 2
    pool.forget(0)
    pool.forget(2)
    assert not pool.store(2, of_slot[0])
    # A prompt that takes a slot takes its pages too.
    assert not pool.store(2, of_slot[0])
    assert not pool.store(0, of_slot[2])
    assert len(pool.layers[1].keys) == number
    assert torch.equal(stored(pool, 1, 2), of_slot[1][2].keys)
    assert torch.equal(stored(pool, 2, 1), of_slot[0][1].keys)
    # One for which there is no room moves the pool, and a longer line the table; what is kept stays.
    longer = {layer: states(7 * PAGE) for layer in (1, 2)}
    assert pool.store(1, longer)
    assert pool.pages_QB.shape == (3, 7)
    assert torch.equal(stored(pool, 1, 1), longer[1].keys)
    assert torch.equal(stored(pool, 0, 1), of_slot[2][1].keys)
    # Page 0 is nobody's.
    assert not any(caches.keys[0].any() for caches in pool.layers.values())


def test_states_that_are_not_seen_lie_behind_those_that_are():
    pool, hidden = ImageStates(model_of(CROSS), 1), torch.tensor([[-torch.inf, 0.0, 0.0, -3e38, 0.0]])
    one = states(5, bias=hidden)
    pool.store(0, {0: one})
    assert pool.lengths_Q.tolist() == [3]
    assert torch.equal(stored(pool, 0, 0), one.keys[:, [1, 2, 4]])


def test_a_prompt_whose_states_are_not_finite_leaves_nothing_to_rows_of_another():
    """Zero times NaN is NaN: also of the rows of no question, and behind the end of a shorter prompt."""
    model = model_of(USUAL, CROSS)
    caches = in_pool(model, 3, 2, 8, 6)
    bad, good = states(PAGE), states(7)
    bad.keys.fill_(torch.nan)
    bad.values.fill_(torch.nan)
    assert caches.store(0, prefix_of(3, {0: noted(2, 3, 16), 1: bad}), [1]), "a captured step reads other addresses"
    caches.forget(0)
    for slot in (0, 1):
        caches.store(slot, prefix_of(3, {0: noted(2, 3, 16), 1: good}), [1 + slot])
    caches.slots_R[:] = torch.tensor([0, -1, 1])
    index = FusedRows(caches, 2)._image_index
    assert index.suffix_lengths.tolist() == [0, 0, 0]
    query = torch.randn(3, 4, 16)
    found = grouped_decode_attention(query, caches.kept.of_images.layers[1], index, 0.25)
    assert found.isfinite().all()
    assert not found[1].any()


def test_layers_with_states_of_their_own_each_do_not_fit():
    pool = ImageStates(model_of(CROSS, CROSS), 1)
    for different in ({0: states(5)}, {0: states(5), 1: states(6)}):
        with pytest.raises(DoesNotFit, match="image states"):
            pool.store(0, different)


@pytest.mark.parametrize(
    ("biases", "weighs"),
    [
        ([None, None], [False, False]),
        ([[0.0, -torch.inf, 0.0]] * 2, [False, False]),
        ([[0.0, -65504.0, 0.0]] * 2, [False, False]),
        # One counts half as much as the others.
        ([[0.0, -0.7, 0.0]] * 2, [True, True]),
        ([[0.0, -torch.inf, 0.0], [0.0, 0.0, -torch.inf]], [False, True]),
        ([[0.0, -torch.inf, 0.0], None], [False, True]),
    ],
)
def test_a_mask_that_does_more_than_hide_the_same_states_from_all_layers_is_known(biases, weighs):
    layers = {
        number: states(3, bias=bias if bias is None else torch.tensor([bias])) for number, bias in enumerate(biases)
    }
    assert [kind.weighs for kind in layer_kinds(layers)] == weighs
