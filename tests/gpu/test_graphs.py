"""The captured decode step against the plain loop, on a GPU."""

import pytest
import torch
from prompts import EmbeddedPrompt, prefix

from data_engine import load_model
from data_engine.sampling.draw import SamplingParams
from data_engine.sampling.native.scheduler import SamplingEngine
from data_engine.sampling.requests import PromptRequest
from data_engine.seeds import seed_for

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on the machine"),
]


# A GPU that is not the process's current one.
other = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second CUDA device on the machine")


def asked_of(model, golden_rows, golden_images) -> list[PromptRequest]:
    """Eight questions of different length, ten answers each."""
    found = []
    for number in range(8):
        pixels = model.pixels(golden_images[number], False, 64)
        shared = prefix(model, pixels, golden_rows[4 * number]["question"])
        found.append(PromptRequest(EmbeddedPrompt(shared), [seed_for(0, number, i) for i in range(10)]))
    return found


@pytest.mark.parametrize(
    ("device", "penalty"), [("cuda:0", 1.0), ("cuda:0", 1.3), pytest.param("cuda:1", 1.0, marks=other)]
)
def test_the_captured_step_and_the_plain_loop_draw_the_same_answers(
    goldens, golden_rows, golden_images, device, penalty
):
    model = load_model(None, str(goldens / "llava/instruct"), device=device, dtype="float32")
    params = SamplingParams(1.0, 20, 1.0, penalty, 24)
    asked = asked_of(model, golden_rows, golden_images)
    plain = SamplingEngine(model, 24, 8)
    expected = plain.sample(asked, params)
    assert {answer.finish_reason for answer in expected} == {"stop", "length"}
    captured = SamplingEngine(model, 24, 8, samples_per_prompt=10)
    for _ in range(2):
        assert captured.sample(asked, params) == expected
    graphs = captured._runner.placement.graphs
    assert set(graphs) == {16, 24}
    assert len({graph.pool() for graph, _ in graphs.values()}) == 1, "each size of step has memory of its own"
