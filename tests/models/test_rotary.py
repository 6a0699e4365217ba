"""Rotary tables that depend on the largest position of a pass, against transformers' own that were left alone."""

import pytest
import torch
from transformers import Phi3Config, Qwen2Config
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from data_engine.models.layers.rotary import keep_constant_tables, kept, tables_by_position

LONGEST, ORIGINAL = 64, 16


def dynamic() -> Qwen2RotaryEmbedding:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    config = Qwen2Config(
        hidden_size=32, num_attention_heads=4, max_position_embeddings=LONGEST, rope_parameters=rope
    )  # fmt: skip
    return Qwen2RotaryEmbedding(config)


def longrope() -> Phi3RotaryEmbedding:
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": ORIGINAL,
        "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 5.0],
    }  # fmt: skip
    config = Phi3Config(
        hidden_size=32, num_attention_heads=4, max_position_embeddings=LONGEST, rope_parameters=rope, pad_token_id=0,
        original_max_position_embeddings=ORIGINAL,
    )  # fmt: skip
    return Phi3RotaryEmbedding(config)


def turns(table: torch.nn.Module, start: int, length: int) -> torch.Tensor:
    return torch.cat(table(torch.zeros(1), torch.arange(start, start + length)[None]))


def test_a_table_that_grows_beyond_the_context_alone_stays_as_it_is_up_to_there():
    found, stock = dynamic(), dynamic()
    keep_constant_tables(found, LONGEST)
    for start, length in ((0, 5), (0, LONGEST), (LONGEST - 1, 1), (3, 1)):
        assert torch.equal(turns(found, start, length), turns(stock, start, length))
    assert not torch.equal(turns(found, 0, LONGEST + 9), turns(stock, 0, LONGEST + 9)), "there it would have grown"


def test_a_table_that_grows_within_the_context_is_left_alone():
    found, stock = dynamic(), dynamic()
    keep_constant_tables(found, LONGEST + 1)
    assert torch.equal(turns(found, 0, LONGEST + 9), turns(stock, 0, LONGEST + 9))


def test_a_table_of_a_kind_of_layer_is_known_too():
    found = dynamic()
    found.rope_type = {"sliding_attention": "default", "full_attention": "dynamic", "others": "yarn"}
    keep_constant_tables(found, LONGEST)
    assert found.rope_type == {"sliding_attention": "default", "full_attention": "default", "others": "yarn"}


def test_a_table_of_two_is_kept_for_a_pass_and_chosen_anew_behind_it():
    found, stock = longrope(), longrope()
    assert tables_by_position(found) == [found]
    assert tables_by_position(dynamic()) == []
    for start, length in ((0, ORIGINAL), (ORIGINAL - 3, 2)):
        with kept([found]):
            # Else older releases read the largest position, for which the host waits.
            assert found.rope_type == "default"
            assert torch.equal(turns(found, start, length), turns(stock, start, length))
    with kept([found]), pytest.raises(KeyError):
        raise KeyError
    assert torch.equal(turns(found, 0, LONGEST), turns(stock, 0, LONGEST))
    assert not torch.equal(turns(found, 0, LONGEST)[:, :ORIGINAL], turns(longrope(), 0, ORIGINAL))
