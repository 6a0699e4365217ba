"""The captured decode step against the plain loop, on a GPU."""

import pytest
import torch

from data_engine import load_model
from data_engine.decode import Decoder, Request
from data_engine.models.base import prefix
from data_engine.sampler import SamplingParams
from data_engine.seeds import seed_for

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on the machine"),
]


def gathered(query, prefix_keys, prefix_values, prefix_lengths, keys, values, lengths, slots, scale):
    """Attention over a copy of each row's prefix and its suffix, without a figure of the host: it can be captured."""
    shared = query.shape[1] // keys.shape[1]
    key = torch.cat([prefix_keys[slots], keys], dim=2).repeat_interleave(shared, 1)
    value = torch.cat([prefix_values[slots], values], dim=2).repeat_interleave(shared, 1)
    places, size = torch.arange(key.shape[2], device=key.device), prefix_keys.shape[2]
    hidden = torch.where(places < size, places >= prefix_lengths[slots, None], places - size >= lengths[:, None])
    scores = (query.float()[:, :, None] @ key.float().transpose(2, 3)).mul(scale)
    weights = scores.masked_fill(hidden[:, None, None], -torch.inf).softmax(-1)
    # What lies behind the lengths was never written, and may be no number.
    value = value.float().masked_fill(hidden[:, None, :, None], 0)
    return (weights @ value)[:, :, 0].to(query.dtype)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_the_captured_step_and_the_plain_loop_draw_the_same_answers(goldens, golden_rows, golden_images, penalty):
    model = load_model(None, str(goldens / "llava/instruct"), device="cuda", dtype="float32")
    params = SamplingParams(1.0, 20, 1.0, penalty, 24)
    asked = []
    for number in range(8):
        pixels = model.pixels(golden_images[number], False, 64)
        shared = prefix(model, pixels, golden_rows[4 * number]["question"])
        asked.append(Request(lambda shared=shared: shared, [seed_for(0, number, i) for i in range(10)]))
    plain = Decoder(model, 24, 8)
    expected = plain.sample(asked, params)
    assert {answer.finish_reason for answer in expected} == {"stop", "length"}
    captured = Decoder(model, 24, 8, gathered)
    for _ in range(2):
        assert captured.sample(asked, params) == expected
    assert set(captured._steps._graphs) == {16, 24}
