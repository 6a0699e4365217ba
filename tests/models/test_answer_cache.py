"""What a decoder that is handed the cache of a pass of answers finds in it."""

import torch

from data_engine.models.layers.answer_cache import PassingLayer, answer_cache, passing

# Keys and values of five image states.
STATES = (torch.ones(1, 2, 5, 8), torch.zeros(1, 2, 5, 8))


def test_keys_of_image_states_are_found_in_their_layer_and_by_the_length_of_the_cache():
    """Mllama of transformers 5.17 asks for the latter in each layer, that of 5.23 for the former."""
    found = answer_cache([PassingLayer()] * 3, (), {1: STATES})
    assert [found.get_seq_length(number) for number in range(3)] == [0, 5, 0]
    assert found.get_seq_length() == 5
    assert found.layers[1].is_initialized
    assert found.layers[1].keys is STATES[0]
    assert found.layers[1].values is STATES[1]


def test_a_cache_without_image_states_is_empty():
    """No token of a pass is taken for a late one."""
    for found in (answer_cache([PassingLayer()] * 2, (), {}), passing(2)):
        assert found.get_seq_length() == 0
        assert found.get_mask_sizes(7, 0) == (7, 0)
